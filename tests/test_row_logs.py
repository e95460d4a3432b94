"""Logs of rows: our own and others' JSON lines, Hugging Face's states, tables."""

import json
import math
import re

import numpy as np
import pytest
import torch

import autoclip
from autoclip.errors import UsageError
from autoclip.traces import jsonl, read_traces
from autoclip.traces.text import LONGEST


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


class TestJSONLines:
    def test_our_own_metrics_come_back_exactly(self, tmp_path):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        policy = autoclip.RunningQuantile(warmup_steps=3)
        clipper = autoclip.Clipper(model, policy, sinks=[autoclip.sinks.JSONLSink(tmp_path)], on_nonfinite="skip")
        expected = []
        for step in range(20):
            model.zero_grad()
            loss = model(torch.randn(4, 3)).square().mean()
            (loss * (math.nan if step == 7 else 1)).backward()
            threshold = policy.threshold()
            if step == 7:
                with pytest.warns(UserWarning, match="non-finite gradient norm"):
                    norm = clipper.step(loss=loss)
            else:
                norm = clipper.step(loss=loss)
            expected.append((norm.item(), loss.item(), threshold))
        clipper.close()
        (trace,) = read_traces(tmp_path / "metrics.jsonl")
        norms, losses, thresholds = zip(*expected, strict=True)
        assert trace.steps.tolist() == list(range(20))
        np.testing.assert_array_equal(trace.norms, norms)
        np.testing.assert_array_equal(trace.losses, losses)
        np.testing.assert_array_equal(trace.thresholds, thresholds)
        assert math.isnan(trace.norms[7])
        assert trace.thresholds[0] == math.inf
        assert trace.notes == ()

    def test_a_torn_last_line_is_left_out(self, tmp_path):
        text = lines({"step": step, "grad_norm": 1.0} for step in range(5))
        (trace,) = read_traces(write(tmp_path / "log.jsonl", text[:-10]))
        assert len(trace) == 4
        assert trace.notes == ("the last line is torn and left out",)

    @pytest.mark.parametrize(
        "strange",
        [
            {},
            {"step": "700"},
            {"step": 700.0},
            {"step": None},
            {"step": 2**60},
            {"grad_norm": 3},
            {"grad_norm": "2.5"},
            {"grad_norm": None},
            {"extra": {"loss": 2.0}},
            {"epoch": 1},
            {"loss": True},
        ],
        ids=str,
    )
    def test_many_rows_are_read_as_one_by_one(self, tmp_path, strange, monkeypatch):
        rows = [{"step": step, "loss": 1.0 / (1 + step), "grad_norm": 1.0 + step % 7} for step in range(1200)]
        rows[700] |= strange
        path = write(tmp_path / "log.jsonl", lines(rows))
        quick = read_traces(path)
        monkeypatch.setattr(jsonl, "_objects", lambda *_: None)
        slow = read_traces(path)
        for one, other in zip(quick, slow, strict=True):
            assert (one.notes, one.source, one.has_steps) == (other.notes, other.source, other.has_steps)
            np.testing.assert_array_equal(one.steps, other.steps)
            np.testing.assert_array_equal(one.norms, other.norms)
            np.testing.assert_array_equal(one.losses, other.losses)

    def test_a_damaged_line_takes_no_whole_one_with_it(self, tmp_path):
        rows = lines({"step": step, "grad_norm": 1.0} for step in range(30)).splitlines(keepends=True)
        rows[10] = '{"step": {"of": 10}\n'
        rows[20] = rows[20].strip() + "," + rows[20]
        rows[25] = rows[25].replace("\n", "\r\n")
        (trace,) = read_traces(write(tmp_path / "log.jsonl", "".join(rows)))
        assert trace.steps.tolist() == [step for step in range(30) if step not in (10, 20)]
        assert trace.notes == ("2 lines left out: no JSON object (the first is line 11)",)

    def test_other_lines_are_told(self, tmp_path):
        text = "started\n" + lines([{"step": 1, "gnorm": "1.5"}, [1], {"step": 2, "gnorm": None}, {"gnorm": 3}])
        text += lines([{"step": 4, "gnorm": "high"}, {"step": 2.5, "gnorm": 1}]) + "\n{oops}\n"
        (trace,) = read_traces(write(tmp_path / "log.jsonl", text))
        assert (trace.steps.tolist(), trace.norms.tolist()) == ([1], [1.5])
        assert trace.notes == (
            "2 values left out: without a step (no step: 2.5)",
            "1 value left out: no number, such as 'high' in 'gnorm'",
            "3 lines left out: no JSON object (the first is line 1)",
        )

    def test_values_of_nested_objects_have_dotted_names(self, tmp_path):
        rows = [
            {"global": {"step": 10 * step}, "opt": {"stats": {"size": step + 1.0}}, "train": {"loss": 0.5}}
            for step in range(5)
        ]
        path = write(tmp_path / "log.jsonl", lines(rows))
        (trace,) = read_traces(path, column="opt.stats.size", step_column="global.step")
        assert (trace.steps.tolist(), trace.norms.tolist()) == ([0, 10, 20, 30, 40], [1, 2, 3, 4, 5])
        assert trace.losses.tolist() == [0.5] * 5
        assert len(read_traces(tmp_path, column="opt.stats.size")) == 1
        with pytest.raises(UsageError, match=r"it has 'global.step', 'opt.stats.size', 'train.loss': choose one with"):
            read_traces(path)
        with pytest.raises(UsageError, match=r"no column 'opt'; it has 'global.step', 'opt.stats.size'"):
            read_traces(path, column="opt")

    @pytest.mark.parametrize("name", ["log.jsonl", "log.json", "log"])
    def test_an_object_for_the_training_holds_norms_steps_and_losses(self, tmp_path, name):
        rows = [
            {"train": {"grad_norm": step + 1.5, "step": 2 * step, "loss": 3}, "eval": {"grad_norm": 9}}
            for step in range(4)
        ]
        text = json.dumps(rows) if name == "log.json" else lines(rows)
        (trace,) = read_traces(write(tmp_path / name, text))
        assert (trace.steps.tolist(), trace.norms.tolist()) == ([0, 2, 4, 6], [1.5, 2.5, 3.5, 4.5])
        assert trace.losses.tolist() == [3] * 4
        assert trace.source.endswith("[train.grad_norm]")

    def test_nesting_and_names_are_read_to_a_limit(self, tmp_path):
        def nested(levels, value):
            return {"a": nested(levels - 1, value)} if levels else value

        row = {"step": 0, "gnorm": 1, "x" * 101: {"b": 1}, **nested(8, 2), "c": nested(400, 3)}
        path = write(tmp_path / "log.jsonl", lines([row]))
        assert read_traces(path)[0].norms.tolist() == [1]
        assert read_traces(path, column="a" + ".a" * 7)[0].norms.tolist() == [2]
        with pytest.raises(UsageError, match=r"no number in it .*an object in 'c.a.a.a.a.a.a.a.a'"):
            read_traces(path, column="c" + ".a" * 8)
        with pytest.raises(UsageError, match=r"no column 'x+\.b'"):
            read_traces(path, column="x" * 101 + ".b")

    def test_nan_and_infinity_as_python_writes_them(self, tmp_path):
        rows = [{"step": step, "gnorm": x} for step, x in enumerate([1.0, math.nan, math.inf])]
        (trace,) = read_traces(write(tmp_path / "log.jsonl", lines(rows)))
        np.testing.assert_array_equal(trace.norms, [1, math.nan, math.inf])

    def test_rows_without_steps_are_numbered(self, tmp_path):
        rows = [{"note": "start"}, {"gnorm": 3.0}, {"lr": 1}, {"gnorm": 2.0}]
        (trace,) = read_traces(write(tmp_path / "log.jsonl", lines(rows)))
        assert (trace.steps.tolist(), trace.norms.tolist()) == ([0, 1], [3, 2])
        assert trace.notes == (
            "no column is known to hold the step: rows are numbered (choose one with --step-column)",
        )

    def test_a_chosen_step_column(self, tmp_path):
        path = write(tmp_path / "log.jsonl", lines({"step": n % 5, "batch": 3 * n, "gnorm": n} for n in range(20)))
        traces = read_traces(path)
        assert [trace.norms.tolist() for trace in traces] == [list(range(n, n + 5)) for n in (0, 5, 10, 15)]
        assert traces[1].source == f"{path} [gnorm], training 2 of 4"
        (trace,) = read_traces(path, step_column="batch")
        assert trace.steps.tolist() == list(range(0, 60, 3))
        with pytest.raises(UsageError, match=r"no column 'time' for the steps; it has 'batch', 'gnorm', 'step'"):
            read_traces(path, step_column="time")

    @pytest.mark.parametrize(
        ("column", "shown"),
        [
            ("epoch", "0.02, 0.04, 0.06"),
            ("percentage", "'1%', '2%', '3%'"),
            ("name", "'a'"),
            ("place", "a list"),
        ],
    )
    def test_a_chosen_step_column_without_steps_is_refused_by_its_values(self, tmp_path, column, shown):
        row = {"name": "a", "place": [1]}
        rows = [row | {"epoch": n / 50, "percentage": f"{n}%", "gnorm": 1.0} for n in range(1, 40)]
        with pytest.raises(UsageError) as refusal:
            read_traces(write(tmp_path / "log.jsonl", lines(rows)), step_column=column)
        assert str(refusal.value) == (
            f"{tmp_path / 'log.jsonl'}: the column {column!r} does not hold steps, which are whole numbers; among its "
            f"values are {shown}: choose another one with --step-column"
        )

    def test_a_few_values_that_are_no_steps_are_left_out_and_shown(self, tmp_path):
        rows = [{"batch": n if n != 3 else "x", "gnorm": 1.0} for n in range(9)]
        (trace,) = read_traces(write(tmp_path / "log.jsonl", lines(rows)), step_column="batch")
        assert (len(trace), trace.notes) == (8, ("1 value left out: without a step (no step: 'x')",))

    @pytest.mark.parametrize("column", ["global_step/max_steps", "step", "train/global_step"])
    def test_steps_of_all_steps(self, tmp_path, column):
        rows = [{"loss": 3.0, "grad_norm": 1.0, column: f"{step}/438"} for step in (1, *range(10, 431, 10))]
        (trace,) = read_traces(write(tmp_path / "logging.jsonl", lines(rows)))
        assert trace.steps.tolist() == [1, *range(10, 431, 10)]
        assert (trace.frequency, trace.notes) == ("one step in 10", ())

    def test_numbers_of_rows_are_no_steps(self, tmp_path):
        (trace,) = read_traces(write(tmp_path / "log.jsonl", lines({"gnorm": n} for n in range(9))))
        assert (trace.has_steps, trace.frequency) == (False, "optimizer steps not known")
        rows = [{"step": 0, "gnorm": n} for n in range(9)]
        assert not read_traces(write(tmp_path / "log.jsonl", lines(rows)))[0].has_steps

    @pytest.mark.parametrize("column", ["env_step", "train/num_env_steps", "consumed_samples", "tokens seen"])
    def test_a_count_of_something_else_is_no_stride(self, tmp_path, column):
        path = write(tmp_path / "log.jsonl", lines({column: 2048 * n, "gnorm": n} for n in range(9)))
        (trace,) = read_traces(path, step_column=column)
        assert trace.steps.tolist() == list(range(0, 9 * 2048, 2048))
        assert (trace.stride, trace.frequency) == (1, "optimizer steps not known")
        assert trace.notes == (f"{column!r} does not count optimizer steps: the number between two norms is not known",)

    @pytest.mark.parametrize(("first", "stride"), [(0, 1), (0, 10), (10, 10), (5, 5)])
    def test_steps_that_begin_anew_in_each_epoch_are_counted_on(self, tmp_path, first, stride):
        def row(epoch, step):
            return {"epoch": epoch, "step": step, "grad_norm": 1 + epoch + step / 1000, "loss": 9 - epoch}

        steps = range(first, first + 100, stride)
        rows = [row(epoch, step) for epoch in range(3, 13) for step in steps]
        (trace,) = read_traces(write(tmp_path / "log.jsonl", lines(rows)))
        assert trace.steps.tolist() == list(range(first, first + 1000, stride))
        assert trace.norms.tolist() == [row["grad_norm"] for row in rows]
        assert trace.losses.tolist() == [row["loss"] for row in rows]
        assert trace.notes == ("the steps restart in each epoch: they are counted on, 100 to an epoch",)
        (tmp_path / "log.jsonl").unlink()
        text = "epoch,step,grad_norm,loss\n" + "".join(",".join(map(str, row.values())) + "\n" for row in rows)
        (table,) = read_traces(write(tmp_path / "log.csv", text))
        assert (table.steps.tolist(), table.notes) == (trace.steps.tolist(), trace.notes)

    def test_a_restart_within_an_epoch_voids_what_came_after(self, tmp_path):
        written = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
        rows = [{"epoch": epoch, "step": step, "gnorm": n} for n, (epoch, step) in enumerate(written)]
        (trace,) = read_traces(write(tmp_path / "log.jsonl", lines(rows)))
        assert trace.norms.tolist() == [0, 1, 2, 6, 7, 8, 9]
        assert "counted on, 3 to an epoch" in trace.notes[0]
        assert trace.notes[1].startswith("the steps go back 1 time, as after a restart: 3 values")

    @pytest.mark.parametrize(
        "epochs", [(0, 0, 0, 0, 0), (3, 3, 3, 2, 3), (0.5, 0.6, 0.7, 0.8, 0.9), (0, None, 0, 1, 1)]
    )
    def test_without_whole_epochs_that_rise_steps_that_go_back_are_a_restart(self, tmp_path, epochs):
        rows = [{"epoch": epoch, "step": step, "gnorm": 1} for epoch, step in zip(epochs, (0, 1, 2, 1, 2), strict=True)]
        (trace,) = read_traces(write(tmp_path / "log.jsonl", lines(rows)))
        assert trace.steps.tolist() == [0, 1, 2]
        assert trace.notes[0].startswith("the steps go back 1 time, as after a restart")

    def test_epochs_beyond_every_step_are_none(self, tmp_path):
        rows = [
            {"epoch": epoch, "step": step, "gnorm": epoch + 2**53} for epoch in (-(2**53), 2**53) for step in (0, 2**52)
        ]
        first, second = read_traces(write(tmp_path / "log.jsonl", lines(rows)))
        assert first.steps.tolist() == second.steps.tolist() == [0, 2**52]

    @pytest.mark.parametrize(
        ("program", "row"),
        [
            ("mmengine or mmcv", {"lr": 1e-3, "data_time": 0.01, "loss": 2.0, "grad_norm": 1.5, "time": 0.2}),
            ("fairseq", {"loss": "2.0", "wps": "9", "ups": "1.2", "gnorm": "1.5", "lr": "1e-3"}),
            ("fairseq", {"train_loss": "2.0", "train_wps": "9", "train_ups": "1.2", "train_gnorm": "1.5"}),
            (None, {"lr": 1e-3, "loss": 2.0, "gnorm": 1.5, "time": 0.2}),
            (None, {"data_time": 0.01, "time": 0.2, "autoclip/total_norm": 1.5}),
        ],
    )
    @pytest.mark.parametrize("every", [1, 50])
    def test_programs_that_log_means_are_told(self, tmp_path, program, row, every):
        rows = [{"epoch": 1, "iter": every * n, **row} for n in range(1, 9)]
        (trace,) = read_traces(write(tmp_path / "log.jsonl", lines(rows)))
        told = f"{program} logs means over several steps: spikes are flattened"
        assert trace.notes == ((told,) if program and every > 1 else ())

    def test_no_json_at_all(self, tmp_path):
        with pytest.raises(UsageError, match=r"log.jsonl has no line that is a JSON object"):
            read_traces(write(tmp_path / "log.jsonl", "step 1\nstep 2\n"))
        with pytest.raises(UsageError, match=r"log.jsonl is empty"):
            read_traces(write(tmp_path / "log.jsonl", ""))
        with pytest.raises(UsageError, match=r"log.jsonl is not a text file: it has a line of more than 16 MiB"):
            read_traces(write(tmp_path / "log.jsonl", "x" * (LONGEST + 2)))

    def test_deep_nesting_is_no_row(self, tmp_path):
        text = "[" * 100_000 + "\n" + '{"a":' * 100_000 + "\n" + lines([{"step": 1, "gnorm": 1}])
        (trace,) = read_traces(write(tmp_path / "log.jsonl", text))
        assert len(trace) == 1


