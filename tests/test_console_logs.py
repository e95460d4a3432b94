"""Console logs as training programs print them, with what else their lines and files hold."""

import json

import pytest

from autoclip.errors import UsageError
from autoclip.traces import read_traces
from autoclip.traces.console_log import PROGRAMS
from tests.log_writers import history, wandb

DIGITS = "9" * 5000  # Python refuses to make an int of them
STAMP = "2026-01-01 00:00:01,000"
# Program -> a line with norm 1.5 and loss 2.25 at step 30, and what else it prints.
LINES = {
    "Transformers' Trainer": [
        "{'loss': 2.25, 'grad_norm': 1.5, 'learning_rate': 1e-05, 'epoch': 0.02, 'step': 30}",
        "{'loss': '2.25', 'grad_norm': '1.5', 'learning_rate': '1e-05', 'epoch': '0.02', 'step': '30'}",
        "{'loss': 2.25, 'grad_norm': tensor(1.5000, device='cuda:0'), 'learning_rate': 1e-05, 'global_step': 30}",
        "{'loss': 2.25, 'grad_norm': 1.5, 'learning_rate': 1e-05, 'epoch': 0.1, 'global_step/max_steps': '30/438'}",
    ],
    "a program that prints JSON": [
        f'{STAMP} | INFO | train_inner | {{"epoch": 1, "update": 0.1, "loss": "2.25", "num_updates": "30", '
        '"gnorm": "1.5", "clip": "0"}',
        '[rank0] {"step": 30, "train/loss": 2.25, "train/grad_norm": 1.5}',
    ],
    "Megatron-LM": [
        " iteration       30/ 1000 | consumed samples: 1024 | elapsed time per iteration (ms): 9.5 | learning rate: "
        "1.0E-05 | global batch size:    8 | lm loss: 2.25E+00 | loss scale: 1.0 | grad norm: 1.500 | num zeros: 0 | "
        "params norm: 9.5 | number of skipped iterations:   0 | number of nan iterations:   0 |",
        " [2026-01-01 00:00:01] iteration       30/     100 | lm loss: 2.25E+00 | grad norm: 1.5 |",
    ],
    "mmengine or mmcv": [
        f"{STAMP} - mmdet - INFO - Iter [30/20000]\tlr: 1e-03, eta: 1 day, 2:03:04, time: 0.5, memory: 3920, "
        "decode.loss_ce: 0.5, loss: 2.25, grad_norm: 1.5",
        f"{STAMP} - mmdet - INFO - Epoch [1][30/7330]\tlr: 1.978e-03, time: 0.5, loss: 2.25, grad_norm: 1.5",
        "01/01 00:00:01 - mmengine - INFO - Epoch(train)   [1][  30/7330]  lr: 1.9e-03  eta: 1:00:00  time: 0.5  "
        "data_time: 0.1  memory: 3920  grad_norm: 1.5  loss: 2.25  loss_cls: 0.5",
        "01/01 00:00:01 - mmengine - INFO - Iter(train) [   30/40000]  base_lr: 1e-4  loss: 2.25  grad_norm: 1.5",
    ],
    "torchvision or Swin": [
        "INFO Train: [0/300][30/1251]\teta 0:10:00 lr 0.000001\t wd 0.05\ttime 0.5 (0.6)\tloss 2.25 (2.5)\t"
        "grad_norm 1.5 (1.7)\tmem 100MB",
        "Epoch: [0]  [  30/1251]  eta: 0:10:00  lr: 0.000001  loss: 2.25 (2.5)  grad_norm: 1.5 (1.7)  time: 0.5",
    ],
    "fairseq": [
        f"{STAMP} | INFO | train_inner | epoch 001:     30 / 1000 loss=2.25, nll_loss=2, ppl=4, wps=9, num_updates=30, "
        "lr=0.1, gnorm=1.5, loss_scale=128, train_wall=9, wall=9",
    ],
    "fairseq, a mean for each epoch": [
        f"{STAMP} | INFO | train | epoch 001 | loss 2.25 | nll_loss 2 | ppl 4 | num_updates 30 | lr 0.1 | gnorm 1.5 | "
        "train_wall 9",
    ],
    "verl": [
        "\x1b[36m(TaskRunner pid=12)\x1b[0m step:30 - seqlen/min:10.000 - actor/loss:2.250 - actor/grad_norm:1.500",
        "step:30 - actor/pg_loss:np.float64(2.25) - actor/grad_norm:np.float64(1.5) - training/epoch:0",
    ],
    "torchtitan": [
        f"[rank0]:[titan] {STAMP} - root - INFO - step: 30  loss:  2.2500  grad_norm:  1.5000  memory:  2.00GiB(2.1%)  "
        "tps: 1,234  mfu: 5.0%",
        "\x1b[31mstep: 30  \x1b[32mloss:  2.25  \x1b[38;2;180;60;0mgrad_norm:  1.5  \x1b[36mmemory:  2.00GiB\x1b[39m",
    ],
    "llm.c": [
        "step   30/19560 | loss 2.250000 (+nanz)| norm 1.5000 (+nanz)| lr 8.57e-07 | 3076.38 ms | 50.0% bf16 MFU",
    ],
    "a program that prints its step": [
        "step 30 | loss: 2.25 | lr 1.2e-05 | norm: 1.5 | dt: 338.5ms | tok/sec: 1550.5",
        "iter 30: loss 2.25, norm 1.5, time 12.34ms, mfu 1.5%",
        "Step 30 | loss:2.25 lr:2e-05 tokens_per_second_per_gpu:9 grad_norm:1.5",
        "iteration: 30 / 100 | consumed_tokens: 1K | lm_loss: 2.25 | lr: 1e-4 | grad_norm: 1.5",
        "step     30  loss 2.25 (max 3)  norm 1.5 (max 2) -> 1  threshold 1  clipped 50% (40% of all)  left 90%",
        "[step 30/100] train loss 2.25, grad norm 1.5.",
    ],
    "tqdm": ["train:  10%|█         | 30/300 [00:01<00:09, 9.9it/s, loss=2.25, grad_norm=1.5]"],
}
CASES = [(program, line) for program, lines in LINES.items() for line in lines]

