"""Run directories and sweeps made by hand, for the tests of the report."""

import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from autoclip.records import to_json
from autoclip.sweeps.candidates import Candidate
from autoclip.sweeps.outcome import Result, as_csv
from autoclip.sweeps.picks import pick
from autoclip.sweeps.scoring import read_run, reference_loss, score

STEPS = 120
WARMUP = 20


def metrics_of(
    steps: int = STEPS,
    *,
    seed: int = 0,
    threshold: float | None = 1.0,
    loss: float = 1.0,
    nonfinite: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """Lines of a `metrics.jsonl`: lognormal norms, a falling loss."""
    generator = np.random.default_rng(seed)
    lines = []
    for step in range(steps):
        norm = float(np.exp(generator.normal(0, 0.5)))
        broken = step in nonfinite
        clipped = not broken and threshold is not None and norm > threshold
        lines.append(
            to_json(
                {
                    "step": step,
                    "loss": nan if broken else loss * (0.97**step + 0.1),
                    "total_norm": nan if broken else norm,
                    "threshold": inf if threshold is None else threshold,
                    "coefficient": 0.0 if broken else min(1.0, (threshold or norm) / norm),
                    "clipped": clipped,
                    "skipped": broken,
                    "finite": not broken,
                    "phase": "warmup" if step < WARMUP else "active",
                    "lr": 0.1,
                }
            )
        )
    return lines


def write_run(
    directory: Path, lines: Sequence[Mapping[str, Any]], *, policy: Mapping[str, Any] | None = None, **summary: Any
) -> Path:
    """A finished run directory; `summary` changes its summary."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    clip = {"mode": "norm", "scope": None, "policy": dict(policy or {"kind": "fixed", "threshold": 1.0})}
    (directory / "config.yaml").write_text(yaml.safe_dump({"name": "by hand", "clip": clip}))
    whole = {
        "name": "by hand",
        "seed": 0,
        "status": "finished",
        "steps": len(lines),
        "planned_steps": len(lines),
        "validation_loss": 0.2,
        "initial_validation_loss": 1.1,
        "trivial_loss": 1.0,
        "validation": [{"step": len(lines), "loss": 0.2}],
        "policy": "Fixed(threshold=1.0)",
        "seconds": 1.5,
    }
    (directory / "summary.json").write_text(json.dumps(whole | summary))
    return directory


def write_sweep(
    directory: Path,
    candidates: Mapping[str, tuple[Mapping[str, Any], float, bool]],
    multipliers: Sequence[float] = (1, 3),
) -> list[Result]:
    """The output directory of a finished sweep, two seeds each.

    Args:
        directory: created.
        candidates: name -> policy section, size of the loss, whether its runs diverged.
        multipliers: of the learning rate.
    """
    scored = {}
    for name, (policy, loss, diverged) in candidates.items():
        candidate = Candidate(name, policy)
        found = []
        for multiplier in multipliers:
            for seed in (0, 1):
                place = directory / candidate.run_directory(multiplier, seed)
                lines = metrics_of(STEPS, seed=seed, loss=loss * (1 + 0.1 * seed))
                final: dict[str, Any] = {"validation_loss": loss * (0.1 + 0.02 * seed + 0.1 * multiplier)}
                if diverged:
                    final = {"validation_loss": None, "status": "diverged"}
                write_run(place, lines, policy=policy, seed=seed, **final)
                found.append(score(read_run(place), multiplier, seed))
        scored[name] = (candidate, found)
    reference = reference_loss([found for _, found in scored.values()])
    results = [Result(candidate, tuple(found), reference) for candidate, found in scored.values()]
    (directory / "trials.csv").write_text(as_csv(results))
    (directory / "sweep.yaml").write_text(yaml.safe_dump({"name": "swept by hand"}))
    picks = pick(results)
    if picks:
        section = {"clip": {"policy": dict(picks.recommended.candidate.policy)}}
        (directory / "recommended.yaml").write_text(yaml.safe_dump(section))
    return results


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        """Everything that is read."""
        return " ".join(" ".join(self.words).split())

    @property
    def images(self) -> list[dict[str, str | None]]:
        """Attributes of the pictures."""
        return [attributes for tag, attributes in self.tags if tag == "img"]

    def is_whole(self) -> bool:
        """Whether everything that was opened was closed."""
        return not self._open


def loaded(path: Path) -> Page:
    """A page, which must be whole and load nothing from anywhere."""
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    assert found.is_whole()
    assert "http://" not in text
    assert "https://" not in text
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in found.tags}
    for _, attributes in found.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
        assert not [name for name in attributes if name.startswith("on")]
    assert "@import" not in text
    assert "url(" not in text
    return found
