"""Logs as the real trainers and loggers write them, read back exactly."""

import json
import math
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import autoclip
from autoclip.cli import app
from autoclip.traces import read_traces

SPECIAL = [1.5, math.nan, math.inf, 1e-30, 3.0e38, 0.1]


def norms(count, seed=0):
    return [*SPECIAL, *np.random.default_rng(seed).lognormal(size=count - len(SPECIAL)).tolist()]


def same(found, expected):
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, np.array(expected, dtype=np.float64))
    return True


def as_float32(values):
    with np.errstate(over="ignore"):
        return np.array(values).astype(np.float32).astype(np.float64)


class TestTorchTensorBoard:
    @pytest.fixture(autouse=True)
    def writer(self):
        pytest.importorskip("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter

    def test_values_come_back_as_float32(self, tmp_path):
        expected, losses = norms(3000), np.linspace(3, 1, 3000).tolist()
        with self.writer(tmp_path) as writer:
            writer.add_text("configuration", "lr: 0.1")
            writer.add_histogram("weights", np.arange(1000.0), 0)
            writer.add_image("picture", np.zeros((3, 64, 64)), 0)
            for step, (norm, loss) in enumerate(zip(expected, losses, strict=True)):
                writer.add_scalar("train/grad_norm", norm, 5 * step)
                writer.add_scalar("train/loss", loss, 5 * step)
        (trace,) = read_traces(tmp_path)
        assert same(trace.norms, as_float32(expected))
        assert same(trace.losses, as_float32(losses))
        assert trace.steps.tolist() == list(range(0, 15000, 5))
        assert (trace.stride, trace.notes) == (5, ())

    def test_new_style_and_double_precision_are_exact(self, tmp_path):
        expected = norms(100)
        with self.writer(tmp_path) as writer:
            for step, norm in enumerate(expected):
                writer.add_scalar("grad-norm", norm, step, new_style=True, double_precision=True)
        (trace,) = read_traces(tmp_path)
        assert same(trace.norms, expected)

    def test_a_restart_voids_later_steps_as_tensorboard_does(self, tmp_path):
        with self.writer(tmp_path, filename_suffix=".a") as writer:
            for step in range(10):
                writer.add_scalar("grad_norm", 1 + step, step)
        with self.writer(tmp_path, purge_step=6, filename_suffix=".b") as writer:
            for step in range(6, 9):
                writer.add_scalar("grad_norm", 100 + step, step)
        (trace,) = read_traces(tmp_path)
        assert same(trace.norms, [1, 2, 3, 4, 5, 6, 106, 107, 108])
        assert trace.steps.tolist() == list(range(9))
        assert "4 values written before that" in trace.notes[0]

        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        theirs = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload().Scalars("grad_norm")
        assert same(trace.norms, [event.value for event in theirs])
        assert trace.steps.tolist() == [event.step for event in theirs]

    def test_steps_that_were_never_given_are_numbered(self, tmp_path):
        with self.writer(tmp_path) as writer:
            for norm in (3.0, 1.0, 2.0):
                writer.add_scalar("grad_norm", norm)
        (trace,) = read_traces(tmp_path)
        assert same(trace.norms, [3, 1, 2])
        assert trace.steps.tolist() == [0, 1, 2]
        assert "numbered" in trace.notes[0]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int32", "int64", "uint8"])
def test_tensorflow_summaries(tmp_path, dtype):
    tf = pytest.importorskip("tensorflow")
    values = [0, 1, 2, 100, 7] if "int" in dtype else [0.0, 1.5, 2.25, 3.0e4, math.nan, math.inf, 0.1]
    stored = [float(tf.cast(tf.constant(value, dtype), tf.float64)) for value in values]
    writer = tf.summary.create_file_writer(str(tmp_path))
    with writer.as_default():
        for step, value in enumerate(values):
            # summary.scalar casts to float32, write does not.
            tf.summary.write("train/grad_norm", tf.constant(value, dtype), step=step)
            tf.summary.scalar("train/loss", value, step=step)
            tf.summary.histogram("weights", tf.constant([1.0, 2.0]), step=step)
            tf.summary.text("note", "grad_norm", step=step)
            tf.summary.write("vector", tf.constant([1.0, 2.0]), step=step)
    writer.close()
    (trace,) = read_traces(tmp_path)
    assert same(trace.norms, stored)
    assert same(trace.losses, as_float32(values))
    assert trace.notes == ()


class TestWandb:
    @pytest.fixture(autouse=True)
    def offline(self, tmp_path):
        wandb = pytest.importorskip("wandb")

        def log(rows, **settings):
            settings = wandb.Settings(x_disable_stats=True, x_disable_meta=True, console="off", **settings)
            with wandb.init(project="p", dir=str(tmp_path), settings=settings) as run:
                for row in rows:
                    run.log(row)
            wandb.teardown()  # the file may be short of rows until then, also after `finish()`

        self.log = log

    @pytest.mark.parametrize("encoding", ["json", "json,typed"])
    def test_every_encoding_is_exact(self, tmp_path, encoding):
        expected = norms(500)
        losses = [step if step % 2 else 0.5 for step in range(500)]
        text = {"note": "x" * 200, "flag": True, "nothing": None}
        rows = ({"train/grad_norm": norm, "loss": loss, **text} for norm, loss in zip(expected, losses, strict=True))
        self.log(rows, x_history_value_encoding=encoding)
        (trace,) = read_traces(tmp_path)
        assert same(trace.norms, expected)
        assert same(trace.losses, losses)
        assert trace.steps.tolist() == list(range(500))
        assert trace.notes == ()

    def test_numpy_and_torch_numbers_and_nested_keys(self, tmp_path):
        self.log({"optim": {"grad_norm": norm}} for norm in (np.float64(0.1), torch.tensor(2.5), 3))
        (trace,) = read_traces(tmp_path, column="optim.grad_norm")
        assert same(trace.norms, [0.1, 2.5, 3])

    def test_the_global_step_goes_before_the_count_of_log_calls(self, tmp_path):
        keys = ("eval/loss", "train/grad_norm")
        self.log({key: 1.0 + step, "train/global_step": 100 * step} for step in range(10) for key in keys)
        (trace,) = read_traces(tmp_path)
        assert same(trace.norms, np.arange(10) + 1)
        assert trace.steps.tolist() == list(range(0, 1000, 100))
        assert trace.stride == 100


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")  # Lightning's use of torch's trees
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")  # three numbers need none
@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")  # fewer than some log intervals
class TestLightning:
    @pytest.fixture(autouse=True)
    def fit(self, tmp_path):
        lightning = pytest.importorskip("lightning")
        from lightning.pytorch.utilities import grad_norm

        class Regression(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net, self.norms, self.losses = torch.nn.Linear(3, 1), [], []

            def training_step(self, batch, batch_idx):
                loss = self.net(batch).square().mean()
                self.log("train_loss", loss)
                self.losses.append(loss.item())
                return loss

            def validation_step(self, batch, batch_idx):
                self.log("val_loss", self.net(batch).square().mean())

            def on_before_optimizer_step(self, optimizer):
                found = grad_norm(self.net, norm_type=2)
                self.norms.append(found["grad_2.0_norm_total"].item())
                self.log_dict(found)

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.01)

        def fit(logger, every):
            torch.manual_seed(0)
            module = Regression()
            data = torch.utils.data.DataLoader(torch.randn(40, 3), batch_size=4)
            trainer = lightning.Trainer(
                max_epochs=3,
                logger=logger,
                log_every_n_steps=every,
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=False,
                default_root_dir=tmp_path,
                accelerator="cpu",
            )
            trainer.fit(module, data, data)
            return module

        self.fit = fit

    @pytest.mark.parametrize("every", [1, 5])
    def test_csv_logger(self, tmp_path, every):
        from lightning.pytorch.loggers import CSVLogger

        module = self.fit(CSVLogger(tmp_path), every)
        (trace,) = read_traces(tmp_path)
        assert trace.source.endswith("metrics.csv [grad_2.0_norm_total]")
        assert trace.steps.tolist() == list(range(every - 1, 30, every))
        assert same(trace.norms, module.norms[every - 1 :: every])
        assert same(trace.losses, module.losses[every - 1 :: every])
        assert (trace.stride, trace.notes) == (every, ())

    def test_tensorboard_logger(self, tmp_path):
        pytest.importorskip("tensorboard")
        from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

        module = self.fit([TensorBoardLogger(tmp_path / "tb"), CSVLogger(tmp_path / "csv")], 1)
        (trace,) = read_traces(tmp_path / "tb")
        assert same(trace.norms, module.norms)
        assert same(trace.losses, module.losses)
        (once,) = read_traces(tmp_path)
        assert once.source.endswith("metrics.csv [grad_2.0_norm_total]")
        assert any(note.startswith("not read: 1 ") for note in once.notes), once.notes


class TestTransformers:
    @pytest.fixture
    def train(self, tmp_path):
        transformers = pytest.importorskip("transformers")
        logged = []

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = torch.nn.Linear(3, 1)

            def forward(self, x, labels):
                return {"loss": (self.linear(x).squeeze(-1) - labels).square().mean(), "logits": x}

        class Keep(transformers.TrainerCallback):
            def on_log(self, args, state, control, logs, **kwargs):
                if "grad_norm" in logs:
                    logged.append((state.global_step, logs["grad_norm"], logs["loss"]))

        def train(*callbacks, **changes):
            torch.manual_seed(0)
            data = [{"x": torch.randn(3), "labels": torch.randn(())} for _ in range(64)]
            usual = {"report_to": "tensorboard", "disable_tqdm": True, "num_train_epochs": 2}
            arguments = transformers.TrainingArguments(
                output_dir=str(tmp_path),
                per_device_train_batch_size=4,
                logging_steps=2,
                save_steps=10,
                use_cpu=True,
                **(usual | changes),
            )
            trainer = transformers.Trainer(Model(), arguments, train_dataset=data, callbacks=[Keep(), *callbacks])
            trainer.train()
            trainer.save_state()
            return logged

        return train

    def test_states_and_events_of_a_run_are_one_trace(self, tmp_path, train):
        steps, expected, losses = zip(*train(), strict=True)
        history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
        assert "grad_norm" not in history[-1]
        (trace,) = read_traces(tmp_path)
        assert trace.source == f"{tmp_path / 'trainer_state.json'} [grad_norm]"
        assert tuple(trace.steps.tolist()) == steps == tuple(range(2, 33, 2))
        assert same(trace.norms, expected)
        assert same(trace.losses, losses)
        assert trace.stride == 2
        (note,) = trace.notes
        assert note.startswith(f"not read: 5 logs contained in {tmp_path / 'trainer_state.json'} [grad_norm] (")
        (checkpoint,) = read_traces(tmp_path / "checkpoint-20")
        assert same(checkpoint.norms, expected[:10])

    @pytest.mark.parametrize("bar", [True, False])
    def test_what_it_prints_is_read_and_with_a_bar_its_steps_are_known(self, tmp_path, train, bar):
        with (tmp_path / "run.log").open("w") as file, redirect_stdout(file), redirect_stderr(file):
            logged = train(report_to="none", disable_tqdm=not bar, num_train_epochs=4)
        steps, expected, losses = zip(*logged, strict=True)
        (trace,) = read_traces(tmp_path / "run.log")
        np.testing.assert_allclose(trace.norms, expected, rtol=6e-4)  # four digits are printed
        np.testing.assert_allclose(trace.losses, losses, rtol=6e-4)
        assert trace.format == "a console log of Transformers' Trainer"
        assert trace.has_steps == bar
        assert trace.steps.tolist() == (list(steps) if bar else list(range(32)))
        told = CliRunner().invoke(app, ["suggest", str(tmp_path / "run.log")])
        assert told.exit_code == 0, told.output
        assert "from autoclip.integrations.transformers import AutoClipCallback" in told.stdout

    def test_our_callback_adds_the_thresholds(self, tmp_path, train):
        from autoclip.integrations.transformers import AutoClipCallback

        _, expected, _ = zip(*train(AutoClipCallback(autoclip.RunningQuantile(warmup_steps=4))), strict=True)
        (trace,) = read_traces(tmp_path)
        assert trace.source == f"{tmp_path / 'trainer_state.json'} [autoclip/total_norm]"
        assert same(trace.norms, expected)
        assert (trace.thresholds > 0).all()
        assert np.isfinite(trace.thresholds).all()


class TestOwnSinks:
    def clip(self, sink):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        clipper = autoclip.Clipper(model, autoclip.RunningQuantile(warmup_steps=3), sinks=[sink])
        expected = []
        for _ in range(12):
            model.zero_grad()
            loss = model(torch.randn(4, 3)).square().mean()
            loss.backward()
            expected.append((clipper.step(loss=loss).item(), loss.item(), clipper.threshold))
        clipper.close()
        return (np.array(column) for column in zip(*expected, strict=True))

    def test_tensorboard(self, tmp_path):
        pytest.importorskip("tensorboard")
        norms, losses, _ = self.clip(autoclip.sinks.TensorBoardSink(tmp_path))
        (trace,) = read_traces(tmp_path)
        assert trace.steps.tolist() == list(range(12))
        assert same(trace.norms, norms)
        assert same(trace.losses, losses)
        assert math.isnan(trace.thresholds[0])  # it was inf, which the sink leaves out
        assert (trace.thresholds[1:] > 0).all()
        assert trace.notes == ()

    def test_a_point_for_several_steps_is_told(self, tmp_path):
        pytest.importorskip("tensorboard")
        norms, _, _ = self.clip(autoclip.sinks.TensorBoardSink(tmp_path, every=4))
        (trace,) = read_traces(tmp_path)
        assert trace.norms.tolist() == pytest.approx(norms.reshape(3, 4).mean(axis=1).tolist(), rel=1e-6)
        assert trace.stride == 4
        assert "each value is a mean over several steps" in trace.notes[0]

    def test_wandb_beside_a_loop_that_logs_too(self, tmp_path):
        wandb = pytest.importorskip("wandb")
        with wandb.init(project="p", dir=str(tmp_path)) as run:
            for step in range(5):
                run.log({"loss": 9.0, "grad_norm": 7.0 + step})
            norms, losses, _ = self.clip(autoclip.sinks.WandbSink(every=1))
        wandb.teardown()
        (trace,) = read_traces(tmp_path)
        assert trace.steps.tolist() == list(range(12))
        assert same(trace.norms, norms)
        assert same(trace.losses, losses)