every_line = pytest.mark.parametrize(
    ("program", "line"), CASES, ids=[f"{program} {line[:9]}" for program, line in CASES]
)


def log(path, line, steps=3):
    """Lines of steps 30, 31, ... with norms 1.5, 2.5, ..."""
    texts = []
    for n in range(steps):
        text = line.replace("1.500", "1.5").replace("1.5", f"{n + 1}.5")
        texts.append(text.replace("30", str(30 + n)))
    path.write_text("start of a run\nstep by step, the norm is told\n" + "\n".join(texts) + "\nbye\n", encoding="utf-8")
    return path


def test_every_pattern_is_tried():
    assert LINES.keys() == PROGRAMS.keys()


@every_line
@pytest.mark.parametrize("prefix", ["", "\x1b[2K\r", " 10%|█  | 3/30 [00:01<00:09,  3.1it/s]\r", "[default0]:"])
def test_every_program(tmp_path, program, line, prefix):
    path = log(tmp_path / "run.log", prefix + line)
    (trace,) = read_traces(path)
    assert (trace.steps.tolist(), trace.norms.tolist()) == ([30, 31, 32], [1.5, 2.5, 3.5])
    assert trace.losses.tolist() == [2.25] * 3
    assert (trace.format, trace.notes) == (f"a console log of {program}", ())
    (found,) = read_traces(tmp_path)
    assert found.source == trace.source


def test_the_trainers_rows_without_steps_are_numbered_and_nan_and_inf_are_numbers(tmp_path):
    texts = [f"{{'loss': 2.0, 'grad_norm': {norm}, 'epoch': 0.1}}\n" for norm in ("1.5", "nan", "inf")]
    texts[1:1] = ["{'eval_loss': 9.0, 'eval_runtime': 3.0, 'epoch': 0.1}\n"]
    (tmp_path / "run.log").write_text("".join(texts) + "{'train_runtime': 1.0, 'train_loss': 2.0, 'epoch': 0.1}\n")
    (trace,) = read_traces(tmp_path)
    assert (trace.steps.tolist(), str(trace.norms.tolist())) == ([0, 1, 2], "[1.5, nan, inf]")
    assert "rows are numbered" in trace.notes[0]


