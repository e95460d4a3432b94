from pathlib import Path

import pytest

import autoclip
from autoclip.lab.config import ConfigError


@pytest.fixture
def read(tmp_path):
    def load(text):
        path = tmp_path / "clip.yaml"
        path.write_text(f"clip: {text}\n")
        return autoclip.from_config(path)

    return load


def test_scope_groups_response_and_mode_reach_the_clipper(read):
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    clipper = autoclip.Clipper(model, **read("{scope: group, groups: {first: ^0, bias: bias$}, response: reciprocal}"))
    assert list(clipper.policies) == ["first", "rest", "bias"]
    assert (clipper.scope, clipper.response) == ("group", "reciprocal")
    clipper = autoclip.Clipper(model, **read("{mode: agc, scope: parameter, policy: {kind: fixed, threshold: 0.01}}"))
    assert clipper.mode == "agc"
    assert list(clipper.policies) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_what_is_left_out_is_left_to_the_policy(read):
    import torch

    model = torch.nn.Linear(2, 1)
    for kind, scope, response in (
        ("zclip", "global", "reciprocal"),
        ("skip_step", "global", "skip"),
        ("adagc", "parameter", "scale"),
    ):
        clipper = autoclip.Clipper(model, **read(f"{{policy: {{kind: {kind}}}}}"))
        assert (clipper.scope, clipper.response) == (scope, response)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{scope: group}", "must have groups, as in {decoder: '^decoder'}, if and only if the scope is group"),
        ("{groups: {a: b}}", "got scope: null with 1 groups"),
        ("{scope: parameter, groups: {a: b}}", "got scope: parameter with 1 groups"),
        ("{scope: group, groups: {a: '('}}", "groups.a must be a regular expression, got '('"),
        ("{relearn_after: 0}", "clip.relearn_after: must be a whole number in [1, inf)"),
        (
            "{max_nonfinite_in_a_row: 0}",
            "clip.max_nonfinite_in_a_row: must be a whole number in [1, inf) or null, got 0",
        ),
        ("{relearn_after: soon}", "or null or auto, got 'soon'"),
    ],
)
def test_a_fault_is_told_with_its_place(read, section, message):
    with pytest.raises(ConfigError) as caught:
        read(section)
    assert message in str(caught.value)
    assert "clip.yaml:1:" in str(caught.value)


def test_a_pattern_that_fits_no_parameter_is_a_usage_error(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from autoclip.cli import app

    monkeypatch.chdir(Path(__file__).parent.parent)
    options = ["clip={scope: group, groups: {a: nothing}}", "seeds=[0]", "--output-dir", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["run", "configs/corrupted_digits.yaml", *options])
    assert done.exit_code == 2, done.output
    assert "clip: groups: 'nothing' of 'a' fits no parameter that is left; there are" in done.output
