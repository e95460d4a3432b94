"""The page of a report in a real browser: nothing on the console, no request, every picture there, on a phone too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from autoclip.report.writing import write_report, write_suggestions
from autoclip.traces import NormTrace
from autoclip.tuning.suggest import suggest
from tests.report_runs import metrics_of, write_run, write_sweep
from tests.test_report_run import write_layers

LONG = "m:Policy(" + ", ".join(f"parameter_{n}=0.123456789" for n in range(8)) + ")"
NASTY = "<img src=https://example.invalid/x.png onerror=alert(1)>"


def a_run(place: Path) -> Path:
    for seed in range(3):
        run = write_run(
            place / f"seed-{seed}",
            metrics_of(400, seed=seed, nonfinite=[200]),
            seed=seed,
            name=NASTY,
            task={"a": "b" * 300},
            policy={"kind": "running_quantile", "percentile": 50},
        )
        write_layers(run)
    return write_report(place).page


def a_sweep(place: Path) -> Path:
    kinds = {f"running_quantile p{p}": ({"kind": "running_quantile", "percentile": p}, 1 + p / 99, p == 90) for p in
             (10, 25, 50, 75, 90)}  # fmt: skip
    write_sweep(place, {**kinds, LONG: ({"kind": "m:Policy"}, 1.2, False), NASTY: ({"kind": "none"}, 2.0, True)})
    return write_report(place).page


def a_trace(place: Path) -> Path:
    norms = np.exp(np.random.default_rng(0).normal(0, 0.4, 3000))
    trace = NormTrace(
        steps=np.arange(3000), norms=norms, losses=np.geomspace(3, 0.1, 3000), source=f"/{'a' * 200}/{NASTY}"
    )
    write_suggestions([suggest(trace)], place / "page.html")
    return place / "page.html"


MAKERS = {"run": (a_run, 7), "sweep": (a_sweep, 3), "trace": (a_trace, 4)}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: make(tmp_path_factory.mktemp(kind)) for kind, (make, _) in MAKERS.items()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 375])
@pytest.mark.parametrize("kind", list(MAKERS))
def test_a_page_in_a_browser(browser: Any, pages: dict[str, Path], kind: str, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    told: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("dialog", lambda dialog: (told.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[kind].as_uri())
    page.wait_for_load_state("networkidle")

    assert told == []
    assert [url for url in asked if not url.startswith("data:")] == [pages[kind].as_uri()]
    images = page.evaluate(
        "[...document.images].map(i => ({loaded: i.complete && i.naturalWidth > 0, alt: i.alt, width: i.clientWidth,"
        " box: i.parentElement.clientWidth}))"
    )
    assert len(images) == MAKERS[kind][1]
    for image in images:
        assert image["loaded"]
        assert image["alt"]
        assert image["width"] >= min(300, image["box"] - 10)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("document.querySelectorAll('script').length") == 0
    background, colour = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert (_brightness(background) < _brightness(colour)) == (scheme == "dark")
    assert page.evaluate("getComputedStyle(document.querySelector('.paper')).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("parseFloat(getComputedStyle(document.querySelector('figcaption')).fontSize)") >= 14
    context.close()


def _brightness(colour: str) -> float:
    """Mean of red, green and blue of "rgb(1, 2, 3)"."""
    return sum(map(float, colour[4:-1].split(","))) / 3