def test_the_trainers_steps_are_those_of_the_bar_that_is_drawn_behind_each_row(tmp_path):
    tqdm = pytest.importorskip("tqdm").tqdm
    with (tmp_path / "run.log").open("w", encoding="utf-8") as file:
        for size, every in ((200, 10), (3, 1)):  # the latter stands for an evaluation
            with tqdm(total=size, file=file, mininterval=0.5) as bar:
                for step in range(1, size + 1):
                    bar.update(1)
                    if step % every == 0 and size == 200:
                        bar.write(str({"loss": 2.0, "grad_norm": step + 0.5, "epoch": 0.1}), file=file)
    (trace,) = read_traces(tmp_path / "run.log")
    assert trace.steps.tolist() == list(range(10, 201, 10))
    assert trace.norms.tolist() == [step + 0.5 for step in trace.steps]
    assert (trace.format, trace.notes) == ("a console log of Transformers' Trainer", ())


def test_a_bar_that_is_overwritten_without_a_line_end_is_read(tmp_path):
    (tmp_path / "run.err").write_text(
        "".join(f"\r| {s}/9 [00:01<00:09, 9.9it/s, grad_norm={s}.5]" for s in range(1, 5))
    )
    (trace,) = read_traces(tmp_path)
    assert trace.steps.tolist() == [1, 2, 3]
    assert trace.notes[0].startswith("the last line has no line end")


def test_steps_of_an_epoch_are_counted_on(tmp_path):
    places = [(epoch, step) for epoch in (1, 2, 3) for step in (50, 100)]
    (tmp_path / "a.log").write_text("".join(f"Epoch [{e}][{s}/110]\tloss: 1, grad_norm: {e}\n" for e, s in places))
    (tmp_path / "b.log").write_text("".join(f"Epoch: [{e}][{s}/110]\tloss: 1, grad_norm: {e}\n" for e, s in places))
    (tmp_path / "c.log").write_text("".join(f"Epoch(val) [{e}][{s}/110]\tgrad_norm: {e}\n" for e, s in places))
    one, two = read_traces(tmp_path)
    assert one.steps.tolist() == [50, 100, 160, 210, 270, 320]
    assert two.steps.tolist() == [160, 210, 270, 320, 380, 430]


@pytest.mark.parametrize(
    "line",
    [
        "Epoch {epoch}:  45%|####      | {step}/4 [00:10<00:12, 4.20it/s, loss=0.3, grad_norm={norm}]\n",
        "epoch {epoch}/9 step {step}/4 loss 0.3 grad_norm {norm}\n",
        "[epoch: {epoch}, iter: {step}] loss: 0.3, grad_norm: {norm}\n",
    ],
)
def test_steps_that_begin_anew_in_each_epoch_are_of_one_training(tmp_path, line):
    places = [(epoch, step) for epoch in (1, 2, 3) for step in (1, 2, 3, 4)]
    texts = [line.format(epoch=epoch, step=step, norm=1.5 + n) for n, (epoch, step) in enumerate(places)]
    (tmp_path / "run.log").write_text("".join(texts))
    (trace,) = read_traces(tmp_path)
    assert trace.steps.tolist() == list(range(1, 13))
    assert trace.norms.tolist() == [1.5 + n for n in range(12)]


def test_trainings_that_are_appended_to_one_log_are_told_apart(tmp_path):
    line, _ = LINES["Megatron-LM"]
    path = log(tmp_path / "run.log", line)
    text = path.read_text()
    path.write_text(text + text.replace("grad norm: ", "grad norm: 1"))
    first, second = read_traces(path)
    assert (first.norms.tolist(), second.norms.tolist()) == ([1.5, 2.5, 3.5], [11.5, 12.5, 13.5])


@pytest.mark.parametrize("program", ["mmengine or mmcv", "fairseq"])
def test_programs_that_log_means_are_told(tmp_path, program):
    line = {
        "mmengine or mmcv": "Iter [{}/40000]\tlr: 1.0e-02, eta: 5:00, time: 0.5, loss: 2.25, grad_norm: 1.5\n",
        "fairseq": "| epoch 001: 10 / 99 loss=2.25, wps=9, ups=1, num_updates={}, lr=1, gnorm=1.5, clip=0\n",
    }[program]
    (tmp_path / "run.log").write_text("".join(map(line.format, range(50, 400, 50))))
    (trace,) = read_traces(tmp_path)
    assert trace.notes == (f"{program} logs means over several steps: spikes are flattened",)


def test_of_several_ranks_the_first_is_read(tmp_path):
    lines = [f"[rank{rank}]: step: {s}  loss: {rank}  grad_norm: {s}\n" for s in (1, 2, 3) for rank in (2, 0, 1)]
    (tmp_path / "run.out").write_text("".join(lines))
    (trace,) = read_traces(tmp_path)
    assert (trace.norms.tolist(), trace.losses.tolist()) == ([1, 2, 3], [2, 2, 2])
    assert trace.notes == ()


