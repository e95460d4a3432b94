import copy
import json
import pickle
from collections.abc import Callable, Sequence
from math import inf, isfinite, log10, nan
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import autoclip
from autoclip.flow import (
    FlowSink,
    GradientFlow,
    Sample,
    UseOrder,
    diagnose,
    flow_findings,
    forward_order,
    layer_of,
    read_samples,
)

DEPTH = 16


def profile(decades: float, samples: int = 4, noise: float = 0.1, level: float = 1.0) -> list[Sample]:
    """Sixteen layers whose norm rises by so many decades from the first to the last, with some scatter."""
    generator = torch.Generator().manual_seed(0)
    scatter = noise * torch.randn(samples, DEPTH, generator=generator)
    return [
        Sample(
            10 * step,
            {
                f"blocks.{layer}.fc.weight": level * 10 ** (decades * layer / (DEPTH - 1) + float(scatter[step, layer]))
                for layer in range(DEPTH)
            },
        )
        for step in range(samples)
    ]


@pytest.mark.parametrize(
    ("decades", "verdict"),
    [(-6, "exploding"), (-3.5, "exploding"), (-2.5, "healthy"), (0, "healthy"), (3.5, "vanishing"), (9, "vanishing")],
)
def test_the_verdict_follows_the_slope_and_its_interval_holds_the_truth(decades: float, verdict: str) -> None:
    flow = diagnose(profile(decades, level=10 ** (-decades / 2)))
    assert flow.verdict == verdict
    assert flow.slope is not None
    assert flow.slope.low < decades < flow.slope.high
    assert flow.slope.decades == pytest.approx(decades, abs=0.2)
    assert flow.ratio == pytest.approx(10**decades, rel=1)
    assert [layer.name for layer in flow.layers] == [f"blocks.{layer}.fc" for layer in range(DEPTH)]
    assert (flow.samples, flow.first_step, flow.last_step) == (4, 0, 30)
    slope = flow.slope
    interval = f"(slope {slope.decades:+.1f}, 95 % interval {slope.low:+.1f} to {slope.high:+.1f})"
    assert interval in flow.evidence
    assert json.loads(json.dumps(flow.as_json(), allow_nan=False))["slope"]["layers"] == DEPTH


def test_slope_and_interval_are_those_of_ordinary_least_squares() -> None:
    flow = diagnose(profile(2.0))
    depth = [layer / (DEPTH - 1) for layer in range(DEPTH)]
    line = stats.linregress(depth, [log10(layer.norm) for layer in flow.layers])
    margin = stats.t.ppf(0.975, DEPTH - 2) * line.stderr
    expected = (line.slope, line.slope - margin, line.slope + margin)
    assert (flow.slope.decades, flow.slope.low, flow.slope.high) == pytest.approx(expected, rel=1e-9)


def test_a_parameter_belongs_to_its_module() -> None:
    layers = {
        "0.weight": "0",
        "blocks.0.attention.in_proj_weight": "blocks.0.attention",
        "rnn.weight_ih_l0": "rnn.l0",
        "rnn.bias_hh_l1_reverse": "rnn.l1",
        "conv.parametrizations.weight.original1": "conv",
        "group0.12": "group0.12",
        "weight": "weight",
    }
    assert {name: layer_of(name) for name in layers} == layers


def test_the_interval_holds_the_true_slope_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(1)
    held = 0
    for _ in range(200):
        scatter = 0.5 * torch.randn(12, generator=generator)
        norms = {f"{layer}.weight": 10 ** (2.0 * layer / 11 + float(scatter[layer])) for layer in range(12)}
        slope = diagnose([Sample(0, norms)]).slope
        assert slope is not None
        held += slope.low <= 2.0 <= slope.high
    assert held / 200 == pytest.approx(0.95, abs=0.04)


def test_layers_of_other_kinds_do_not_tilt_the_line() -> None:
    norms: dict[str, float | None] = {"embedding.weight": 1e-4}
    for block in range(8):
        norms |= {f"blocks.{block}.norm.weight": 1e-2, f"blocks.{block}.fc.weight": 1.0}
    norms["head.weight"] = 1e3
    flow = diagnose([Sample(0, norms), Sample(1, norms)])
    assert flow.verdict == "healthy"
    assert flow.slope is not None
    assert flow.slope.decades == pytest.approx(0, abs=1e-9)
    assert flow.slope.layers == 16
    assert flow.ratio == pytest.approx(1e7)


