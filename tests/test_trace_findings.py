"""The lines that put a policy to use."""

import pytest

import autoclip
from autoclip.report.trace_findings import code_of, framework_of, python_of
from autoclip.traces import NormTrace


@pytest.mark.parametrize(
    ("source", "form", "framework"),
    [
        ("a.json [grad_norm]", "a trainer state of Transformers", "transformers"),
        ("trainer_state.json/a.csv [grad_norm]", "a table", None),
        ("out.log [grad_norm]", "a console log of Transformers' Trainer", "transformers"),
        ("a/lightning_logs/version_0/metrics.csv [norm]", "a table", "lightning"),
        ("metrics.csv [grad_2.0_norm_total]", "a table", "lightning"),
        ("metrics.jsonl [total_norm]", "JSON lines", None),
    ],
)
def test_which_framework_wrote_a_log(source, form, framework):
    assert framework_of(NormTrace([0], [1.0], source, format=form)) == framework


def test_the_loss_is_reported_to_a_policy_that_reads_it():
    probing, running = {"kind": "probing_quantile"}, {"kind": "running_quantile"}
    assert "report_loss" in code_of(probing)
    assert "report_loss" not in code_of(probing, with_loss=False)
    assert "report_loss" not in code_of(running)
    assert "report_loss" not in code_of(probing, "transformers")


def test_a_policy_is_written_as_python_would_have_it():
    assert python_of({"kind": "fixed", "threshold": 2}) == "autoclip.Fixed(threshold=2.0)"
    written = python_of({"kind": "running_quantile", "percentile": 90, "warmup_threshold": float("inf")})
    assert eval(written, {"autoclip": autoclip}).warmup_threshold == float("inf")  # noqa: S307