def test_lines_of_another_program_are_none_of_the_run(tmp_path):
    text = "{'clip': {'grad_norm': 9}}\nstep 1 loss 2 grad_norm 3\nstep 2 loss 2 grad_norm 4\n{'loss': 9}\n"
    (tmp_path / "run.log").write_text(text)
    (trace,) = read_traces(tmp_path / "run.log")
    assert trace.norms.tolist() == [3, 4]


@pytest.mark.parametrize("indent", [None, 1])
def test_a_configuration_as_json_may_come_first(tmp_path, indent):
    config = json.dumps({"lr": 0.1, "data": {"paths": ["a", "b"]}}, indent=indent)
    (tmp_path / "run.log").write_text(f"{config}\nstep 1 norm 2\n")
    assert read_traces(tmp_path)[0].norms.tolist() == [2]


def test_a_torn_last_line_is_left_out(tmp_path):
    path = log(tmp_path / "run.log", LINES["llm.c"][0])
    path.write_text(path.read_text() + "step   33/19560 | loss 2.25 (+nanz)| norm 4.5")
    (trace,) = read_traces(path)
    assert trace.steps.tolist() == [30, 31, 32]
    assert trace.notes[0] == "the last line has no line end and may be torn: left out"


def test_a_chosen_column_and_a_refusal_that_names_the_others(tmp_path):
    path = tmp_path / "run.log"
    path.write_text("".join(f"step {s} norm {s} my size {s + 1} batch {3 * s}\n" for s in (1, 2)))
    assert read_traces(path, column="norm")[0].norms.tolist() == [1, 2]
    (trace,) = read_traces(path, column="my size", step_column="batch")
    assert (trace.norms.tolist(), trace.steps.tolist()) == ([2, 3], [3, 6])
    path.write_text("".join(f"step {s} a_grad_norm {s} b_grad_norm {s}\n" for s in (1, 2)))
    with pytest.raises(UsageError, match=r"several columns that may hold gradient norms, 'a_grad_norm', 'b_grad_norm'"):
        read_traces(tmp_path)


def test_more_precise_logs_beside_or_below_are_read_instead(tmp_path):
    for place in ("run", "run/checkpoint-3", "other"):
        (tmp_path / place).mkdir()
    (tmp_path / "run" / "checkpoint-3" / "trainer_state.json").write_text(
        json.dumps({"global_step": 3, "log_history": [{"step": s, "grad_norm": s + 0.123456} for s in range(3)]})
    )
    for place in ("run/log.txt", "other/log.txt", "other/slurm-1.out"):
        log(tmp_path / place, LINES["torchtitan" if place == "other/slurm-1.out" else "llm.c"][0])
    output = tmp_path / "other" / "slurm-1.out"
    output.write_text(output.read_text().replace("1.5", "9.5"))
    text, output, state = read_traces(tmp_path)
    assert output.norms[0] == 9.5
    assert "trainer_state.json" in state.source
    told = f"not read: 1 console log beside a more precise log ({tmp_path / 'run' / 'log.txt'})"
    assert told in text.notes
    (named, _) = read_traces([tmp_path / "run" / "log.txt", tmp_path / "run"])
    assert "log.txt" in named.source
    (tmp_path / "run" / "checkpoint-3" / "trainer_state.json").write_text("{")
    assert [trace.norms[0] for trace in read_traces(tmp_path)] == [1.5, 9.5]


def test_the_output_that_wandb_keeps_is_not_a_second_run(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "run-x.wandb").write_bytes(wandb(history({"grad_norm": f"{s}.12345"}, s) for s in range(3)))
    log(tmp_path / "files" / "output.log", LINES["torchtitan"][0])
    (trace,) = read_traces(tmp_path)
    assert trace.source.startswith(f"{tmp_path / 'run-x.wandb'} [")


def test_long_lines_are_read_in_no_time(tmp_path):
    for text in (
        "a " * 10**6,
        "a" * 10**6,
        "step 1 " * 10**5,
        "'" * 10**6,
        "{'" + "a: " * 20_000,
        "step 1 " + "a/" * 30_000,
        f"Epoch [1][{DIGITS}/{DIGITS}] grad_norm: 1",
    ):
        (tmp_path / "run.log").write_text(text + "\n" + "step 1 grad_norm 2\n")
        assert read_traces(tmp_path / "run.log")[0].norms.tolist() == [2]