def test_weight_and_bias_are_one_layer_and_a_spike_counts_by_its_decades() -> None:
    norms: list[dict[str, float | None]] = [{"a.weight": 3.0, "a.bias": 4.0}, {"a.weight": 500.0, "a.bias": 0.0}]
    flow = diagnose([Sample(step, each) for step, each in enumerate(norms)])
    assert [(layer.name, layer.norm) for layer in flow.layers] == [("a", pytest.approx(50.0))]
    assert flow.peak == 500.0


@pytest.mark.parametrize(("level", "verdict"), [(1e4, "exploding"), (1e-8, "vanishing"), (1.0, "healthy")])
def test_norms_that_are_all_too_large_or_too_small_need_no_slope(level: float, verdict: str) -> None:
    flow = diagnose(profile(0.0, level=level))
    assert flow.verdict == verdict
    assert f"median layer {flow.level:.1e}" in str(flow)


def test_a_large_slope_that_is_not_certain_is_undetermined() -> None:
    norms = {f"{layer}.weight": 1.0 for layer in range(7)} | {"7.weight": 1e9}
    flow = diagnose([Sample(0, norms), Sample(1, norms)])
    assert flow.verdict == "undetermined"
    assert flow.slope is not None
    assert flow.slope.low < 0 < 3 < flow.slope.decades
    assert str(flow).startswith("too little to tell: 2 samples of steps 0 to 1; the slope is not certain; from first")


@pytest.mark.parametrize("layers", [1, 7])
@pytest.mark.parametrize("last", [1e-9, 1e9])
def test_of_fewer_than_eight_layers_or_two_samples_there_is_no_verdict(layers: int, last: float) -> None:
    norms = {f"{layer}.weight": last ** (layer / 6) for layer in range(layers)}
    flow = diagnose([Sample(step, norms) for step in range(5)])
    assert (flow.verdict, flow.words, flow.slope, flow.advice) == ("undetermined", "too little to tell", None, "")
    assert f"; {layers} layer{'s' if layers > 1 else ''}, 8 are needed; " in str(flow)
    assert diagnose(profile(5.0)[:1]).verdict == "undetermined"


def test_of_too_little_what_is_broken_is_told_all_the_same() -> None:
    dead = diagnose([Sample(step, {"a.weight": 0.0, "b.weight": 1.0}) for step in range(4)])
    assert dead.verdict == "undetermined"
    assert "; 1 dead layer: a since step 0. What helps: dead layers: a lower learning rate" in str(dead)
    broken = diagnose([Sample(step, {"a.weight": nan, "b.weight": 1.0}) for step in range(4)])
    assert broken.verdict == "undetermined"
    assert str(broken).endswith("; not finite in 4 of 4 samples")


def test_nothing_can_be_said_of_no_layers() -> None:
    for samples in ([], [Sample(0, {})]):
        with pytest.raises(ValueError, match="no norms of layers"):
            diagnose(samples)


def test_runs_with_the_same_verdict_are_told_together() -> None:
    flows = {"a": diagnose(profile(0.5)), "b": diagnose(profile(5.0)), "c": diagnose(profile(1.0))}
    healthy, vanishing = flow_findings(flows)
    low, high = sorted(flows[label].slope.decades for label in "ac")  # type: ignore[union-attr]
    told = f"a, c: gradient flow healthy: from first to last of 16 layers the norm rises by {low:.1f} to {high:.1f} dec"
    assert (healthy.level, healthy.figures["runs"]) == ("good", ["a", "c"])
    assert healthy.text.startswith(told)
    assert "What helps" not in healthy.text
    assert (vanishing.level, vanishing.figures) == ("bad", {"runs": ["b"], "verdict": "vanishing"})
    (unknown,) = flow_findings({"d": diagnose(profile(9.0)[:1])})
    assert (unknown.level, "What helps" in unknown.text) == ("note", False)
    assert unknown.text.startswith("d: gradient flow too little to tell: one sample, 2 are needed; ")
    (dead,) = flow_findings({str(count): diagnose(killed(profile(0.0), 0, range(count))) for count in (2, 5)})
    assert "; 2 to 5 dead layers. What helps: dead layers: " in dead.text


