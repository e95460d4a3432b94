import re
from pathlib import Path

import pytest
import torch

import autoclip

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
POLICIES = (ROOT / "autoclip" / "policies" / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "autoclip/policies/README.md"]
LINKS = [
    (page, link)
    for page in PAGES
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    if "://" not in link
]


def anchors(page: Path) -> set[str]:
    """The headings of a Markdown page, as links name them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_the_loop_with_the_changed_lines_clips_and_learns() -> None:
    (diff,) = re.findall(r"```diff\n(.*?)```", README, flags=re.DOTALL)
    changed = "".join(line[1:] for line in diff.splitlines(keepends=True) if not line.startswith("-"))
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    names = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loss_fn": torch.nn.functional.mse_loss,
        "loader": [(torch.ones(4, 3), torch.ones(4, 1))] * 5,
    }
    exec(changed, names)
    assert names["clipper"].last.step == 4
    assert names["clipper"].last.loss == pytest.approx(names["loss"].item())
    before = "".join(line[1:] for line in diff.splitlines(keepends=True) if not line.startswith("+"))
    exec(before, names | {"torch": torch})  # what it changes is a loop that works


def test_one_line_is_enough() -> None:
    (line,) = [one for one in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "attach" in one]
    model = torch.nn.Linear(3, 1)
    names = {"autoclip": autoclip, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    exec(line, names)
    model(torch.ones(4, 3)).square().sum().backward()
    names["optimizer"].step()
    assert names["clipper"].last.step == 0
    assert isinstance(names["clipper"].policy, autoclip.ProbingQuantile)


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize(("page", "link"), LINKS, ids=[f"{page.name}-{link}" for page, link in LINKS])
def test_a_link_leads_somewhere(page: Path, link: str) -> None:
    target, _, anchor = link.partition("#")
    path = (page.parent / target).resolve() if target else page
    assert path.exists()
    assert not anchor or anchor in anchors(path)


def test_the_policy_of_ones_own_works() -> None:
    names: dict[str, object] = {"__name__": __name__}
    (policy,) = re.findall(r"```python\n(from dataclasses.*?)```", POLICIES, flags=re.DOTALL)
    exec(policy, names)
    cls = names["MultipleOfTheLast"]
    weight = torch.nn.Parameter(torch.zeros(1))
    clipper = autoclip.Clipper([weight], cls(warmup_steps=1))  # type: ignore[operator]
    clipped = []
    for norm in (1.0, 1.5, 30.0, 2.0):
        weight.grad = torch.tensor([norm])
        clipper.step()
        clipped.append(float(weight.grad))
    assert clipped == pytest.approx([1.0, 1.5, 3.0, 2.0], rel=1e-6)
    resumed = autoclip.Clipper([weight], cls(warmup_steps=1))  # type: ignore[operator]
    resumed.load_state_dict(clipper.state_dict())
    assert resumed.threshold == 4.0


def test_every_policy_is_in_the_table() -> None:
    for kind, cls in autoclip.POLICIES.items():
        assert f"| `{cls.__name__}` `{kind}` |" in POLICIES
