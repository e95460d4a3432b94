"""`autoclip suggest` and `autoclip replay` on the command line."""

import json
import math
import re
from statistics import median

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import autoclip
from autoclip.cli import app
from autoclip.records import ClipRecord
from autoclip.report.trace_text import print_suggestions
from autoclip.sinks import JSONLSink
from autoclip.traces import NormTrace
from autoclip.tuning.log_findings import times_text
from autoclip.tuning.suggest import suggest_each

STEPS = 300


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A run directory with a drifting, spiky trace."""
    directory = tmp_path_factory.mktemp("run")
    norms = np.random.default_rng(0).lognormal(0, 0.5, STEPS) * 20 ** np.linspace(0, 1, STEPS)
    norms[200] *= 100
    with JSONLSink(directory) as sink:
        for step, norm in enumerate(norms.tolist()):
            loss = 2.0 - step / STEPS
            sink.log(ClipRecord(step, "active", norm, float("inf"), 1.0, False, False, True, loss))
    return directory


def run(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output


def test_a_suggestion_in_words_ends_in_yaml_and_python_that_can_be_used(log):
    code, text = run("suggest", log)
    assert code == 0
    assert "300 norms, every step" in text
    assert "drift: the median of the last fifth is" in text
    section = yaml.safe_load(text[text.index("    clip:") :])
    assert section == {"clip": {"policy": {"kind": "probing_quantile"}}}
    assert "autoclip.attach(optimizer, autoclip.ProbingQuantile())  # once, after the optimizer is made\n" in text
    assert "    clipper.report_loss(loss)  # in every step, before optimizer.step()\n" in text


def test_a_suggestion_as_json(log):
    code, text = run("suggest", log, "-f", "json")
    (found,) = json.loads(text)["suggestions"]
    assert code == 0
    assert found["norms"] == STEPS
    assert json.loads(text)["refused"] == []
    assert found["spikes"]["value"] == pytest.approx(1 / STEPS)
    assert found["recommended"]["policy"] == {"kind": "probing_quantile"}


@pytest.mark.parametrize("last", [-300, 300])
def test_norms_over_the_whole_range_of_floats(tmp_path, last):
    norms = np.logspace(-last, last, STEPS).tolist()
    rows = "".join(json.dumps({"step": step, "gnorm": norm}) + "\n" for step, norm in enumerate(norms))
    (tmp_path / "log.jsonl").write_text(rows)
    for words in (["suggest"], ["suggest", "-f", "json"], ["suggest", "--html", tmp_path / "page.html"], ["replay"]):
        code, text = run(*words, tmp_path / "log.jsonl")
        assert code == 0, text
    code, text = run("report", tmp_path)
    assert (code, text.strip()) == (0, str(tmp_path / "report.html"))


def test_an_end_of_an_interval_that_is_not_known_is_said(log):
    _, text = run("suggest", log)
    (line,) = [line for line in text.splitlines() if line.split()[:1] == ["99"]]
    assert line.endswith(" to unknown")
    (found,) = json.loads(run("suggest", log, "-f", "json")[1])["suggestions"]
    assert found["percentiles"]["99"]["high"] is None


def test_a_replay_shows_a_line_for_each_policy_and_what_it_cannot_tell(log):
    code, text = run("replay", log, "--policy", "kind=fixed,threshold=5", "--policy", "kind=running_quantile")
    assert code == 0
    assert "metrics.jsonl [total_norm]: 300 norms" in text
    assert "Fixed(threshold=5.0)" in text
    assert "RunningQuantile(percentile=50)" in text
    assert "a replay cannot show how training would have gone" in " ".join(text.split())


@pytest.mark.parametrize(("columns", "between"), [("80", r"\n +"), ("95", " +")])
def test_a_policy_stands_above_its_figures_where_both_do_not_fit_beside_each_other(log, monkeypatch, columns, between):
    monkeypatch.setenv("COLUMNS", columns)
    _, text = run("replay", log, "--policy", "kind=fixed,threshold=5")
    assert re.search(rf"^Fixed\(threshold=5\.0\){between}[\d.]+%  .*  5$", text, re.MULTILINE), text


def test_a_replay_as_json_is_what_the_function_returns(log):
    code, text = run("replay", log, "-f", "json")
    (found,) = json.loads(text)
    assert code == 0
    assert len(found["policies"]) == 10
    norms = [json.loads(line)["total_norm"] for line in (log / "metrics.jsonl").read_text().splitlines()]
    by_name = {one["policy"]: one for one in found["policies"]}
    assert by_name["RunningQuantile(percentile=50)"] == autoclip.replay(norms, autoclip.RunningQuantile()).summary()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["suggest", "nowhere"], "nowhere"),
        (["replay", "nowhere"], "nowhere"),
        (["replay", ".", "--policy", "fixed"], "expected KEY=VALUE"),
        (["suggest"], "Missing argument"),
    ],
)
def test_wrong_input_is_named_and_exits_2(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, text = run(*words)
    assert code == 2
    assert message in text
    assert "Traceback" not in text


def random_trace(seed):
    """Norms of one of many kinds, and losses of one of many."""
    random = np.random.default_rng(seed)
    count = int(random.choice([5, 20, 21, 40, 150, 700]))
    norms = random.lognormal(random.normal(0, 3), random.choice([0.05, 0.3, 1.0]), count)
    if random.random() < 0.4:
        norms = norms * random.choice([0.01, 0.3, 20]) ** np.linspace(0, 1, count)
    if random.random() < 0.4:
        norms[random.integers(count, size=int(random.integers(1, 4)))] *= random.choice([1.5, 4, 1471, 1e6])
    if random.random() < 0.2:
        norms = norms * (1 + np.abs(random.standard_t(1.5, count)))
    if random.random() < 0.2:
        norms = np.minimum(norms, np.percentile(norms, random.choice([50, 90, 97])))
    if random.random() < 0.2:
        norms = np.round(norms, 2)
    if random.random() < 0.3:
        norms[random.random(count) < random.choice([0.02, 0.9])] = random.choice([0.0, np.inf, np.nan])
    if random.random() < 0.2:
        norms[int(random.integers(count)) :] = np.nan
    losses = [None, np.zeros(count), random.normal(0, 1, count), np.linspace(3, 1, count), random.normal(5, 0.1, count)]
    every = int(random.choice([1, 1, 10]))
    return NormTrace(every * np.arange(count), norms, "a log", losses[int(random.integers(len(losses)))])


def plain_ratios(norms):
    """The log of each norm over the median of those about it, in plain Python."""
    half = min(min(max(len(norms) // 5, 21), 101) // 2, (len(norms) - 1) // 2)
    ratios = []
    for at, norm in enumerate(norms):
        side = min(half, max(min(at, len(norms) - 1 - at), 5))
        ratios.append(math.log(norm) - median(map(math.log, norms[max(at - side, 0) : at + side + 1])))
    return ratios


def contradictions(trace, told):
    """What a plain look at a trace says against what is told of it."""
    norms = [norm for norm in trace.norms.tolist() if math.isfinite(norm) and norm > 0]
    total = len(trace)
    wrong = []

    def check(pattern, *expected):
        found = [one if isinstance(one, tuple) else (one,) for one in re.findall(pattern, told, re.MULTILINE)]
        wrong.extend((pattern, one, expected) for one in found if one != tuple(map(str, expected)))

    counts = {
        "NaN": sum(map(math.isnan, trace.norms)),
        "infinite": sum(map(math.isinf, trace.norms)),
        "zero": sum(norm == 0 for norm in trace.norms),
    }
    for name, count in counts.items():
        check(rf"(\d+) of (\d+) norms (?:is|are) {name}", count, total)
        if (
            count
            and f"{count} of {total} norms" not in told
            and not re.search(rf"all {count} norms (from there on )?are NaN", told)
        ):
            wrong.append(f"{name} is not told")
    check(r"(\d+) of (\d+) norms (?:is|are) not finite", counts["NaN"] + counts["infinite"], total)
    for step, count in re.findall(r"broke down (?:at|by) step (\d+): all (\d+) norms from there on are NaN", told):
        tail = trace.norms[trace.steps >= int(step)]
        if int(count) != len(tail) or len(tail) < 10 or not np.isnan(tail).all():
            wrong.append(f"broke down at {step}")
    if not norms:
        return wrong
    middle, largest = median(norms), max(norms)
    check(r"\(median (\S+), largest (\S+)\)", f"{middle:.3g}", f"{largest:.3g}")
    piled = sum(norm >= largest * 0.999 for norm in norms)
    if "after clipping" in told and piled < max(3, 0.05 * len(norms)):
        wrong.append("clipped")
    if "recommended" not in told and "once the cause is found" not in told:
        return wrong if "after clipping" in told or len(norms) < 20 else [*wrong, "refused"]

    check(r"the largest norm is (\S+) times the median of all", times_text(largest / middle))
    step = trace.steps[trace.norms.tolist().index(largest)]
    check(r"^ +largest  (\S+) +at step (\d+), (\S+) times", f"{largest:.3g}", step, times_text(largest / middle))
    if not re.search(r"^ +largest  ", told, re.MULTILINE):
        wrong.append("no largest")
    ratios = plain_ratios(norms)
    limit = max(math.log(3), 6 * 1.4826 * median(map(abs, ratios)))
    spikes, tail = sum(ratio > limit for ratio in ratios), math.exp(np.percentile(ratios, 99))
    check(r"(\d+) of (\d+) norms (?:is a spike|are spikes|tested)", spikes, len(norms))
    check(r"none of (\d+) norms is a spike", len(norms))
    check(r"1 % of the norms are above (\S+) times their running median", times_text(tail))
    if ("none of" in told and spikes) or ("large norms occur" in told) != (spikes > 0 or tail > 3):
        wrong.append("large steps")
    fifth = len(norms) // 5
    change = median(norms[-fifth:]) / median(norms[:fifth])
    check(r"the median of the last fifth is (\S+) times that of the first", f"{change:.3g}")
    if "no constant stays right" in told and 1 / 1.5 < change < 1.5:
        wrong.append("drift")
    check(r"max_grad_norm=\S+, percentile 90 of the (\d+) norms", len(norms))
    low, high = sorted((float(re.search(r"max_grad_norm=([\d.e+-]+)", told)[1]), float(np.percentile(norms, 90))))
    if sum(low < norm <= high for norm in norms) > max(1, len(norms) / 100):
        wrong.append("number")
    worth = re.findall(r"worth at most about (\d+) independent", told)
    wrong += [f"worth {one}" for one in worth if int(one) > 0.5 * len(norms) + 0.5]
    for threshold in (1, 5, 10):
        share = sum(norm > threshold for norm in norms) / len(norms)
        check(rf"^ +{threshold}  (\S+)%  ", f"{100 * share:.2f}")
    losses = [] if trace.losses is None else trace.losses.tolist()
    tells = len(losses) >= 20 and (min(losses) > 0 or max(losses) < 0)
    if ("report_loss" in told or "when the average loss rises" in told) and not tells:
        wrong.append("advice about a loss that tells nothing")
    fifth = len(losses) // 5
    if re.search(r"falls? \(median", told) and not (tells and median(losses[-fifth:]) > 0.95 * median(losses[:fifth])):
        wrong.append("the loss does fall")
    return wrong


def test_nothing_that_is_told_of_a_log_is_contradicted_by_it(capsys):
    told_of = set()
    for seed in range(600):
        trace = random_trace(seed)
        suggestions, refused = suggest_each([trace])
        print_suggestions(suggestions)
        told = "".join([*map(str, refused), capsys.readouterr().out])
        assert not contradictions(trace, told), (seed, told)
        told_of |= {word for word in ("spike", "broke down", "after clipping", "advice needs", "worth") if word in told}
    assert len(told_of) == 5, "every kind of statement was there"


def test_several_logs_have_a_line_each_and_details_show_the_rest(tmp_path):
    random = np.random.default_rng(0)
    logs = {"calm": random.lognormal(0, 0.2, 100), "broken": np.append(random.lognormal(0, 0.2, 60), [np.nan] * 40)}
    for name, norms in logs.items():
        rows = [json.dumps({"step": step, "grad_norm": norm}) + "\n" for step, norm in enumerate(norms.tolist())]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    code, text = run("suggest", tmp_path)
    lines = text.splitlines()
    assert (code, len(lines)) == (0, 5)
    assert re.search(
        r"broken.*: the training broke down at step 60; once the cause is found: autoclip.ProbingQuantile\(\); "
        r"only a number: max_grad_norm=[\d.]+$",
        lines[0],
    )
    assert lines[2] == "each max_grad_norm is percentile 90 of the run's norms"
    _, text = run("suggest", tmp_path, "--details")
    assert (text.count("recommended: "), text.count("once the cause is found: "), text.count("why: ")) == (1, 1, 2)


def test_the_first_line_is_the_answer(log):
    _, text = run("suggest", log)
    first, second = text.splitlines()[:2]
    assert re.fullmatch(
        r"recommended: autoclip.ProbingQuantile\(\); if your trainer takes only a number: max_grad_norm=[\d.]+, "
        r"percentile 90 of the 300 norms, right for a part of the run only",
        first,
    )
    assert second.startswith("why: large norms occur (")


@pytest.mark.parametrize(
    ("name", "rows", "lines"),
    [
        (
            "trainer_state.json",
            json.dumps(
                {"log_history": [{"step": at, "grad_norm": 1 + at % 7 / 10, "loss": 9 - at / 9} for at in range(50)]}
            ),
            "from autoclip.integrations.transformers import AutoClipCallback\n"
            "    trainer = Trainer(..., callbacks=[AutoClipCallback(autoclip.RunningQuantile(percentile=90))])",
        ),
        (
            "metrics.csv",
            "step,grad_2.0_norm_total\n" + "".join(f"{at},{1 + at % 7 / 10}\n" for at in range(50)),
            "from autoclip.integrations.lightning import AutoClipCallback\n"
            "    trainer = Trainer(..., callbacks=[AutoClipCallback(autoclip.RunningQuantile(percentile=90))])",
        ),
        (
            "log.csv",
            "step,grad_norm\n" + "".join(f"{at},{1 + at % 7 / 10}\n" for at in range(50)),
            "clipper = autoclip.attach(optimizer, autoclip.RunningQuantile(percentile=90))  # once, after the "
            "optimizer is made",
        ),
    ],
)
def test_the_python_is_that_of_the_framework_that_wrote_the_log(tmp_path, name, rows, lines):
    (tmp_path / name).write_text(rows)
    _, text = run("suggest", tmp_path / name)
    assert f"    {lines}\n" in text
    assert ("gradient_clip_val=" in text) == ("lightning" in lines)


def test_a_replay_counts_norms_that_are_none(tmp_path):
    rows = ["1.0", "NaN", "0.0", "0.0", "2.0"]
    (tmp_path / "log.jsonl").write_text(
        "".join(f'{{"step": {step}, "grad_norm": {norm}}}\n' for step, norm in enumerate(rows))
    )
    _, text = run("replay", tmp_path / "log.jsonl")
    assert "5 norms; 1 of 5 norms is NaN; 2 of 5 norms are zero" in text
    (found,) = json.loads(run("replay", tmp_path / "log.jsonl", "-f", "json")[1])
    assert (found["norms"], found["zero"], found["nonfinite"]) == (5, 2, 1)


def test_a_log_that_cannot_be_read_is_refused_in_json_too(tmp_path):
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    for path in (tmp_path / "log.csv", tmp_path / "nowhere"):
        result = CliRunner().invoke(app, ["suggest", str(path), "-f", "json"])
        told = json.loads(result.stdout)
        assert (result.exit_code, told["suggestions"], told["not_read"]) == (2, [], [])
        (refused,) = told["refused"]
        assert refused["source"] == str(path)
        assert refused["reason"] in " ".join(result.stderr.split())


def norms_in(path, norms):
    path.write_text("step,grad_norm\n" + "".join(f"{step},{norm}\n" for step, norm in enumerate(norms)))


@pytest.mark.parametrize("factor", [1, 30])
def test_runs_that_differ_are_said_to_and_so_is_what_was_not_read(tmp_path, factor):
    norms = np.random.default_rng(0).lognormal(0, 0.2, 100)
    norms_in(tmp_path / "a.csv", norms)
    norms_in(tmp_path / "b.csv", factor * norms[::-1])
    (tmp_path / "c.log").write_text("step 1 grad_norm 2\nstep 2 grad_norm 3\n")
    result = CliRunner().invoke(app, ["suggest", str(tmp_path)])
    least = f"{np.percentile(norms, 90):.3g}"
    differs = (
        f"the runs differ, no single number fits all: {least}, the number for {tmp_path / 'a.csv'} [grad_norm], would"
    )
    assert (differs in result.stdout) == (factor == 30)
    assert f"not read: 1 console log beside a more precise log ({tmp_path / 'c.log'})" in result.stderr
    told = json.loads(CliRunner().invoke(app, ["suggest", str(tmp_path), "-f", "json"]).stdout)
    assert bool(told["difference"]) == (factor == 30)
    assert [one["path"] for one in told["not_read"]] == [str(tmp_path / "c.log")]
    assert {one["format"] for one in told["suggestions"]} == {"a table"}


def test_what_the_number_would_clip_where_the_lines_go_and_what_must_go_are_said(tmp_path):
    norms_in(tmp_path / "a.csv", np.linspace(1, 3, 101))
    _, text = run("suggest", tmp_path / "a.csv")
    assert re.search(r"^ +2\.8  9\.90% +.* to .*, the number above$", text, re.MULTILINE)
    assert ", read as a table\n" in text
    assert "in a training loop (remove your clip_grad_norm_ call):\n" in text
    assert "in YAML, for `autoclip run` or autoclip.from_config:\n" in text
    section = yaml.safe_load(text[text.index("    clip:") :])
    (tmp_path / "clip.yaml").write_text(yaml.safe_dump(section))
    assert isinstance(autoclip.from_config(tmp_path / "clip.yaml")["policy"], autoclip.RunningQuantile)


def test_of_the_notes_on_a_refused_log_none_has_a_prefix(tmp_path):
    (tmp_path / "a.csv").write_text("step,grad_norm\n1,2\n2,\n2,3\n3,4,5\n3,4")
    code, text = run("suggest", tmp_path / "a.csv")
    assert code == 2
    assert text.startswith(
        f"no advice: {tmp_path / 'a.csv'} [grad_norm]: 2 finite norms above zero (median 2.5, largest 3)"
    )
    assert text.count("note:") == 0
