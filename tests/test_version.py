"""The version stands in one place; what else names one agrees with it."""

import re
import tomllib
from pathlib import Path

import autoclip

ROOT = Path(__file__).parent.parent


def test_the_build_reads_it_from_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    written = (ROOT / project["tool"]["hatch"]["version"]["path"]).read_text(encoding="utf-8")
    assert written.endswith(f'__version__ = "{autoclip.__version__}"\n')


def test_the_changelog_begins_with_it_or_with_what_is_not_released() -> None:
    first, *earlier = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    current = _numbers(autoclip.__version__)
    assert first in ("Unreleased", autoclip.__version__)
    assert all(
        _numbers(version) < current or (version, first) == (autoclip.__version__, "Unreleased") for version in earlier
    )


def test_no_page_names_another() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    named = {
        version
        for page in pages
        for version in re.findall(r"autoclip-tuner[ =v]+(\d+\.\d+\.\d+)", page.read_text(encoding="utf-8"))
    }
    assert len(pages) > 3
    assert named <= {autoclip.__version__}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
