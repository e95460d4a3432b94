import ast

import pytest
from rich.cells import cell_len

from autoclip.terminal import console, laid_out, print_code

POLICY = "autoclip.RunningQuantile(percentile=50, warmup_steps=50, min_threshold=0.25, max_threshold=float('inf'))"
CLIPPER = f"clipper = autoclip.Clipper(model, {POLICY}, groups={{'early': '^[01](,|\\\\))', 'late': \"it's, {{4\"}})"


@pytest.mark.parametrize("width", [30, 40, 80, 120])
def test_a_call_is_broken_at_its_arguments_and_means_the_same(width: int) -> None:
    text = laid_out(CLIPPER, width)
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(CLIPPER))
    assert max(map(len, text.splitlines())) <= max(width, len("        max_threshold=float('inf'),"))


def test_a_call_that_fits_is_left_as_it_is_and_one_that_almost_fits_takes_one_line_more() -> None:
    code = "clipper = autoclip.attach(optimizer, autoclip.Fixed(threshold=1.0))"
    assert laid_out(code, len(code)) == code
    assert laid_out(code, 60) == "clipper = autoclip.attach(\n    optimizer, autoclip.Fixed(threshold=1.0)\n)"
    assert laid_out(code, 40) == "clipper = autoclip.attach(\n    optimizer,\n    autoclip.Fixed(threshold=1.0),\n)"


@pytest.mark.parametrize("text", ["a" * 100, "it's, (" * 20, "\\n\n\t" * 30, "名" * 60, ""])
def test_a_long_string_is_broken_too(text: str) -> None:
    code = f"call({{'key': {text!r}}}, (1,), x={text!r})"
    broken = laid_out(code, 40)
    assert ast.literal_eval(broken.removeprefix("call").replace("x=", "")) == ({"key": text}, (1,), text)
    assert max(map(cell_len, broken.splitlines())) <= 40


@pytest.mark.parametrize(
    "code", ["<Own policy's repr with 'quotes at 0x12>", "x" * 50, "call('unfinished", "call()" * 9]
)
def test_what_cannot_be_broken_is_left_as_it_is(code: str) -> None:
    assert laid_out(code, 20) == code


def test_a_pipe_has_no_width_unless_the_environment_sets_one(capsys, monkeypatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    sentence = "[bold]word[/bold] :smile: " * 40
    console().print(sentence)
    print_code(console(), CLIPPER)
    assert capsys.readouterr().out == f"{sentence}\n    {CLIPPER}\n"
    monkeypatch.setenv("COLUMNS", "60")
    console(stderr=True).print(sentence)
    print_code(console(stderr=True), CLIPPER)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert max(map(len, captured.err.splitlines())) <= 60
    assert captured.err.split()[:4] == sentence.split()[:4]
    monkeypatch.setenv("COLUMNS", "0")
    assert console().width == 80
