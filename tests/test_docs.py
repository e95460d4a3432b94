"""The documentation: snippets and commands run, links lead somewhere, and what it quotes and names exists."""

import ast
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import autoclip
from autoclip.cli import app

ROOT = Path(__file__).parent.parent
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
ELSEWHERE = {"frameworks"}  # whose snippets tests/integrations/test_frameworks.py runs
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SNIPPET = re.compile(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def pages_with(pattern):
    return [name for name, text in PAGES.items() if re.search(pattern, text, re.MULTILINE) and name not in ELSEWHERE]


def commands_of(text):
    lines = [line for kind, block in FENCED.findall(text) if kind == "sh" for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.split("#")[0].strip()]


def prose(text):
    return FENCED.sub("", text)


def slugs(text):
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    titles = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def new_training():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    random = torch.Generator().manual_seed(0)
    return {
        "autoclip": autoclip,
        "torch": torch,
        "model": model,
        "optimizer": torch.optim.SGD(model.named_parameters(), lr=0.1),
        "batches": [(torch.randn(8, 4, generator=random), torch.randn(8, 1, generator=random)) for _ in range(6)],
        "loss_of": lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1]),
    }


@pytest.mark.filterwarnings("ignore:torch.cuda.amp:FutureWarning", "ignore:.*lr_scheduler.*:UserWarning")
@pytest.mark.parametrize("page", pages_with(r"^```python$"))
def test_snippets_run_and_print_what_stands_below_them(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code, output in SNIPPET.findall(PAGES[page]):
        names |= new_training()
        exec(compile(code, f"docs/{page}.md", "exec"), names)
        printed = capsys.readouterr().out
        if output:
            assert printed == output


@pytest.mark.parametrize("page", pages_with(r"^```sh$"))
def test_commands_run_in_their_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    for command in commands_of(PAGES[page]):
        program, *words = shlex.split(command)
        if program == "autoclip":
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, f"{command}: {result.output}"


def test_other_commands_name_what_exists():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for text in PAGES.values():
        for target in re.findall(r"`make ([\w-]+)`", text):
            assert target in targets
        for module in re.findall(r"python -m (experiments[\w.]+)", text):
            assert find_spec(module), module
        for command in re.findall(r"(?:^\$ |`)autoclip ([a-z]+)", text, re.MULTILINE):
            assert command in {one.callback.__name__ for one in app.registered_commands}, command


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    for link in LINK.findall(prose(PAGES[page])):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / "docs" / path).resolve() if path else ROOT / "docs" / f"{page}.md"
        assert target.is_file(), link
        assert not anchor or anchor in slugs(target.read_text(encoding="utf-8")), link


def literals():
    """All texts in the package; what a value fills in is a NUL."""
    found = []
    for path in (ROOT / "autoclip").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(one.value if isinstance(one, ast.Constant) else "\0" for one in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_messages_that_are_quoted_are_in_the_source():
    quotes = re.findall(r"^### `(.*)`$", PAGES["messages"], re.MULTILINE)
    assert len(quotes) >= 20
    texts = literals()
    for quote in quotes:
        pattern = re.compile(".*".join(map(re.escape, quote.split("..."))))
        assert any(pattern.search(text) for text in texts), quote


def test_every_message_has_a_cause_and_a_cure():
    for section in PAGES["messages"].split("\n### ")[1:]:
        assert "**Cause.**" in section
        assert "**Cure.**" in section


def test_every_policy_has_a_section_with_its_formula_and_kind():
    sections = dict(section.split("\n", 1) for section in PAGES["policies"].split("\n## ")[1:])
    assert list(sections) == [cls.__name__ for cls in autoclip.POLICIES.values()]
    for kind, cls in autoclip.POLICIES.items():
        assert "$$" in sections[cls.__name__]
        assert f"YAML `{kind}`" in sections[cls.__name__]


def rows_of(text):
    rows = [[cell.strip(" *") for cell in line.strip("| ").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row for row in rows}


def test_figures_of_the_default_are_those_of_its_study():
    study = rows_of((ROOT / "experiments/studies/default/README.md").read_text(encoding="utf-8"))
    (_cell, *rules), _, *rows = rows_of(PAGES["default"]).values()
    assert len(rows) == 4
    columns = [study["cell"].index(rule) for rule in rules]
    for name, *losses in rows:
        assert losses == [study[name][column] for column in columns], name


def test_the_questions_are_answered():
    assert PAGES["faq"].count("\n## ") == 11


ROWS = [line for line in PAGES["integrations"].splitlines() if line.startswith("| ") and "`test_" in line]


@pytest.mark.parametrize("row", ROWS, ids=[row.split(",")[0].strip("| `") for row in ROWS])
def test_every_cell_names_a_test(row):
    first, *cells = [cell.strip() for cell in row.strip("|").split("|")]
    files = re.findall(r"`([\w/]+\.py)`", first)
    found = "".join(
        (ROOT / (name if "/" in name else f"tests/integrations/{name}")).read_text(encoding="utf-8") for name in files
    )
    assert len(cells) == 5
    named = [name for cell in cells for name in re.findall(r"`(test_\w+)`", cell)]
    assert len(named) >= 3
    for name in named:
        assert f"def {name}(" in found, name


def test_there_is_a_row_for_each():
    assert len(ROWS) == 10


GUARANTEES = PAGES["guarantees"]
PROMISES = [line for line in GUARANTEES.splitlines() if line.startswith("| ") and not line.startswith("| promise")]


@pytest.mark.parametrize("row", PROMISES, ids=[row.split(" | ")[0].strip("| ")[:50] for row in PROMISES])
def test_every_promise_names_tests_that_exist(row):
    _, tests = row.strip("| ").split(" | ")
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", tests)
    assert named
    assert len(named) == tests.count("`") // 2
    for file, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE), name


def test_no_section_of_promises_is_empty():
    sections = GUARANTEES.split("\n## ")[1:]
    assert [section.splitlines()[0] for section in sections if "| promise | tests |" not in section] == [
        "What is not promised"
    ]
    assert len(PROMISES) >= 30
