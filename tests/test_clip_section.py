import subprocess
import sys
from pathlib import Path

import pytest
import torch

import autoclip
from autoclip.lab.clip_section import ClipFile, from_config, read_clip_file
from autoclip.lab.config import ConfigError, load_config, to_yaml

ROOT = Path(__file__).parent.parent
ALL = """\
clip:
  scope: global
  mode: value
  response: scale
  on_nonfinite: propagate
  max_nonfinite_in_a_row: 30
  policy: {kind: fixed, threshold: 0.5}
  skip: {kind: skip_step, on: loss or norm, sigmas: 5}
"""


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


def write(text):
    Path("x.yaml").write_text(text, encoding="utf-8")
    return Path("x.yaml")


def message(text):
    with pytest.raises(ConfigError) as error:
        from_config(write(text))
    return str(error.value)


def test_a_clipper_is_built_from_a_file_with_only_a_clip_section():
    clipper = autoclip.Clipper(torch.nn.Linear(2, 1), **autoclip.from_config(str(write(ALL))))
    assert repr(clipper.policy) == "Fixed(threshold=0.5)"
    assert (clipper.scope, clipper.mode, clipper.response, clipper.on_nonfinite) == (
        *("global", "value", "scale", "propagate"),
    )
    assert from_config(write(ALL))["max_nonfinite_in_a_row"] == 30
    assert repr(from_config(write(ALL))["skip"]) == "SkipStep(sigmas=5.0, on='loss or norm')"


def test_what_is_left_out_has_its_default():
    arguments = from_config(write("clip: {}"))
    assert repr(arguments.pop("policy")) == "ProbingQuantile()"
    assert arguments == {
        "scope": None,
        "groups": None,
        "mode": "norm",
        "response": None,
        "skip": None,
        "on_nonfinite": "skip",
        "max_nonfinite_in_a_row": None,
        "relearn_after": "auto",
    }


def test_every_call_makes_a_new_policy():
    path = write(ALL)
    for key in ("policy", "skip"):
        assert from_config(path)[key] is not from_config(path)[key]


@pytest.mark.parametrize(
    ("skip", "expected"),
    [
        (
            "{kind: skip_step, on: los}",
            "x.yaml:1:36: clip.skip.on: must be 'norm', 'loss' or 'loss or norm', got",
        ),
        ("{kind: skip_stp}", "x.yaml:1:21: clip.skip.kind: must be one of none, fixed"),
        ("{kind: nowhere:Rule}", "x.yaml:1:21: clip.skip: nowhere:Rule: there is no module 'nowhere'"),
        ("{kind: adagc}", "x.yaml:1:7: clip: must have a skip rule for all gradients together, such as skip_step"),
        ("3", "x.yaml:1:14: clip.skip: must be a mapping of keys to values, got 3"),
    ],
)
def test_a_fault_in_a_skip_rule_has_its_place(skip, expected):
    assert message(f"clip: {{skip: {skip}}}").startswith(expected)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_clip_section_of_an_experiment_is_read(path):
    if "\nclip:" not in path.read_text():
        with pytest.raises(ConfigError, match="without a clip section"):
            from_config(path)
        return
    assert from_config(path)["policy"].parameters()["warmup_steps"] == load_config(path).clip.policy.warmup_steps


def test_other_keys_are_not_read():
    others = "name: 5\nstepz: [1]\nname: again\noptimizer: {<<: {}, lr: !!python/name:os.system }\n"
    assert repr(from_config(write(others + ALL))["policy"]) == "Fixed(threshold=0.5)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: x\n", "x.yaml:1:1: clip: must be given, got a file without a clip section"),
        ("{}", "x.yaml:1:1: clip: must be given, got a file without a clip section"),
        ("", "x.yaml: must be a mapping of keys to values, got an empty file"),
        ("clip:\n", "x.yaml:1:6: clip: must be a mapping of keys to values, got null"),
        (
            "a: 1\nclip: {mode: agcs}",
            "x.yaml:2:14: clip.mode: must be 'norm', 'value', 'agc' or 'param_rms', got 'agcs'",
        ),
        (
            "clip: {polcy: {}}",
            "x.yaml:1:8: clip.polcy: unknown key (did you mean policy?); known: scope, groups, mode, response, "
            "skip, relearn_after, on_nonfinite, max_nonfinite_in_a_row, policy",
        ),
        (
            "clip: {policy: {kind: fixed, threshold: 0}, mode: 1}",
            "x.yaml:1:41: clip.policy.threshold: must be a number in (0, inf], got 0\n"
            "x.yaml:1:51: clip.mode: must be 'norm', 'value', 'agc' or 'param_rms', got 1",
        ),
        (
            "clip: {mode: norm, mode: value}",
            "x.yaml:1:20: clip.mode: must be given once, got it again (first at x.yaml:1:8)",
        ),
        ("clip: [", "x.yaml:1:8: must be valid YAML"),
    ],
)
def test_a_fault_has_its_place(text, expected):
    assert message(text).startswith(expected)


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"^no\.yaml: must be a YAML file, got nothing: there is no such file"):
        from_config("no.yaml")


@pytest.mark.parametrize("given", [{"clip": {"policy": {"kind": "zclip"}}}, None, 3])
def test_what_is_no_path_is_refused(given):
    with pytest.raises(
        TypeError, match=f"takes the path of a YAML file with a clip section, got a {type(given).__name__}"
    ):
        from_config(given)


def test_a_policy_of_ones_own_is_imported_from_the_working_directory():
    Path("clip_policies.py").write_text(
        "from dataclasses import dataclass\n\nimport autoclip\n\n@dataclass\nclass Mine(autoclip.RunningQuantile):\n"
        "    share: float = 3.0\n"
    )
    policy = from_config(write("clip: {policy: {kind: 'clip_policies:Mine', share: 7}}"))["policy"]
    assert policy.share == 7
    assert message("clip: {policy: {kind: 'clip_policies:Yours'}}").startswith(
        "x.yaml:1:23: clip.policy: clip_policies:Yours: "
    )


def test_a_section_that_was_written_reads_back():
    section = read_clip_file(write(ALL))
    assert read_clip_file(write(to_yaml(section))) == section == ClipFile(clip=section.clip)


def test_it_is_found_in_the_package_and_needs_no_torch():
    write(ALL)
    code = (
        "import sys, autoclip; assert 'pydantic' not in sys.modules; print(autoclip.from_config('x.yaml')['policy'],"
        "'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "Fixed(threshold=0.5) False\n"
