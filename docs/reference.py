"""The pages that are made from the package: Python names, configuration, command line."""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from typer.main import get_command

import autoclip
from autoclip.cli import app
from autoclip.lab.config import json_schema
from autoclip.policies import POLICIES

PYTHON = {
    "Clipping": "autoclip Clipper attach Tuner ClipRecord",
    "Functions in place of torch's": "autoclip clip_grad_norm_ clip_grad_value_ adaptive_grad_clip_",
    "Policies": "autoclip NoClip Fixed FixedPercentile RunningQuantile ProbingQuantile LossAwareQuantile CenterMultiple"
    " AutoClip ZClip SkipStep AdaGC Policy",
    "Logs of norms": "autoclip.traces read_traces NormTrace",
    "Where records go": "autoclip.sinks ConsoleSink JSONLSink SpikeRecorder TensorBoardSink WandbSink",
    "Spikes": "autoclip.spikes SpikeEvent event_findings events_of read_events",
    "Gradient flow": "autoclip.flow FlowSink forward_order diagnose read_samples GradientFlow Layer Slope Sample"
    " UseOrder flow_findings layer_of",
    "Lightning": "autoclip.integrations.lightning AutoClipCallback",
    "Transformers": "autoclip.integrations.transformers AutoClipCallback",
    "DeepSpeed": "autoclip.integrations.deepspeed attach EngineTuner",
    "TensorFlow and Keras": "autoclip.integrations.tensorflow GradientClipper",
}
"""Heading -> module and the names in it."""
INHERITING = {"Clipper", "Tuner", "EngineTuner", "GradientClipper"}
"""Much of what they have is in a base class."""
NOT_SHOWN = {"POLICIES", "__version__", "flow", "sinks", "traces"}
LISTED = {name for text in PYTHON.values() for name in text.split()[1:]} | NOT_SHOWN
PYTHON["More"] = " ".join(["autoclip", *(name for name in autoclip.__all__ if name not in LISTED)])
PUBLIC = {name for text in PYTHON.values() if text.startswith("autoclip ") for name in text.split()[1:]}


def reference_pages() -> dict[str, str]:
    """Path of a page, as if it were in the repository -> Markdown."""
    return {
        "docs/reference/python.md": _python(),
        "docs/reference/configuration.md": _configuration(json_schema()),
        "docs/reference/commands.md": _commands(),
    }


def _python() -> str:
    lines = ["# Python", "", "From the docstrings. What `import autoclip` gives has its short name.", ""]
    for title, text in PYTHON.items():
        module, *names = text.split()
        lines += [f"## {title}", ""]
        for name in names:
            inherited = ", inherited_members: true" if name in INHERITING else ""
            lines += [f"::: {module}.{name}", f"    options: {{heading_level: 3{inherited}}}", ""]
    return "\n".join(lines)


def _commands() -> str:
    command = get_command(app)
    context = command.context_class(command, info_name="autoclip", max_content_width=80, terminal_width=80)
    lines = ["# Command line", "", "```text", command.get_help(context), "```", ""]
    for name, one in command.commands.items():
        inner = command.context_class(one, info_name=name, parent=context, max_content_width=80, terminal_width=80)
        lines += [f"## autoclip {name}", "", "```text", one.get_help(inner), "```", ""]
    return "\n".join(lines)


def _configuration(schema: dict[str, Any]) -> str:
    definitions = schema["$defs"]
    policies = [name for name in definitions if name.endswith("Section")]
    optimizers = [one["$ref"].split("/")[-1] for one in _of(schema, "optimizer")["anyOf"][0]["oneOf"]]
    lines = [
        "# Configuration",
        "",
        "One YAML file holds an experiment; `autoclip init` writes one to start from. These tables are made from the",
        "JSON schema that `autoclip schema` prints, for your editor. A key in **bold** has to be given.",
        "",
    ]
    lines += _section("The file", schema)
    for title, name in {"task": "TaskConfig", "clip": "ClipConfig", "log": "LogConfig", "sweep": "SweepConfig"}.items():
        lines += _section(title, definitions[name])
    lines += ["## optimizer", "", "One of these, chosen by `kind`.", ""]
    for name in optimizers:
        lines += _section(_of(definitions[name], "kind")["const"], definitions[name], level=3)
    lines += ["## clip.policy", "", "One of these, chosen by `kind`; [Policies](../policies.md) has the formulas.", ""]
    order = [*POLICIES, None]
    for section in sorted((definitions[name] for name in policies), key=lambda section: order.index(_kind(section))):
        lines += _section(_kind(section) or "A class of your own", section, level=3)
    return "\n".join(lines)


def _of(section: dict[str, Any], key: str) -> dict[str, Any]:
    found: dict[str, Any] = section["properties"][key]
    return found


def _kind(section: dict[str, Any]) -> str | None:
    return _of(section, "kind").get("const")


def _section(title: str, section: dict[str, Any], level: int = 2) -> list[str]:
    lines = [f"{'#' * level} {title}", "", section.get("description", ""), ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, value in section["properties"].items():
        name = f"**`{key}`**" if key in section.get("required", ()) else f"`{key}`"
        default = f"`{json.dumps(value['default']).strip(chr(34))}`" if "default" in value else ""
        lines.append(f"| {name} | {_values(value)} | {default} | {_cell(value.get('description', ''))} |")
    return [*lines, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _values(value: dict[str, Any]) -> str:
    """What a value may be, in words."""
    if "const" in value:
        return f"`{json.dumps(value['const']).strip(chr(34))}`"
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if "$ref" in value:
        return "a section"
    for several in ("anyOf", "oneOf"):
        if several in value:
            return " or ".join(dict.fromkeys(_values(one) for one in value[several]))
    kind = value.get("type")
    if kind == "array":
        return f"a list of: {_values(value.get('prefixItems', [value.get('items', {})])[0])}"
    if kind in ("number", "integer"):
        return _interval("a number" if kind == "number" else "a whole number", value)
    return {"string": "text", "boolean": "`true`, `false`", "object": "keys and values"}.get(str(kind), "null")


def _interval(word: str, value: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign}\u00a0{value[name]:g}" for name, sign in signs.items() if name in value]
    return " ".join([word, ", ".join(limits)]).strip()