def killed(samples: list[Sample], since: int, layers: Sequence[int]) -> list[Sample]:
    dead = {f"blocks.{layer}.fc.weight" for layer in layers}
    return [
        Sample(step, {name: 0.0 if name in dead and step >= since else norm for name, norm in norms.items()})
        for step, norms in samples
    ]


def test_layers_that_died_are_named_with_the_step() -> None:
    flow = diagnose(killed(profile(0.0, samples=8), 50, range(2, 15)))
    assert flow.verdict == "vanishing"
    assert list(flow.dead_layers.items())[:2] == [("blocks.2.fc", 50), ("blocks.3.fc", 50)]
    assert len(flow.dead_layers) == 13
    assert "13 dead layers: blocks.2.fc since step 50, blocks.3.fc since step 50, " in str(flow)
    assert " and 10 more" in str(flow)
    assert flow.advice.startswith("dead layers: a lower learning rate")


def test_a_zero_now_and_then_is_no_death() -> None:
    samples = profile(0.0, samples=8)
    once = killed(samples, 70, [3])[-1:]  # only the last sample: less than a quarter
    flow = diagnose(samples[:-1] + once)
    assert (flow.verdict, flow.dead_layers) == ("healthy", {})


def test_a_dead_network_is_vanishing_unless_it_exploded_before() -> None:
    flow = diagnose(killed(profile(0.0), 0, range(DEPTH)))
    assert (flow.verdict, flow.level, flow.ratio) == ("vanishing", None, None)
    burst = diagnose(killed(profile(0.0, level=1e4), 10, range(DEPTH)))
    assert burst.verdict == "exploding"
    assert "largest" in str(burst)
    assert "dead layers" in burst.advice


@pytest.mark.parametrize(
    ("broken", "verdict"),
    [([0, 1], "healthy"), ([0, 1, 2], "exploding"), ([7], "exploding")],
)
@pytest.mark.parametrize("value", [nan, inf, None])
def test_samples_that_are_not_finite_are_counted(value: float | None, broken: Sequence[int], verdict: str) -> None:
    samples = [
        Sample(step, dict(norms) | {"blocks.4.fc.weight": value}) if index in broken else Sample(step, norms)
        for index, (step, norms) in enumerate(profile(0.0, samples=8))
    ]
    flow = diagnose(samples)
    assert (flow.verdict, flow.nonfinite_samples) == (verdict, len(broken))
    assert f"not finite in {len(broken)} of 8 samples" in str(flow)
    assert all(layer.norm is None or isfinite(layer.norm) for layer in flow.layers)


def test_the_order_decides_what_is_first() -> None:
    samples = profile(5.0)
    names = list(samples[0].norms)
    assert diagnose(samples, names).verdict == "vanishing"
    backwards = diagnose(samples, names[::-1])
    assert backwards.verdict == "exploding"
    assert backwards.layers[0].name == "blocks.15.fc"
    partly = diagnose(samples, [names[5], names[0]])
    assert [layer.name for layer in partly.layers][:3] == ["blocks.5.fc", "blocks.6.fc", "blocks.7.fc"]
    with pytest.raises(ValueError, match=r"order names none of the layers: it begins with 'module\.a\.weight'"):
        diagnose(samples, ["module.a.weight"])


