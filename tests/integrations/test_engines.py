"""The recipes of docs/engines.md: what they name is in the source of the engines, and what runs on a CPU is run.

Most engines want GPUs. Their source lies in .integrations/engines, installed without what it depends on.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import autoclip

ROOT = Path(__file__).parent.parent.parent
ENGINES = ROOT / ".integrations" / "engines"
SECTIONS = dict(
    section.split("\n", 1)
    for section in (ROOT / "docs" / "engines.md")
    .read_text(encoding="utf-8")
    .split("\n## ")[1:-1]  # the last is a table
)

# Engine -> its package on PyPI, and the files in which what its recipe names is used or defined.
SOURCES = {
    "Megatron-Bridge": (
        "megatron_bridge",
        "megatron/bridge/training/callbacks.py",
        "megatron/core/optimizer/optimizer.py",
    ),
    "Megatron-Core": ("megatron_core", "megatron/core/optimizer/optimizer.py"),
    "torchtitan": ("torchtitan", "torchtitan/distributed/utils.py", "torchtitan/trainer.py"),
    "verl": ("verl", "verl/workers/engine/fsdp/transformer_impl.py"),
    "LLaMA-Factory": (
        "llamafactory",
        "llamafactory/v1/utils/callbacks/trainer_callback.py",
        "llamafactory/v1/core/base_trainer.py",
    ),
    "nanotron": ("nanotron", "nanotron/trainer.py"),
    "OLMo-core": (
        "ai2_olmo_core",
        "olmo_core/train/callbacks/callback.py",
        "olmo_core/train/train_module/transformer/train_module.py",
        "olmo_core/train/trainer.py",
    ),
    "torchtune": ("torchtune", "recipes/full_finetune_distributed.py"),
    "Composer": (
        "mosaicml",
        "composer/core/callback.py",
        "composer/core/serializable.py",
        "composer/trainer/trainer.py",
    ),
}

# What happens where: the engine reads the threshold in the step, and keeps the norm before clipping.
PLACES = {
    "Megatron-Bridge": [r"optimizer: MegatronOptimizer", r"grad_norm: float \| None", r"skipped_iter: bool \| None"],
    "Megatron-Core": [
        r"max_norm=optimizer\.config\.clip_grad",
        r"return update_successful, grad_norm, num_zeros_in_grad",
    ],
    "torchtitan": [r"grad_norm = dist_utils\.clip_grad_norm_\(", r"utils as dist_utils", r"return total_norm"],
    "verl": [r"clip_grad_norm_\(self\.optimizer_config\.clip_grad\)", r"return grad_norm\.item\(\)"],
    "LLaMA-Factory": [r"clip_grad_norm_\(self\.model\.parameters\(\), self\.args\.max_grad_norm\)"],
    "nanotron": [r"max_norm=self\.config\.optimizer\.clip_grad", r"self\.training_step\(dataloader=dataloader\)"],
    "OLMo-core": [r"self\._clip_grad_norm\(self\.max_grad_norm\)", r'"total grad norm", grad_norm,.*namespace="optim"'],
    "torchtune": [r"self\._optimizer\.step\(\)", r"self\._clip_grad_norm is not None"],
    "Composer": [r"self\.state\.scaler\.step\(optimizer\)", r"optimizer\.step\("],
}


def recipes(engine):
    return re.findall(r"```py\n(.*?)```", SECTIONS[engine], flags=re.DOTALL)


def source_of(engine):
    _, *files = SOURCES[engine]
    texts = [(ENGINES / file).read_text(encoding="utf-8") for file in files if (ENGINES / file).is_file()]
    if not texts:
        pytest.skip(f"{engine} is not installed in .integrations/engines: make test-integrations")
    assert len(texts) == len(files)
    return "\n".join(texts)


def names_in(code):
    """Attributes, methods that are defined, and what is imported from the engine."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ClassDef):
            yield from (one.name for one in node.body)


def test_there_is_a_recipe_for_each():
    assert list(SECTIONS) == list(SOURCES) == list(PLACES)


@pytest.mark.parametrize("engine", SOURCES)
def test_a_recipe_has_at_most_twenty_lines_and_says_what_was_run(engine):
    assert recipes(engine)
    assert all(len(code.splitlines()) <= 20 for code in recipes(engine))
    assert "not run" in SECTIONS[engine] or "was run" in SECTIONS[engine]


