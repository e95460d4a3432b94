"""Configurations by somebody else: nothing of them runs in `validate`, and none of them ends in a traceback."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autoclip.cli import app
from autoclip.errors import UsageError
from autoclip.lab.config import ConfigError, load_config
from autoclip.lab.experiment import make_task
from tests.test_train import CONFIG

CANARY = "import pathlib\npathlib.Path({path!r}).touch()\n"
DIGITS = "9" * 900_000

HOSTILE = {
    "python tag": "a: !!python/object/apply:os.system ['touch CANARY']\n",
    "python name": "a: !!python/name:os.system\n",
    "new object": "!!python/object/new:os.system ['touch CANARY']\n",
    "own tag": "a: !include /etc/passwd\n",
    "alias bomb": "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)),
    "merge bomb": "a: &a {k: 1}\nb:\n  <<: [*a, *a]\n",
    "alias of itself": "a: &a [*a]\n",
    "deep flow list": "a: " + "[" * 400_000,
    "deep flow mapping": "a: " + "{a: " * 100_000,
    "deep block list": "a:\n  " + "- " * 100_000 + "x\n",
    "deep block mapping": "".join(" " * depth + "a:\n" for depth in range(1300)),
    "deep keys": "? " * 50_000 + "x\n",
    "long integer": f"a: {DIGITS}\n",
    "long hexadecimal": f"a: 0x{DIGITS}\n",
    "long octal": "a: 0o" + "7" * 900_000 + "\n",
    "long float": f"a: {DIGITS}.5e{DIGITS[:20]}\n",
    "huge float": "a: 1e999\n",
    "infinite": "optimizer: {kind: sgd, lr: .inf}\n",
    "not a number": "optimizer: {kind: sgd, lr: .nan}\n",
    "sexagesimal": "a: 1:" + "59:" * 1000 + "59\n",
    "timestamp": "a: 99999-99-99T99:99:99Z\n",
    "NUL": "a: \0\n",
    "escape sequences": "a: \x1b[2J\n",
    "escaped control characters": 'a: "\\0\\x1b[2J\\u202e"\n"\\x1b]0;x": 1\n',
    "half a surrogate pair": 'a: "\\ud800"\n',
    "not UTF-8": b"a: \xff\xfe\n",
    "UTF-16": "a: 1\n".encode("utf-16"),
    "byte order mark only": b"\xef\xbb\xbf",
    "two byte order marks": b"\xef\xbb\xbf\xef\xbb\xbfa: 1\n",
    "many documents": "---\na: 1\n" * 1000,
    "long line": "a: " + "x" * 999_000 + "\n",
    "long key": "x" * 900_000 + ": 1\n",
    "many keys": "".join(f"k{n}: 1\n" for n in range(3000)),
    "many anchors": "".join(f"k{n}: &x{n} 1\n" for n in range(3000)),
    "directives": "%YAML 9.9\n%TAG ! tag:x,2000:\n---\n!x 1\n",
}


def is_refused(*arguments):
    """What a command says that must end with exit code 2 and lines of its own."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert not any(ord(character) < 32 and character != "\n" for character in result.output)
    assert max(map(len, result.output.splitlines())) < 1500
    return result.output


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_in_lines_of_text(tmp_path, text):
    path = tmp_path / "x.yaml"
    canary = tmp_path / "canary"
    path.write_bytes(text if isinstance(text, bytes) else text.replace("CANARY", str(canary)).encode())
    assert str(path) in is_refused("validate", str(path))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("".join(f"k{n}: !x 1\n" for n in range(16_000)), 32_003),
        (CONFIG + f"seeds: [{', '.join(map(str, range(1, 90_000)))}, 1]\n", 1),
    ],
    ids=["many tags", "many seeds"],
)
def test_a_long_file_has_all_its_faults_told(tmp_path, text, faults):
    """Both once took more than half a minute, four times as long for twice the lines: it must end."""
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError) as found:
        load_config(tmp_path / "x.yaml")
    assert len(found.value.faults) == faults


@pytest.mark.parametrize("kind", ["pipe", "directory", "missing", "device"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, kind):
    path = tmp_path / "x.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    assert "must be a YAML file" in is_refused("validate", str(path))


@pytest.mark.parametrize(
    ("module", "section"),
    [("trap_task", "task.target=trap_task:Task"), ("trap_policy", "clip.policy={kind: 'trap_policy:Policy'}")],
)
def test_validate_imports_nothing_that_is_named(tmp_path, monkeypatch, module, section):
    monkeypatch.chdir(tmp_path)
    Path(f"{module}.py").write_text(CANARY.format(path=str(tmp_path / "canary")))
    Path("x.yaml").write_text(CONFIG)
    assert CliRunner().invoke(app, ["validate", "x.yaml", section]).exit_code == 0
    assert not Path("canary").exists()
    assert CliRunner().invoke(app, ["run", "x.yaml", section]).exit_code == 2
    assert Path("canary").exists(), "a run does import it"


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("{target: 'os:system', args: {command: 'touch canary'}}", "must be a class, got builtin_function"),
        ("{target: 'subprocess:Popen', args: {args: [touch, canary]}}", "has no model, batches, loss, evaluate"),
        ("{target: 'builtins:exec', args: {source: 'open(1)'}}", "must be a class"),
    ],
)
def test_what_is_installed_but_no_task_is_not_called(tmp_path, monkeypatch, task, told):
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(CONFIG)
    with pytest.raises(UsageError, match=told):
        make_task(load_config(Path("x.yaml"), [f"task={task}"]))
    assert not Path("canary").exists()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "..", ".", "a/b", "a\\b", "", "x\0y", "-x", ".hidden"])
def test_a_name_cannot_lead_out_of_the_output_directory(tmp_path, name):
    path = tmp_path / "x.yaml"
    path.write_text(CONFIG)
    quoted = name.replace("\\", "\\\\").replace("\0", "\\0")
    assert "name: must be a plain file name" in is_refused("validate", str(path), f'name="{quoted}"')