class TestTrainerState:
    def state(self, steps):
        history = [{"epoch": 0.1, "grad_norm": 0.5 + n, "learning_rate": 1e-4, "loss": 9 - n, "step": n} for n in steps]
        history.insert(1, {"epoch": 0.1, "eval_loss": 2.0, "step": steps[0]})
        history.append({"epoch": 1.0, "total_flos": 1.0, "train_loss": 5.0, "train_runtime": 3.0, "step": steps[-1]})
        return json.dumps({"best_metric": None, "global_step": steps[-1], "log_history": history}, indent=2)

    def test_history(self, tmp_path):
        text = self.state([10, 20, 30]).replace("20.5", "NaN")
        path = write(tmp_path / "trainer_state.json", text)
        (trace,) = read_traces(path)
        np.testing.assert_array_equal(trace.norms, [10.5, math.nan, 30.5])
        assert trace.losses.tolist() == [-1, -11, -21]
        assert trace.steps.tolist() == [10, 20, 30]
        assert (trace.stride, trace.notes, trace.source) == (10, (), f"{path} [grad_norm]")

    def test_a_torn_state_is_passed_over(self, tmp_path):
        for step in (500, 900):
            (tmp_path / f"checkpoint-{step}").mkdir()
            write(tmp_path / f"checkpoint-{step}" / "trainer_state.json", self.state(range(10, step + 1, 10)))
        torn = tmp_path / "checkpoint-900" / "trainer_state.json"
        write(torn, torn.read_text()[:-50])
        (trace,) = read_traces(tmp_path)
        assert trace.steps[-1] == 500
        (note,) = trace.notes
        assert note.startswith(f"not read: {torn} is not a whole JSON file")
        with pytest.raises(UsageError, match=r"checkpoint-900.trainer_state.json is not a whole JSON file"):
            read_traces([tmp_path, torn])

    def test_what_is_no_state_is_refused(self, tmp_path):
        path = tmp_path / "trainer_state.json"
        with pytest.raises(UsageError, match=r"trainer_state.json is not a whole JSON file"):
            read_traces(write(path, self.state([1, 2])[:-20]))
        with pytest.raises(UsageError, match=r"trainer_state.json is not a whole JSON file"):
            read_traces(write(path, "[" * 100_000))
        with pytest.raises(UsageError, match=r"trainer_state.json holds no log: neither `log_history`"):
            read_traces(write(path, '{"step": 1}'))
        with pytest.raises(UsageError, match=r"trainer_state.json holds no values"):
            read_traces(write(path, '{"log_history": []}'))

    def test_a_list_of_objects(self, tmp_path):
        path = write(tmp_path / "log.json", json.dumps([{"iter": 1, "gnorm": 2.0}, None, {"iter": 2, "gnorm": 3.0}]))
        (trace,) = read_traces(path)
        assert trace.norms.tolist() == [2, 3]
        assert trace.notes == ("1 entry of the log left out: no JSON object",)