@pytest.mark.parametrize("engine", SOURCES)
def test_what_a_recipe_names_is_in_the_engines_source(engine):
    source = source_of(engine)
    own = {*dir(autoclip), *dir(autoclip.Tuner), *dir(autoclip.Clipper), "parameters"}
    named = {name for code in recipes(engine) for name in names_in(code)} - own
    assert named or engine == "Composer"
    assert [name for name in named if not re.search(rf"\b{name}\b", source)] == []
    for place in PLACES[engine]:
        assert re.search(place, source, re.DOTALL), place


@pytest.mark.parametrize("engine", SOURCES)
def test_the_version_is_that_of_the_source(engine):
    source_of(engine)
    version = re.search(r"Version (\S+[0-9])", SECTIONS[engine])[1]
    assert (ENGINES / f"{SOURCES[engine][0]}-{version}.dist-info").is_dir()


def test_verls_configuration_lets_the_threshold_change():
    source_of("verl")
    config = (ENGINES / "verl/workers/config/optimizer.py").read_text(encoding="utf-8")
    assert '_mutable_fields = {"clip_grad",' in config


BEGIN = """
import sys
sys.path.append({engines!r})
import torch, autoclip

def inputs(step):
    return torch.randn(8, 4) * (50 if step % 7 == 5 else 1)

def norm_left(model):
    return torch.nn.utils.get_total_norm([one.grad for one in model.parameters()]).item()

torch.manual_seed(0)
tuner = autoclip.Tuner(autoclip.RunningQuantile(percentile=50))
model = torch.nn.Linear(4, 2)
clipped = 0
"""

TORCHTITAN = """
exec({first!r})
for step in range(30):
    model.zero_grad()
    model(inputs(step)).square().mean().backward()
    threshold = tuner.threshold
    # as the trainer calls it
    norm = utils.clip_grad_norm_([*model.parameters()], 1.0, foreach=True, pp_mesh=None, ep_enabled=False)
    assert norm == tuner.last.total_norm
    assert norm_left(model) <= threshold * (1 + 1e-5)
    clipped += tuner.last.clipped
assert 5 <= clipped <= 25, clipped

utils.clip_grad_norm_, mesh = clip, None
model.zero_grad()
loss = model(inputs(0)).square().mean()
loss.backward()
exec({second!r})
assert norm == clipper.last.total_norm > 0
"""

LLAMA_FACTORY = """
from types import SimpleNamespace
from llamafactory.v1.core.base_trainer import BaseTrainer
from llamafactory.v1.utils.callbacks.trainer_callback import CallbackHandler, TrainerState
exec({first!r})

class Batches(list):
    def set_epoch(self, epoch):
        pass

class Small(BaseTrainer):  # its own `fit`, without what loads models and data
    def __init__(self):
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        self.optimizer.register_step_pre_hook(lambda *_: left.append((norm_left(model), tuner.threshold)))
        self.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(self.optimizer, factor=1.0)
        self.args = SimpleNamespace(max_grad_norm=1.0, dist_config=None, logging_steps=100, save_steps=0)
        self.state, self.callback_handler = TrainerState(), CallbackHandler([AutoClip()], trainer=self)
        self.global_step, self._resume_epoch, self.num_training_steps = 0, 0, 30
        self.dp_size, self._deepspeed_engine = 1, None
        self.train_batch_generator = Batches([[dict(labels=inputs(step)) for _ in range(2)] for step in range(30)])

    def compute_loss(self, batch):
        return self.model(batch["labels"]).square().mean()

left = []
trainer = Small()
trainer.fit()
assert tuner.last.step == 29 and tuner.last.total_norm == trainer.state.grad_norm
assert all(norm <= threshold * (1 + 1e-5) for norm, threshold in left)
assert 5 <= sum(norm > 0.999 * threshold for norm, threshold in left) <= 25
"""


@pytest.mark.parametrize(("engine", "code"), [("torchtitan", TORCHTITAN), ("LLaMA-Factory", LLAMA_FACTORY)])
def test_what_runs_on_a_cpu_clips_at_the_thresholds_of_the_recipe(engine, code):
    if engine == "LLaMA-Factory":
        pytest.importorskip("transformers")
        pytest.importorskip("peft")
    source_of(engine)
    first, second, *_ = [*recipes(engine), ""]
    program = (BEGIN + code).format(engines=str(ENGINES), first=first, second=second)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
