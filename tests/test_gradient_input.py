"""Whatever gradients may be: for each kind the norm, the factor and what is left, or the error; and what is learned."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite, isnan, nan, sqrt
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.two_tensor import TwoTensor

from autoclip import Clipper, Fixed, RunningQuantile, clip_grad_norm_, clip_grad_value_
from tests.odd_gradients import (
    Named,
    a_hundred_thousand,
    conjugated,
    eight_bits,
    frozen,
    frozen_later,
    in_one_memory,
    in_views_of_one_memory,
    jagged,
    made_in_inference,
    negated,
    neighbours_in_one_buffer,
    of,
    of_a_result,
    on_meta,
    overlapping,
    sparse,
    weight,
    whole_numbers,
    with_a_graph,
    without_a_norm,
    wrapped,
)
from tests.references import clip_coefficient
from tests.small_network import Records

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental"),
    pytest.mark.filterwarnings("ignore:no parameter has a gradient"),  # where the only one is empty
]


@dataclass(frozen=True)
class Case:
    """Gradients that are clipped.

    `left` holds what is left of each, None where there is none; by default the gradients times the coefficient of the
    formula, which is what is expected of nearly all.
    """

    make: Callable[[], list[Tensor]]
    norm: float
    threshold: float = 1.0
    left: list[Any] | None = None
    precision: float = 2e-6


HALF, BRAIN = 1e-3, 8e-3
MATRIX = torch.tensor([[3.0, 0.0, 4.0], [0.0, 12.0, 0.0]])
LARGEST = torch.finfo(torch.float32).max

CLIPPED = {
    # dtypes
    "float64": Case(lambda: of(3, 4, dtype=torch.float64), 5.0, precision=1e-12),
    "float32": Case(lambda: of(3, 4), 5.0),
    "bfloat16": Case(lambda: of(3, 4, dtype=torch.bfloat16), 5.0, precision=BRAIN),
    "float16": Case(lambda: of(3, 4, dtype=torch.float16), 5.0, precision=HALF),
    "float16 with a norm above 65504": Case(lambda: of(36e3, 48e3, dtype=torch.float16), 6e4, precision=HALF),
    "complex128": Case(lambda: of(3, 4j, dtype=torch.complex128), 5.0, precision=1e-12),
    "complex64": Case(lambda: of(3, 4j, dtype=torch.complex64), 5.0),
    "complex32": Case(lambda: [weight(torch.tensor([3, 4j]).to(torch.complex32))], 5.0, precision=HALF),
    "dtypes mixed": Case(
        lambda: [*of(3, dtype=torch.float64), *of(4, dtype=torch.float16), *of(12)], 13.0, precision=HALF
    ),
    # values
    "zeros": Case(lambda: of(0.0, -0.0), 0.0),
    "below the threshold": Case(lambda: of(0.3, 0.4), 0.5),
    "at the threshold": Case(lambda: of(3, 4), 5.0, threshold=5.0),
    "a little above the threshold": Case(lambda: of(3, 4), 5.0, threshold=4.999),
    "denormal": Case(lambda: of(1e-45, 1e-45), sqrt(2) * 2**-149),
    "denormal, clipped": Case(lambda: of(3e-310, 4e-310, dtype=torch.float64), 5e-310, threshold=1e-310),
    "squares that underflow": Case(lambda: of(3e-30, 4e-30), 5e-30, threshold=1e-30, precision=2e-3),
    "1e30": Case(lambda: of(3e30, 4e30), 5e30),
    "the largest float32": Case(lambda: of(LARGEST, LARGEST), sqrt(2) * LARGEST),
    "the largest float64": Case(
        lambda: of(1.7e308, 1.7e308, dtype=torch.float64),
        1.7976931348623157e308,
        left=[[1.7e308 / 1.7976931348623157e308] * 2],
    ),
    "1e30 beside 1e-30": Case(lambda: [*of(1e30), *of(1e-30)], 1e30, left=[[1.0], [0.0]]),
    # shapes and memory
    "zero-dimensional": Case(lambda: [weight(torch.tensor(5.0))], 5.0),
    "zero-dimensional beside others": Case(lambda: [weight(torch.tensor(3.0)), *of(4)], 5.0),
    "empty": Case(lambda: [weight(torch.zeros(0))], 0.0),
    "empty beside others": Case(lambda: [weight(torch.zeros(2, 0)), *of(3, 4), weight(torch.zeros(0))], 5.0),
    "absent beside others": Case(lambda: [weight(None, like=torch.zeros(2)), *of(3, 4)], 5.0),
    "transposed": Case(lambda: [weight(MATRIX.clone().t())], 13.0),
    "sliced": Case(lambda: [weight(MATRIX.clone()[:, ::2])], 5.0),
    "channels last": Case(
        lambda: [weight(torch.full((2, 2, 2, 2), 1.25).contiguous(memory_format=torch.channels_last))], 5.0
    ),
    "expanded from one": Case(lambda: [weight(torch.tensor(2.5).expand(2, 2))], 5.0),
    "expanded rows": Case(lambda: [weight(torch.tensor([3.0, 4.0]).expand(4, 2))], 10.0),
    "elements that share memory": Case(lambda: [weight(torch.arange(4.0).as_strided((3, 2), (1, 1)))], sqrt(19)),
    "neighbours in one buffer": Case(neighbours_in_one_buffer, 13.0),
    "one memory for two parameters": Case(in_one_memory, 5.0),
    "views of one memory for two parameters": Case(in_views_of_one_memory, 5.0),
    # As torch: what lies in both is counted and shrunk with each.
    "overlapping in part": Case(
        overlapping,
        sqrt(185),
        left=[[3 / sqrt(185), 4 / 185], [4 / 185, 12 / sqrt(185)]],
    ),
    "100 000 of one element": Case(a_hundred_thousand, sqrt(100_000), precision=1e-5),
    # sparse
    "sparse": Case(lambda: [sparse([0, 2], [3, 4], 3)], 5.0),
    "sparse with repeated indices": Case(lambda: [sparse([0, 0, 2], [1, 2, 4], 3)], 5.0),
    "sparse whose repeated indices cancel": Case(lambda: [sparse([1, 1, 0], [7, -7, 5], 3)], 5.0),
    "sparse rows, repeated": Case(lambda: [sparse([1, 1], [[1, 2], [2, 2]], 3, 2)], 5.0),
    "sparse without entries": Case(lambda: [sparse([], [], 3)], 0.0),
    "sparse beside dense": Case(lambda: [sparse([1], [3], 3), *of(4)], 5.0),
    "sparse float16": Case(lambda: [sparse([0, 2], [3, 4], 3, dtype=torch.float16)], 5.0, precision=HALF),
    "sparse complex": Case(lambda: [sparse([0, 2], [3, 4j], 3, dtype=torch.complex64)], 5.0),
    # autograd
    "with a graph": Case(with_a_graph, sqrt(45)),
    "of a result, not of a leaf": Case(of_a_result, 5.0),
    "frozen beside others": Case(frozen, 5.0),
    "frozen with a gradient still there": Case(frozen_later, 5.0),
    "conjugated": Case(conjugated, 5.0),
    "negated": Case(negated, 13.0),
    # classes
    "a subclass": Case(lambda: [weight(torch.tensor([3.0, 4.0]).as_subclass(Named))], 5.0),
    "wrappers without memory": Case(lambda: [wrapped(3.0, 4.0), wrapped(0.0, 12.0)], 13.0),
}


def plain(gradient: Tensor | None) -> Tensor | None:
    """A copy as a dense tensor of torch itself."""
    if gradient is None:
        return None
    gradient = gradient.a if isinstance(gradient, TwoTensor) else gradient
    return gradient.detach().to_dense().resolve_conj().resolve_neg().as_subclass(Tensor).clone()


def assert_left(case: Case, parameters: list[Tensor], before: list[Tensor | None]) -> None:
    clips = case.norm > case.threshold
    factor = clip_coefficient(case.norm, case.threshold)
    if len(parameters) > 1000:
        new = torch.stack([parameter.grad for parameter in parameters])
        torch.testing.assert_close(new, torch.stack(before) * factor, rtol=case.precision, atol=0)
        return
    for place, (parameter, old) in enumerate(zip(parameters, before, strict=True)):
        new = plain(parameter.grad)
        if old is None or not clips:
            assert (new is None) == (old is None)
            assert old is None or torch.equal(new, old)
            continue
        assert new is not None
        assert new.dtype is old.dtype
        if case.left is not None:
            expected = torch.tensor(case.left[place], dtype=torch.float64)
        else:
            expected = old.to(torch.complex128 if old.is_complex() else torch.float64) * factor
        torch.testing.assert_close(new.to(expected.dtype), expected, rtol=case.precision, atol=0)


@pytest.mark.parametrize("case", CLIPPED.values(), ids=CLIPPED)
def test_a_step_measures_and_leaves_what_is_defined(case):
    parameters = case.make()
    before, objects = [plain(parameter.grad) for parameter in parameters], [id(p.grad) for p in parameters]
    clipper = Clipper(parameters, Fixed(case.threshold))
    total = clipper.step()
    record, clips = clipper.last, case.norm > case.threshold
    assert total.shape == ()
    assert total.dtype in (torch.float32, torch.float64)
    assert not total.requires_grad
    assert record.total_norm == float(total) == pytest.approx(case.norm, rel=max(2e-6, case.precision), abs=0)
    assert record.coefficient == pytest.approx(clip_coefficient(case.norm, case.threshold), rel=2e-3, abs=0)
    assert (record.clipped, record.finite, record.skipped) == (clips, True, False)
    assert (clipper.policy.learned_norms, clipper.policy.zero_norms) == ((1, 0) if case.norm else (0, 1))
    assert [id(p.grad) for p in parameters] == objects
    assert_left(case, parameters, before)


@pytest.mark.parametrize("name", [name for name in CLIPPED if not name.startswith("100 000")])
def test_the_function_leaves_the_same(name):
    case = CLIPPED[name]
    parameters = case.make()
    before = [plain(parameter.grad) for parameter in parameters]
    assert float(clip_grad_norm_(parameters, case.threshold)) == pytest.approx(case.norm, rel=2e-6, abs=0)
    assert_left(case, parameters, before)


def wide_norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)))


BY_ITSELF = [
    name
    for name, case in CLIPPED.items()
    if case.norm <= 13 and not name.startswith(("overlapping", "one memory", "views of one memory", "denormal"))
]


@pytest.mark.parametrize("name", BY_ITSELF)
@pytest.mark.parametrize("threshold", [0.5, 1e-3])
def test_each_parameter_by_itself_is_left_within_the_threshold(name, threshold):
    parameters = [parameter for parameter in CLIPPED[name].make() if parameter.grad is not None]
    norms = [wide_norm(plain(parameter.grad)) for parameter in parameters]
    clipper = Clipper(parameters, Fixed(threshold), scope="parameter")
    clipper.step()
    for norm, parameter in zip(norms, parameters, strict=True):
        left = wide_norm(plain(parameter.grad))
        assert left == pytest.approx(norm * clip_coefficient(norm, threshold), rel=BRAIN, abs=0)
    assert clipper.last.total_norm == pytest.approx(CLIPPED[name].norm, rel=1e-6, abs=0)
    measured = sorted(filter(None, clipper.layer_norms().values()))
    assert measured == pytest.approx(sorted(filter(None, norms)), rel=1e-6, abs=0)


NONFINITE = {
    "nan": lambda: of(1, nan),
    "inf": lambda: of(1, inf),
    "minus inf": lambda: of(1, -inf),
    "nan and inf": lambda: of(nan, inf),
    "float64": lambda: of(1, inf, dtype=torch.float64),
    "float16 that has overflowed": lambda: [weight(torch.tensor([3e5]).half())],
    "bfloat16": lambda: of(1, nan, dtype=torch.bfloat16),
    "complex": lambda: of(1, complex(nan, 1), dtype=torch.complex64),
    "zero-dimensional": lambda: [weight(torch.tensor(nan))],
    "in one of two": lambda: [*of(1), *of(inf)],
    "beside the largest": lambda: [*of(LARGEST, LARGEST), *of(nan)],
    "expanded": lambda: [weight(torch.tensor(nan).expand(3))],
    "conjugated": lambda: [weight(torch.tensor([1j, complex(inf, 0)]).conj())],
    "sparse": lambda: [sparse([0, 2], [1, nan], 3)],
    "sparse whose infinities cancel": lambda: [sparse([1, 1], [inf, -inf], 3)],
    "wrappers": lambda: [wrapped(1.0), wrapped(nan)],
}


@pytest.mark.parametrize("make", NONFINITE.values(), ids=NONFINITE)
def test_what_is_not_finite_is_skipped_and_nothing_is_learned(make):
    parameters = make()
    clipper = Clipper(parameters, Fixed(1.0))
    with pytest.warns(UserWarning, match="non-finite gradient norm at step 0"):
        total = clipper.step()
    assert not isfinite(float(total))
    assert [parameter.grad for parameter in parameters] == [None] * len(parameters)
    record = clipper.last
    assert (record.clipped, record.finite, record.skipped) == (False, False, True)
    assert (clipper.policy.learned_norms, clipper.policy.nonfinite_norms, clipper.skipped_steps) == (0, 1, 1)


# torch has no norm of sparse gradients, and cannot write to conjugates that were not carried out.
@pytest.mark.parametrize("name", [name for name in NONFINITE if "sparse" not in name and name != "conjugated"])
def test_the_function_does_with_it_as_torch(name):
    ours, theirs = NONFINITE[name](), NONFINITE[name]()
    if name == "expanded":
        for parameter in theirs:
            parameter.grad = parameter.grad.clone()  # torch cannot write to it
    total, expected = clip_grad_norm_(ours, 1.0), torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    assert isnan(float(total)) == isnan(float(expected))
    assert isfinite(float(total)) == isfinite(float(expected)) == False  # noqa: E712
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(plain(a.grad), plain(b.grad), rtol=0, atol=0, equal_nan=True)


WHOLE = ("norm", "value", "param_rms")
ALL_MODES = (*WHOLE, "agc")
FLOATS, COO = r"floating-point or complex, got torch\.", r"dense or sparse COO tensors, got torch\."
DENSE = "unit-wise clipping needs dense, real gradients"
REFUSED = {
    # name: parameters, the modes that refuse them, and the message
    "int64": (lambda: whole_numbers(torch.int64), WHOLE, f"{FLOATS}int64"),
    "uint8": (lambda: whole_numbers(torch.uint8), WHOLE, f"{FLOATS}uint8"),
    "bool": (lambda: whole_numbers(torch.bool), WHOLE, f"{FLOATS}bool"),
    "sparse int64": (lambda: [sparse([0], [3], 3, dtype=torch.int64)], WHOLE, f"{FLOATS}int64"),
    "float8_e4m3fn": (lambda: eight_bits(torch.float8_e4m3fn), WHOLE, r"at least 16 bits, got torch.float8"),
    "float8_e5m2": (lambda: eight_bits(torch.float8_e5m2), WHOLE, r"at least 16 bits, got torch.float8"),
    "sparse CSR": (lambda: [weight(MATRIX.to_sparse_csr())], WHOLE, f"{COO}sparse_csr"),
    "jagged": (jagged, WHOLE, f"{COO}jagged"),
    "meta": (lambda: [on_meta()], ALL_MODES, r"on the meta device, which holds no numbers"),
    "meta, twice": (lambda: [on_meta(), on_meta()], ALL_MODES, r"on the meta device, which holds no numbers"),
    "of a class without a norm": (without_a_norm, WHOLE, r"is a Normless, which has no norm in torch"),
    "int64, by unit": (lambda: whole_numbers(torch.int64), ("agc",), f"{DENSE} .*got torch.int64"),
    "float8, by unit": (lambda: eight_bits(torch.float8_e5m2), ("agc",), f"{DENSE} .*got torch.float8_e5m2"),
    "sparse, by unit": (lambda: [sparse([0], [3], 3)], ("agc",), f"{DENSE} .*got torch.sparse_coo"),
    "sparse CSR, by unit": (lambda: [weight(MATRIX.to_sparse_csr())], ("agc",), f"{DENSE} .*got torch.sparse_csr"),
    "complex, by unit": (lambda: of(3, 4j, dtype=torch.complex64), ("agc",), f"{DENSE} .*got torch.complex64"),
}


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another"])
@pytest.mark.parametrize(
    ("make", "mode", "message"),
    [(make, mode, message) for make, modes, message in REFUSED.values() for mode in modes],
    ids=[f"{name}-{mode}" for name, (_, modes, _) in REFUSED.items() for mode in modes],
)
def test_what_cannot_be_clipped_is_refused_by_name(make, mode, message, beside):
    other = of(30.0, 40.0)[0]
    named = {"first": other} if beside else {}
    named |= {f"bad{place}": parameter for place, parameter in enumerate(make())}
    clipper = Clipper(named, RunningQuantile(), mode=mode)
    before = clipper.state_dict()
    with pytest.raises(TypeError, match=f"(?s){message}|'bad0'.*{message}") as raised:
        clipper.step()
    assert "'bad0'" in str(raised.value)
    assert clipper.state_dict() == before
    assert clipper.last is None
    assert other.grad.tolist() == [30.0, 40.0]
    if mode == "norm":
        with pytest.raises(TypeError, match=message):
            clip_grad_norm_(named, 1.0)


@pytest.mark.parametrize("threshold", [1.0, 1e9], ids=["clipped", "not clipped"])
@pytest.mark.parametrize("make", [lambda: of(3, 4j, dtype=torch.complex64), conjugated])
def test_complex_gradients_are_refused_by_value(make, threshold):
    clipper = Clipper({"wave": make()[0]}, Fixed(threshold), mode="value")
    with pytest.raises(TypeError, match=r"cannot be clipped by value, only by norm, got torch.complex64 for .*'wave'"):
        clipper.step()
    assert clipper.policy.learned_norms == 0
    with pytest.raises(TypeError, match="cannot be clipped by value, only by norm"):
        clip_grad_value_(make(), 1.0)


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("threshold", [1e-3, 1e9], ids=["clipped", "not clipped"])
def test_inference_tensors_are_refused(mode, threshold):
    clipper = Clipper({"layer": made_in_inference()[0]}, Fixed(threshold), mode=mode)
    with pytest.raises(TypeError, match="gradient of parameter 'layer' is an inference tensor"):
        clipper.step()
    assert clipper.policy.learned_norms == 0


def test_parameters_on_meta_without_a_gradient_are_no_hindrance():
    parameters = [weight(None, like=torch.zeros(2, device="meta")), *of(3, 4)]
    assert float(Clipper(parameters, Fixed(1.0)).step()) == 5.0


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("clip", [lambda ps: Clipper(ps, Fixed(1.0)).step(), lambda ps: clip_grad_norm_(ps, 1.0)])
@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate()], ids=str)
@pytest.mark.parametrize("value", [1.0, 1e30, 0.0, nan], ids=str)
def test_distributed_tensors_are_as_whole_ones(mesh, clip, placement, value):
    def both() -> tuple[list[Tensor], list[Tensor]]:
        whole = weight(MATRIX * value)
        split = nn.Parameter(DTensor.from_local(torch.zeros_like(MATRIX), mesh, [placement]))
        split.grad = DTensor.from_local(MATRIX * value, mesh, [placement])
        return [whole, *of(value)], [split, *of(value)]

    whole, split = both()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="non-finite")
        norms = clip(whole), clip(split)
    torch.testing.assert_close(float(norms[0]), float(norms[1]), rtol=1e-6, atol=0, equal_nan=True)
    for a, b in zip(whole, split, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            local = b.grad.full_tensor() if isinstance(b.grad, DTensor) else b.grad
            torch.testing.assert_close(local, a.grad, rtol=1e-6, atol=0, equal_nan=True)


WARMUP = 3
NORMS = [1.0, 1.5, 0.7, 2.0, 0.9, 1.2, 1.1, 0.8]
MOMENTS = {
    "first step": {0: [nan]},
    "second step, in the warm-up": {1: [inf]},
    "last of the warm-up": {2: [-inf]},
    "first after the warm-up": {3: [nan]},
    "second after the warm-up": {4: [inf]},
    "last step": {8: [nan]},
    "several at the start": {0: [nan, inf, nan, nan, inf]},
    "several in the warm-up": {2: [inf, inf, nan]},
    "several after it": {5: [nan, -inf, inf, nan]},
    "every second step": {step: [nan if step % 2 else inf] for step in range(8)},
    "beside zeros": {0: [0.0, nan], 2: [inf, 0.0], 6: [0.0, 0.0, nan]},
}


@pytest.mark.parametrize("moments", MOMENTS.values(), ids=MOMENTS)
@pytest.mark.parametrize("scope", ["global", "parameter"])
def test_useless_gradients_at_any_moment_cost_their_own_step_only(moments, scope):
    def run(norms: list[float]) -> tuple[Records, Tensor, Clipper]:
        parameter, records = nn.Parameter(torch.zeros(2)), Records()
        optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
        clipper = Clipper([parameter], RunningQuantile(warmup_steps=WARMUP), scope=scope, sinks=[records])
        for norm in norms:
            parameter.grad = torch.tensor([0.6, 0.8]) * norm
            clipper.step()
            if norm != 0:
                optimizer.step()
        return records, parameter.detach(), clipper

    mixed = [norm for step in range(9) for norm in [*moments.get(step, []), *NORMS[step : step + 1]]]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="non-finite")
        records, weights, clipper = run(mixed)
    expected_records, expected_weights, undisturbed = run(NORMS)
    useful = [record for record, norm in zip(records, mixed, strict=True) if isfinite(norm) and norm > 0]
    for ours, theirs in zip(useful, expected_records, strict=True):
        for name in ("total_norm", "threshold", "coefficient"):
            assert getattr(ours, name) == getattr(theirs, name)
    assert torch.equal(weights, expected_weights)
    assert [record.skipped for record in records] == [not isfinite(norm) for norm in mixed]
    assert [record.finite for record in records] == [isfinite(norm) for norm in mixed]
    assert clipper.threshold == undisturbed.threshold
    assert clipper.skipped_steps == sum(not isfinite(norm) for norm in mixed)


def test_a_parameter_that_is_frozen_and_thawed_takes_part_when_it_has_a_gradient():
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    clipper, norms = Clipper([first, second], Fixed(100.0)), []
    for trained in (True, False, True):
        second.requires_grad_(trained)
        for parameter in (first, second):
            parameter.grad = None
        (first @ torch.tensor([3.0, 4.0]) + (second * 12.0).sum()).backward()
        norms.append(float(clipper.step()))
    assert norms == [13.0, 5.0, 13.0]
