"""Clipping beside opacus, whose optimizer makes the gradients again within its step."""

import pytest
import torch

import autoclip

opacus = pytest.importorskip("opacus")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Secure RNG turned off"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha"),
]


def private():
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(32, 4)), batch_size=8)
    return opacus.PrivacyEngine(accountant="rdp").make_private(
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
        data_loader=loader,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )


def test_an_attached_clipper_clips_what_opacus_has_made():
    net, optimizer, loader = private()
    clipper = autoclip.attach(optimizer, autoclip.Fixed(1e-3))
    before = [parameter.detach().clone() for parameter in net.parameters()]
    for (inputs,) in loader:
        optimizer.zero_grad()
        net(inputs).square().mean().backward()
        optimizer.step()
    moved = torch.stack([(one.detach() - old).norm() for one, old in zip(net.parameters(), before, strict=True)]).norm()
    assert clipper.state_dict()["steps"] == len(loader) == 4
    assert 0 < float(moved) <= 4e-3 * (1 + 1e-5)
