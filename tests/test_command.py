from pathlib import Path

import pytest

from autoclip.lab.command import REQUIRED, checked_command, filled_in, placeholders, uses


def test_every_placeholder_is_filled_in_as_often_as_it_occurs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ("python", "x.py", "{seed}-{seed}", "--a={clip_config}:{run_dir}", "{lr_multiplier}", "{{seed}} }}{{")
    words = filled_in(command, clip_config=Path("runs/c.yaml"), seed=3, run_dir=Path("runs/a b"), multiplier=3)
    assert words == [
        *("python", "x.py", "3-3", f"--a={tmp_path}/runs/c.yaml:{tmp_path}/runs/a b", "3.0", "{seed} }{"),
    ]


@pytest.mark.parametrize("multiplier", [0.1, 1 / 3, 1e-7, 10.0])
def test_the_multiplier_loses_no_digit(multiplier):
    (word,) = filled_in(["{lr_multiplier}"], clip_config=Path(), seed=0, run_dir=Path(), multiplier=multiplier)
    assert float(word) == multiplier


def test_braces_in_the_values_stay():
    (word,) = filled_in(["{run_dir}"], clip_config=Path(), seed=0, run_dir=Path("/{seed}"), multiplier=1)
    assert word == "/{seed}"


def test_which_placeholders_a_command_uses():
    assert placeholders("a{seed}b{{run_dir}}{clip_config}") == ["seed", "clip_config"]
    assert uses(["a", "{seed}"], "seed")
    assert not uses(["a", "{{seed}}"], "seed")


@pytest.mark.parametrize("name", REQUIRED)
def test_what_tells_the_runs_apart_must_occur(name):
    command = [f"{{{other}}}" for other in REQUIRED if other != name]
    with pytest.raises(ValueError, match=rf"must hold \{{{name}\}} too"):
        checked_command(command)
    assert checked_command([*command, f"x{{{name}}}"]) == [*command, f"x{{{name}}}"]
