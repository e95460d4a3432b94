import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import autoclip

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
LOOP = next(block for block in PYTHON if "clipper.step(loss=loss)" in block)
POLICY = next(block for block in PYTHON if "class TwiceTheLast" in block)
ATTACH = next(block for block in PYTHON if "autoclip.attach(optimizer)\n" in block)
COMMANDS = [
    line.split("  #")[0].strip().removeprefix(".venv/bin/")
    for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if "autoclip " in line.split("#")[0]
]


def test_the_loop_clips_and_learns() -> None:
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.weight.detach().clone()
    names = {"autoclip": autoclip, "model": model, "optimizer": optimizer}
    names["loss"] = model(torch.ones(4, 3)).square().sum()
    exec(LOOP, names)
    assert names["clipper"].last.step == 0
    assert names["clipper"].policy.learned_norms == 1
    assert not torch.equal(model.weight, before)


def test_one_line_is_enough() -> None:
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = {"autoclip": autoclip, "optimizer": optimizer}
    exec(ATTACH, names)
    model(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()
    assert names["clipper"].policy.learned_norms == 1


def test_the_policy_of_ones_own_works() -> None:
    names: dict[str, object] = {"autoclip": autoclip}
    exec(POLICY, names)
    policy = names["TwiceTheLast"](warmup_steps=1)  # type: ignore[operator]
    weight = torch.nn.Parameter(torch.zeros(1))
    clipper = autoclip.Clipper([weight], policy)
    clipped = []
    for norm in (1.0, 1.5, 30.0, 2.0):
        weight.grad = torch.tensor([norm])
        clipper.step()
        clipped.append(float(weight.grad))
    assert clipped == pytest.approx([1.0, 1.5, 3.0, 2.0], rel=1e-6)
    resumed = autoclip.Clipper([weight], names["TwiceTheLast"](warmup_steps=1))  # type: ignore[operator]
    resumed.load_state_dict(clipper.state_dict())
    assert resumed.threshold == 4.0


def test_the_commands_run_as_they_stand(tmp_path: Path) -> None:
    assert len(COMMANDS) >= 6
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    for command in COMMANDS:
        words = [sys.executable, "-m", *shlex.split(command)]
        process = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert process.returncode == 0, f"{command}: {process.stderr}"
    assert (tmp_path / "out" / "seed-0" / "metrics.jsonl").exists()


def test_every_policy_is_in_the_table() -> None:
    for kind, cls in autoclip.POLICIES.items():
        assert re.search(rf"\| `{cls.__name__}\(.*?\)` \| `{kind}` \|", README)


def test_every_file_of_a_run_directory_is_in_the_table() -> None:
    for name in ("config.yaml", "metrics.jsonl", "layers.jsonl", "summary.json", "checkpoint.pt"):
        assert f"| `{name}` |" in README
