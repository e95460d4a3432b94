"""Every optimizer of torch and of `pytorch_optimizer`, and other packages' wrappers, with an attached clipper."""

import copy
import warnings

import pytest
import torch

import autoclip

pytorch_optimizer = pytest.importorskip("pytorch_optimizer")
schedulefree = pytest.importorskip("schedulefree")

OTHER_LOOPS = {
    "AdaLOMO": "updates within backward, without gradients to clip",
    "LOMO": "updates within backward, without gradients to clip",
    "DeMo": "communicates its momentum between ranks",
    "SafeFP16Optimizer": "has its own backward(loss)",
    "SophiaH": "needs gradients with a graph",
    "AdaHessian": "needs gradients with a graph",
    "AliG": "needs a closure with a graph",
    "SparseAdam": "takes sparse gradients only",
    "LBFGS": "is told not to be clipped: test_attach.py",
}


def moves_by_itself(cls):
    """Wrappers, and optimizers that change parameters before they call their closure: a warning says so."""
    return cls.__name__ in {"Lookahead", "Magma", "ScheduleFreeWrapper", "TRAC"} or cls.__name__.endswith(
        ("SAM", "Closure")
    )


def classes():
    for package in (torch.optim, pytorch_optimizer, schedulefree):
        for name, cls in sorted(vars(package).items()):
            is_one = isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and "step" in dir(cls)
            if is_one and not name.startswith("_") and name != "Optimizer" and name not in OTHER_LOOPS:
                yield pytest.param(cls, id=f"{package.__name__.partition('.')[0]}.{name}")


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5, bias=False), torch.nn.Tanh(), torch.nn.Linear(5, 4, bias=False))


def made(cls, net):
    """An optimizer of this class, by the first way of making it that works."""
    parameters = list(net.parameters())
    muon = [{"params": parameters, "use_muon": True}]
    ways = [
        lambda: cls(parameters),
        lambda: cls(parameters, lr=1e-2),
        lambda: cls(parameters, num_iterations=100),
        lambda: cls(parameters, num_iterations=100, num_batches_per_epoch=10),
        lambda: cls(parameters, num_data=16),
        lambda: cls(muon),
        lambda: cls(net),
        lambda: cls(torch.optim.SGD(parameters, lr=0.1, momentum=0.9)),
        lambda: cls(parameters, torch.optim.SGD, lr=0.1),
        lambda: cls(parameters, base_optimizer=torch.optim.SGD, lr=0.1, momentum=0.9),
        lambda: cls(net, parameters, base_optimizer=torch.optim.SGD, lr=0.1),
        lambda: cls(parameters, torch.optim.SGD(parameters, lr=0.1), pytorch_optimizer.ProportionScheduler),
    ]
    for way in ways:
        try:
            optimizer = way()
            optimizer.param_groups[0]["params"][0]
        except Exception:  # noqa: BLE001, S112 - the next way
            continue
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()
        return optimizer
    return pytest.skip(f"{cls.__name__} is made in a way of its own")


def backward(net, scale=1.0):
    inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    loss = scale * (net(inputs) - inputs[:, :4]).square().mean()
    loss.backward()
    return loss


def take(optimizer, net, clipper, scale=1.0):
    """One step; with a closure where the optimizer wants one."""
    backward(net, scale)
    try:
        optimizer.step()
    except Exception as error:
        if "closure" not in f"{type(error).__name__} {error}".lower():
            raise

        def closure():
            optimizer.zero_grad()
            return backward(net, scale)

        optimizer.step(closure)


def numbers(net, optimizer):
    """Parameters, and everything in the optimizer's state that is a number or a tensor."""
    found = [parameter.detach().clone() for parameter in net.parameters()]

    def walk(value):
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                walk(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)
        elif isinstance(value, int | float | torch.Tensor):
            found.append(torch.as_tensor(value).detach().double().cpu().clone())

    walk(copy.deepcopy(optimizer.state_dict()))
    return found


def are_equal(first, second):
    return len(first) == len(second) and all(
        torch.equal(one.double(), other.double()) for one, other in zip(first, second, strict=True)
    )


@pytest.fixture(autouse=True)
def told():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield told


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("cls", list(classes()))
def test_every_step_is_clipped_and_a_skipped_one_changes_nothing(cls, set_to_none, told):
    net = network()
    optimizer = made(cls, net)
    clipper = autoclip.attach(optimizer, autoclip.Fixed(1e-3))
    for _ in range(5):
        net.zero_grad(set_to_none=set_to_none)
        take(optimizer, net, clipper)
    assert clipper.clip_rate == 1.0
    assert clipper.last.step >= 4
    before = numbers(net, optimizer)
    steps = clipper.state_dict()["steps"]
    net.zero_grad(set_to_none=set_to_none)
    take(optimizer, net, clipper, scale=float("nan"))
    assert clipper.state_dict()["steps"] > steps
    assert clipper.last.skipped
    if moves_by_itself(cls):
        assert any("may have changed parameters all the same" in str(one.message) for one in told)
    else:
        assert are_equal(numbers(net, optimizer), before)
    if not moves_by_itself(cls):
        net.zero_grad(set_to_none=set_to_none)
        take(optimizer, net, clipper)
        assert clipper.last.clipped
        assert all(parameter.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize("cls", list(classes()))
def test_a_skipped_response_and_a_state_and_a_conversion(cls, told):
    net = network()
    optimizer = made(cls, net)
    clipper = autoclip.attach(optimizer, autoclip.Fixed(1e6), response="skip")
    for _ in range(2):
        take(optimizer, net, clipper)
        net.zero_grad()
    before = numbers(net, optimizer)
    take(optimizer, net, clipper, scale=1e12)
    assert clipper.last.skipped
    if moves_by_itself(cls):
        assert any("may have changed parameters all the same" in str(one.message) for one in told)
    else:
        assert are_equal(numbers(net, optimizer), before)
    state = clipper.state_dict()
    clipper.detach()
    again = autoclip.attach(optimizer, autoclip.Fixed(1e6), response="skip")
    again.load_state_dict(state)
    assert again.last is None
    assert again.state_dict() == state
    net.double()
    net.float()
