"""The snippets of docs/frameworks.md, and the README's for a trainer, executed as they stand."""

import os
import re
from pathlib import Path

import pytest
import torch

import autoclip

os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "frameworks.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)

pytestmark = pytest.mark.filterwarnings("ignore")  # of the frameworks, on the settings of a toy run


def snippet(word):
    (found,) = [one for one in SNIPPETS if word in one]
    return found


def batches():
    random = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 4, generator=random), torch.randn(8, 1, generator=random)) for _ in range(6)]


def loss_of(model, batch):
    return torch.nn.functional.mse_loss(model(batch[0]), batch[1])


def plain():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    return {
        "autoclip": autoclip,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": torch.utils.data.DataLoader(batches(), batch_size=None),
        "loss_of": loss_of,
    }


def test_there_are_five():
    assert len(SNIPPETS) == 5


def test_lightning(tmp_path, monkeypatch):
    lightning = pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch):
            return loss_of(self.layer, batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    names = plain() | {"lightning": lightning, "model": Model()}
    exec(snippet("lightning.Trainer"), names)
    assert names["trainer"].callbacks[0].clipper.last.step == 5


def test_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=32, n_positions=16, n_embd=8, n_layer=1, n_head=1)
    tokens = torch.randint(0, 32, (8, 12), generator=torch.Generator().manual_seed(0))
    names = {
        "autoclip": autoclip,
        "transformers": transformers,
        "model": transformers.GPT2LMHeadModel(config),
        "dataset": [{"input_ids": row, "labels": row} for row in tokens],
        "arguments": transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=4, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True
        ),
    }
    exec(snippet("transformers.Trainer"), names)
    assert names["callback"].clipper.last.step == 3
    readme = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    (short,) = [one for one in readme if "transformers.Trainer" in one]
    exec(short, names)
    names["trainer"].train()
    callbacks = names["trainer"].callback_handler.callbacks
    (callback,) = [one for one in callbacks if isinstance(one, names["AutoClipCallback"])]
    assert callback.clipper.last.loss is not None


def test_accelerate(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    names = plain() | {"accelerator": accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)}
    exec(snippet("accelerator.prepare"), names)
    assert names["clipper"].last.step == 2
    names["accelerator"].save_state(str(tmp_path))
    assert any("custom_checkpoint" in path.name for path in tmp_path.iterdir())


def test_fabric(tmp_path):
    lightning = pytest.importorskip("lightning")
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    names = plain() | {"fabric": fabric, "checkpoint": tmp_path / "state.ckpt"}
    exec(snippet("fabric.setup"), names)
    assert names["clipper"].last.step == 5
    assert torch.load(names["checkpoint"], weights_only=True)["clipper"] == names["clipper"].state_dict()


def test_keras():
    keras = pytest.importorskip("keras")
    x, y = (torch.cat(part).numpy() for part in zip(*batches(), strict=True))
    model = keras.Sequential([keras.layers.Dense(1)])
    names = {"autoclip": autoclip, "keras": keras, "model": model, "x": x, "y": y}
    exec(snippet("keras.optimizers"), names)
    assert names["clipper"].last.step == 1