ROWS = tuple({"step": 10 * n, "loss": 9 - n, "grad_norm": n + 0.5} for n in range(4))
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


class TestJSONFiles:
    @pytest.mark.parametrize("indent", [None, 1])
    @pytest.mark.parametrize(
        ("content", "place"),
        [
            ({"config": {"name": "sft", "betas": [0.9, 0.99]}, "steps": ROWS}, ": steps"),
            ({"run": {"a": 1, "history": {"train": ROWS, "eval": [{"loss": 1}]}}}, ": run.history.train"),
            (COLUMNS, ""),
            ({"args": {"layers": [1, 2]}, "log": {**COLUMNS, "evals": [1, 2]}}, ": log"),
            ([{"step": row["step"], "train": row} for row in ROWS], ""),
        ],
    )
    def test_rows_and_columns_under_any_key(self, tmp_path, content, place, indent):
        path = write(tmp_path / "log.json", json.dumps(content, indent=indent))
        write(tmp_path / "config.json", json.dumps({"grad_norm": 1.0, "betas": [0.9, 0.99]}, indent=1))
        write(tmp_path / "vocabulary.json", json.dumps({"the": 1, "gradient": 2}))
        for given in (path, tmp_path):
            (trace,) = read_traces(given)
            assert (trace.steps.tolist(), trace.norms.tolist()) == ([0, 10, 20, 30], [0.5, 1.5, 2.5, 3.5])
            assert trace.losses.tolist() == [9, 8, 7, 6]
            assert trace.source.startswith(f"{path}{place} [")
            beside = f"not read: 1 file without a column known to hold gradient norms ({tmp_path / 'config.json'})"
            assert trace.notes == ((beside,) if given == tmp_path else ())

    def test_each_of_several_lists_of_rows_is_a_run(self, tmp_path):
        content = {"a": ROWS, "b": [*ROWS[:2], {"step": 20, "grad_norm": 9}], "c": [{"grad_norm": None}]}
        path = write(tmp_path / "log.json", json.dumps(content))
        first, second = read_traces(path)
        assert (first.source, second.source) == (f"{path}: a [grad_norm]", f"{path}: b [grad_norm]")
        assert second.norms.tolist() == [0.5, 1.5, 9]
        assert first.notes == (f"not read: {path}: c [grad_norm]: no number in it",)

    def test_without_norms_the_columns_are_named(self, tmp_path):
        path = write(tmp_path / "log.json", json.dumps({"a": [1], "rows": [{"step": 1, "gradsize": 2, "lr": 3}] * 2}))
        with pytest.raises(
            UsageError, match=r"log.json: rows has no column .* it has 'gradsize', 'lr', 'step': choose"
        ):
            read_traces(path)
        assert read_traces(path, column="gradsize")[0].norms.tolist() == [2, 2]
        write(tmp_path / "log.json", json.dumps({"a": 1, "b": "text"}, indent=1))
        with pytest.raises(UsageError, match=r"log.json holds no log: neither `log_history`"):
            read_traces(path)

    @pytest.mark.parametrize("name", ["run-x-tag-train_grad_norm", "export"])
    @pytest.mark.parametrize("suffix", ["json", "csv"])
    def test_tensorboards_downloads(self, tmp_path, name, suffix):
        rows = [[1748869402.789242 + n, 50 * n, n + 0.5] for n in range(4)]
        table = "Wall time,Step,Value\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
        path = write(tmp_path / f"{name}.{suffix}", table if suffix == "csv" else json.dumps(rows))
        (trace,) = read_traces(path)
        assert (trace.steps.tolist(), trace.norms.tolist()) == ([0, 50, 100, 150], [0.5, 1.5, 2.5, 3.5])
        assert trace.format == "a download of one tag from TensorBoard"
        assert trace.notes == ("the download does not say which tag it is of: make sure that these are gradient norms",)
        if name == "export":
            with pytest.raises(UsageError, match=rf"export\.{suffix} looks like a download from TensorBoard"):
                read_traces(tmp_path)
        else:
            assert read_traces(tmp_path)[0].source == trace.source == f"{path} [Value]"