class Backwards(nn.Module):
    """Registers its head first and a token last; looks at the head's weight before anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.unused = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.body = nn.Linear(4, 4)
        self.token = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.head.weight.device, next(self.parameters()).dtype)
        assert self.head.weight.size(1) == x.size(1)
        return self.head(nn.functional.dropout(self.norm(self.body(x + self.token))))


def test_the_forward_order_is_that_of_use_and_leaves_no_trace() -> None:
    model = Backwards()
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    order = forward_order(model, torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    assert list(dict.fromkeys(map(layer_of, order))) == ["token", "body", "norm", "head", "unused"]
    assert sorted(order) == sorted(name for name, _ in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modules_that_hand_their_parameters_to_one_function_are_in_order_too() -> None:
    model = nn.ModuleDict({"rnn": nn.LSTM(4, 4, 2), "encoder": nn.TransformerEncoderLayer(4, 2, 8)})
    order = forward_order(model, torch.randn(3, 1, 4), lambda model, x: model["rnn"](model["encoder"](x)))
    assert list(dict.fromkeys(map(layer_of, order))) == [
        *("encoder.self_attn", "encoder.self_attn.out_proj", "encoder.norm1", "encoder.linear1", "encoder.linear2"),
        *("encoder.norm2", "rnn.l0", "rnn.l1"),
    ]


def test_noting_the_order_changes_no_value() -> None:
    model, x = Backwards().eval(), torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    with UseOrder(dict(model.named_parameters())) as used:
        noted = model(x)
        noted.sum().backward()
    assert torch.equal(noted, expected)
    assert used.names[0] == "token"
    assert model.body.weight.grad is not None


def stack(activation: Callable[[], nn.Module], gain: float, depth: int = 20, width: int = 32) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.normal_(linear.weight, std=gain / width**0.5, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, activation()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def trained(model: nn.Module, steps: int = 6, lr: float = 1e-15) -> GradientFlow:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 32, generator=generator), torch.randn(64, 1, generator=generator)
    sink = FlowSink(every=2, order=forward_order(model, x))
    clipper = autoclip.Clipper(model, sinks=[sink])
    sink.watch(clipper)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        clipper.step()
        optimizer.step()
    assert [sample.step for sample in sink.samples] == list(range(0, steps, 2))
    return sink.verdict()


@pytest.mark.parametrize(
    ("activation", "gain", "verdict"),
    [
        (nn.Sigmoid, 1.0, "vanishing"),
        (nn.Tanh, 0.5, "vanishing"),
        (nn.Tanh, 5.0, "exploding"),
        (nn.ReLU, 2**0.5, "healthy"),
        (nn.ReLU, 3.0, "exploding"),
    ],
)
def test_the_verdicts_on_networks_that_are_known_to_be_so(activation, gain, verdict):
    flow = trained(stack(activation, gain))
    assert flow.verdict == verdict, str(flow)
    assert len(flow.layers) == 21
    assert flow.samples == 3


def test_the_sink_keeps_the_latest_samples() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    sink = FlowSink(every=1, keep=3)
    clipper = autoclip.Clipper([weight], sinks=[sink])

    def take(steps: int) -> None:
        for _ in range(steps):
            weight.grad = torch.ones(1)
            clipper.step()

    alone = FlowSink(every=1)
    take(2)
    record = clipper.last
    with pytest.warns(UserWarning, match=r"call its watch\(clipper\)"):
        alone.log(record)
    alone.log(record)
    state = clipper.state_dict()
    take(4)
    assert [sample.step for sample in sink.samples] == [3, 4, 5]
    clipper.load_state_dict(state)
    take(1)
    assert [sample.step for sample in sink.samples] == [2]
    again = pickle.loads(pickle.dumps(clipper))  # noqa: S301 - its own
    assert again.sinks[0].samples == sink.samples
    clipper.close()


def test_layers_jsonl_is_read_up_to_a_torn_line(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "norms": {"a": 1.0, "b": None}}) for step in (0, 10)]
    (tmp_path / "layers.jsonl").write_text("\n".join([*lines, '{"step": 20, "nor']))
    expected = [Sample(0, {"a": 1.0, "b": None}), Sample(10, {"a": 1.0, "b": None})]
    assert read_samples(tmp_path) == read_samples(tmp_path / "layers.jsonl") == expected
    with pytest.raises(FileNotFoundError):
        read_samples(tmp_path / "elsewhere.jsonl")


class Exchanges(nn.Module):
    """Puts another tensor in the place of a buffer, and holds one that cannot be written to."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("expanded", torch.ones(1).expand(2))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return self.layer(x * self.expanded)


def test_buffers_that_a_pass_exchanges_are_put_back() -> None:
    model = Exchanges()
    count = model.count
    assert forward_order(model, torch.ones(1, 2)) == ["layer.weight", "layer.bias"]
    assert model.count is count
    assert model.count.item() == 0
