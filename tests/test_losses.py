"""The loss of a step: the mean over micro-batches; over ranks it is tested with several processes."""

import pytest
import torch
import torch.distributed

from autoclip.clipper.losses import ReportedLosses, StepLoss, process_group

PARAMETER = torch.nn.Parameter(torch.zeros(1))


def mean_of(losses):
    reported = ReportedLosses()
    for loss in losses:
        reported.add(loss)
    return StepLoss(reported.mean(), None, PARAMETER).read()


@pytest.mark.parametrize(
    ("losses", "mean"),
    [
        ([], None),
        ([2.5], 2.5),
        ([torch.tensor(2.5)], 2.5),
        ([torch.tensor([[2.5]])], 2.5),
        ([1.0, 2.0, 6.0], 3.0),
        ([torch.tensor(1.0), 2.0, torch.tensor(6.0)], 3.0),
        ([torch.tensor(1.0, requires_grad=True), torch.tensor(2.0, dtype=torch.float64)], 1.5),
        ([7], 7.0),
    ],
)
def test_the_mean_is_a_float(losses, mean):
    assert mean_of(losses) == mean


def test_a_text_is_no_loss():
    with pytest.raises(TypeError, match=r"got the text '0\.5': give float\(\.\.\.\) of it"):
        ReportedLosses().add("0.5")
    with pytest.raises(TypeError, match="must be a number or a tensor of one"):
        StepLoss("0.5", None, PARAMETER)


def test_more_than_one_number_is_refused():
    with pytest.raises(ValueError, match=r"one number, such as the mean over the batch, got shape \(3,\)"):
        StepLoss(torch.zeros(3), None, PARAMETER)
    reported = ReportedLosses()
    with pytest.raises(ValueError, match="one number"):
        reported.add(torch.zeros(3))
    assert reported.mean() is None


def test_forgetting_begins_anew():
    reported = ReportedLosses()
    reported.add(5.0)
    reported.forget()
    assert (reported.count, reported.mean()) == (0, None)
    reported.add(torch.tensor(2.0))
    assert reported.mean() == 2.0


def test_without_processes_there_is_no_group():
    assert process_group("world") is None
    assert process_group(None) is None
    with pytest.raises(ValueError, match="process_group must be 'world', None or a group"):
        process_group("wrld")


@pytest.fixture
def world_of_one(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_alone_in_the_world_there_is_nothing_to_average(world_of_one):
    assert process_group("world") is None


@pytest.mark.parametrize("loss", [2.5, torch.tensor(2.5), torch.tensor(2.5, dtype=torch.float16)])
def test_a_given_group_averages(world_of_one, loss):
    group = torch.distributed.group.WORLD
    assert process_group(group) is group
    given = loss
    assert StepLoss(loss, group, PARAMETER).read() == 2.5
    assert float(given) == 2.5
    assert StepLoss(None, group, PARAMETER).read() is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("loss", "count"), [(2.3, 512), (2000.0, 40)])
def test_many_losses_in_half_precision_keep_their_mean(dtype, loss, count):
    assert mean_of([torch.tensor(loss, dtype=dtype)] * count) == torch.tensor(loss, dtype=dtype).item()
