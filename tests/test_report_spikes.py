import json
from dataclasses import replace
from math import nan

import numpy as np
import pytest
from typer.testing import CliRunner

from autoclip.cli import app
from autoclip.errors import UsageError
from autoclip.records import ClipRecord
from autoclip.report.spikes import TOTALS_ONLY, spike_findings, spikes_of
from autoclip.report.spikes_page import layers_picture, spike_blocks
from autoclip.report.writing import write_report
from autoclip.sinks import JSONLSink, SpikeRecorder
from autoclip.spikes import event_findings, events_of
from autoclip.traces import read_traces
from tests.test_spike_finder import calm, record, with_norms


def write(directory, odd=(100, 150, 200), spikes=True):
    """A run directory of 250 steps, some of which are odd."""
    records = [replace(one, threshold=9.0) for one in calm(250)]
    records = [
        replace(one, total_norm=50.0, clipped=True, coefficient=0.18) if one.step in odd else one for one in records
    ]
    sinks = [JSONLSink(directory), *([SpikeRecorder(directory / "spikes")] if spikes else [])]
    for sink in sinks:
        for one in records:
            if isinstance(sink, SpikeRecorder):
                sink.note(f"b{one.step}")
            sink.log(one)
        sink.close()


def test_events_of_a_run_are_told_and_drawn(tmp_path):
    write(tmp_path / "seed-0")
    write(tmp_path / "seed-1", odd=())
    (first, second) = spikes_of(tmp_path)
    assert [event.step for event in first.events] == [100, 150, 200]
    assert str(first).splitlines()[1].startswith("  Step 100: the norm was 50, ")
    assert str(second) == "seed 1: no spikes"
    assert next(one.text for one in spike_findings([first, second])).startswith(
        "seed 0: 3 spikes (3 of the norm), at step 100"
    )
    written = write_report(tmp_path)
    text = written.page.read_text()
    assert "<h2>Spikes</h2>" in text
    assert text.count("seed 0, step 1") >= 2
    assert any("3 spikes" in one["text"] for one in written.findings)


def test_a_run_without_a_recorder_and_a_log_have_events_by_their_totals(tmp_path):
    write(tmp_path / "run", spikes=False)
    (found,) = spikes_of(tmp_path / "run")
    assert ([event.step for event in found.events], found.note) == ([100, 150, 200], TOTALS_ONLY)
    folder = tmp_path / "logs"
    folder.mkdir()
    lines = [{"step": step, "grad_norm": 50.0 if step == 200 else 1 + step % 3 / 10} for step in range(300)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = spikes_of(folder)
    assert "note: only total norms" in str(found)
    assert str(found.events[0]) == "Step 200: the norm was 50, 45 times its median."


def test_the_command_prints_text_and_json_and_refuses_what_holds_nothing(tmp_path):
    write(tmp_path / "run")
    shown = CliRunner().invoke(app, ["spikes", str(tmp_path / "run")])
    assert (shown.exit_code, len(shown.stdout.splitlines())) == (0, 4)
    (run,) = json.loads(CliRunner().invoke(app, ["spikes", str(tmp_path / "run"), "--format", "json"]).stdout)
    assert [event["step"] for event in run["events"]] == [100, 150, 200]
    assert {"told", "named", "leaders", "steps", "rewound_to"} <= run["events"][0].keys()
    for path in (tmp_path / "missing", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        refused = CliRunner().invoke(app, ["spikes", str(path)])
        assert (refused.exit_code, refused.stdout) == (2, "")
    (tmp_path / "run/spikes/step-7.json").write_text('{"step": 7}')
    with pytest.raises(UsageError, match=r"step-7\.json is no event"):
        spikes_of(tmp_path / "run")


def test_a_folder_of_a_recorder_alone_is_read_and_is_no_log(tmp_path):
    write(tmp_path / "run")
    assert [len(trace) for trace in read_traces([tmp_path])] == [250]
    (found,) = spikes_of(tmp_path / "run/spikes")
    assert (found.label, len(found.events), found.note) == ("spikes", 3, "")


def test_the_picture_has_a_row_for_each_layer():
    (event,) = with_norms([*calm(), record(100, 50.0), *map(record, range(101, 120))], {100: {"b.weight": 50.0}})
    picture = layers_picture("seed 0", event)
    assert (picture.name, picture.alt) == ("spike_seed_0_100", "Norms of 3 layers in 52 steps around step 100.")
    assert spike_blocks([]) == ([], [])
    (bare,) = events_of([*calm(), record(100, 50.0)])
    assert layers_picture("seed 0", bare) is None


def events(count=3, **others):
    """Events with these attributes; each is of a spike of the norm."""
    made = [events_of([*calm(), record(100, 50.0, threshold=9.0)])[0] for _ in range(count)]
    return [replace(event, step=event.step, **others) for event in made]


@pytest.mark.parametrize(
    ("found", "told", "level"),
    [
        ([], "no spikes", "good"),
        (events(1), "1 spike (1 of the norm), at step 100", "note"),
        (events(3), "all were clipped or left out, and others followed", "bad"),
        (events(1, broken_weights=["a"]), "weights are not finite by step 100, in a", "bad"),
        (events(2, nonfinite=["a", "b"]), "began in a (2 of 2 spikes)", "bad"),
        (events(1, lr=1.0, lr_before=0.1), "the learning rate jumped from 0.1 to 1", "bad"),
        (events(2, repeated={"17": [40, 70]}, batch=17), "batch 17 stood out 3 times (step 40, 70, 100)", "bad"),
        (
            events(1, moved=[{"name": "q", "ratio": 30.0, "since": 40}]),
            "the weights of q changed in norm by a factor of 30",
            "bad",
        ),
        (events(3, leaders=[{"name": "a", "ratio": 9.0}]), "a led 3 of 3 spikes: scope='parameter'", "note"),
        (events(3, leaders=[{"name": "a", "ratio": 9.0}], share=0.8), "that is a batch, not a layer", "note"),
    ],
)
def test_findings_name_the_cause_that_can_be_seen(found, told, level):
    findings = event_findings(found)
    (one,) = [one for one in findings if told in one.text]
    assert one.level == level


def test_updates_that_grew_alone_are_named():
    steps = np.arange(0, 400, 5)
    norms = np.where((steps > 250) & (steps < 300), 0.3, 0.1)
    (event,) = events_of([*calm(300), record(300, 50.0)])
    (_, cause) = event_findings([event], (steps, norms))
    assert cause.text.startswith("the updates grew by a factor of 3 in the 100 steps before the spike at step 300")
    assert len(event_findings([event], (steps, np.full(len(steps), nan)))) == 1


def test_a_loss_that_rises_without_a_norm_is_told_where_nothing_else_is_seen():
    steps = [
        ClipRecord(at, "active", 1.0 + at % 2 / 10, 9.0, 1.0, False, False, True, 1.0 if at < 200 else 1.6)
        for at in range(260)
    ]
    (head, cause) = event_findings(events_of(steps))
    assert head.text == "1 spike (1 of the loss), at step 200"
    assert "the loss rose before any norm (1 of 1 spike)" in cause.text