class TestTables:
    def test_lightnings_metrics(self, tmp_path):
        text = (
            "epoch,grad_2.0_norm/weight,grad_2.0_norm_total,step,train_loss,val_loss\r\n"
            "0,1.0,1.25,9,0.5,\r\n0,,,9,,0.7\r\n1,inf,inf,19,,\r\n1,,,19,0.25,\r\n1,nan,nan,29,0.125,\r\n"
        )
        path = write(tmp_path / "metrics.csv", text)
        (trace,) = read_traces(path)
        np.testing.assert_array_equal(trace.norms, [1.25, math.inf, math.nan])
        assert trace.losses.tolist() == [0.5, 0.25, 0.125]
        assert trace.steps.tolist() == [9, 19, 29]
        assert (trace.notes, trace.source) == ((), f"{path} [grad_2.0_norm_total]")

    def test_wandbs_export(self, tmp_path):
        text = '"Step","run-1 - train/grad_norm","run-1 - train/grad_norm__MIN"\n"0","1.5","1"\n"1","2.5","1"\n'
        (trace,) = read_traces(write(tmp_path / "export.csv", "\ufeff" + text))
        assert trace.norms.tolist() == [1.5, 2.5]
        assert trace.notes == ()

    def test_wandbs_export_of_a_chart_of_several_runs(self, tmp_path):
        keys = [f"{run} - train/grad_norm{end}" for run in ("a - 1", "b", "c") for end in ("", "__MIN", "__MAX")]
        text = '"train/global_step",' + ",".join(f'"{key}"' for key in ["b - _step", *keys]) + "\n"
        text += "0,7,1.5,1,2,3.5,1,2,,,\n10,8,2.5,1,2,,,,,,\n20,9,,,,4.5,1,2,,,\n"
        path = write(tmp_path / "export.csv", text)
        for given in (path, tmp_path):
            first, second = read_traces(given)
            assert (first.steps.tolist(), first.norms.tolist()) == ([0, 10], [1.5, 2.5])
            assert (second.steps.tolist(), second.norms.tolist()) == ([0, 20], [3.5, 4.5])
            assert first.source == f"{path} [a - 1 - train/grad_norm]"
            assert first.notes == (f"not read: {path} [c - train/grad_norm]: no number in it",)
        assert [trace.norms[0] for trace in read_traces(path, column="b - train/grad_norm")] == [3.5]

    def test_a_directory_names_the_columns_that_come_near(self, tmp_path):
        write(tmp_path / "log.csv", "step,lr,gradient_norms\n1,2,3\n")
        write(tmp_path / "data.csv", "text,label\n1,2\n")
        with pytest.raises(UsageError, match=r"log.csv has no column .* it has 'gradient_norms', 'lr', 'step': choose"):
            read_traces(tmp_path)

    @pytest.mark.parametrize("delimiter", [",", "\t", ";"])
    def test_delimiters_and_a_chosen_column(self, tmp_path, delimiter):
        rows = [["Wall time", "Step", "Value"], ["1.7e9", "0", "1.5"], ["1.7e9", "10", "2.5"]]
        text = "".join(delimiter.join(row) + "\n" for row in rows)
        (trace,) = read_traces(write(tmp_path / "export.csv", text), column="Value")
        assert (trace.steps.tolist(), trace.norms.tolist()) == ([0, 10], [1.5, 2.5])

    def test_damage_is_told(self, tmp_path):
        text = 'step,gnorm\n0,1\n1\n2,"3\n\n3,4\nstep,gnorm\n4,5\n5,6.1'
        (trace,) = read_traces(write(tmp_path / "log.csv", text))
        assert (trace.steps.tolist(), trace.norms.tolist()) == ([0, 2, 3, 4], [1, 3, 4, 5])
        assert trace.notes == (
            "the last line has no line end and may be torn: left out",
            "1 row left out: not as many cells as the header",
        )

    def test_a_column_without_numbers_is_an_error(self, tmp_path):
        with pytest.raises(UsageError, match=r"log.csv \[gnorm\]: no number in it"):
            read_traces(write(tmp_path / "log.csv", "step,gnorm\n0,\n1,\n"))

    @pytest.mark.parametrize(
        ("value", "shown"), [("n/a", "'n/a'"), ("x" * 10**5, "'" + "x" * 39), ([1], "a list"), (True, "True")]
    )
    def test_a_value_that_is_no_number_is_shown(self, tmp_path, value, shown):
        text = lines({"step": step, "loss": "none", "gnorm": value} for step in range(3))
        note = f"6 values left out: no number, such as 'none' in 'loss', {shown} in 'gnorm'"
        with pytest.raises(UsageError, match=f"no number in it {re.escape(f'({note})')}"):
            read_traces(write(tmp_path / "log.jsonl", text))

    def test_a_filled_step_goes_before_a_blank_one(self, tmp_path):
        text = "trainer/global_step,step,gnorm\n,3,1.0\n,4,1.5\n"
        assert read_traces(write(tmp_path / "log.csv", text))[0].steps.tolist() == [3, 4]

    def test_columns_of_the_same_name_are_an_error(self, tmp_path):
        with pytest.raises(UsageError, match=r"log.csv has several columns called 'gnorm'"):
            read_traces(write(tmp_path / "log.csv", "step,gnorm,gnorm\n0,1,2\n"))
        assert len(read_traces(write(tmp_path / "log.csv", "step,gnorm,x,x\n0,1,2,3\n"))[0]) == 1
