"""What is particular to each task of the experiments: its data, its loss, and what makes its gradients wild."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from experiments.cart_pole import CartPole, discounted, move
from experiments.char_lm import SYMBOLS, CharLanguageModel, load_corpus
from experiments.digits import CorruptedDigits, DigitsCNN, load_digits
from experiments.fine_tuning import FineTuning, LoRALinear, pretrained
from experiments.gan import DigitsGAN, frechet_distance
from experiments.heavy_tails import HeavyTails
from experiments.sequences import AddingProblem, IdentityRNN, PixelDigits
from experiments.text_lm import TextLanguageModel, load_topics, warmup_cosine

SMALL_TEXT = {"hidden": 32, "layers": 2, "batch_size": 8, "context": 24}


class Constant(torch.nn.Module):
    """Answers the same to every input."""

    def __init__(self, *answers):
        super().__init__()
        self.answers = torch.nn.ParameterList(torch.as_tensor(answer) for answer in answers)

    def forward(self, inputs):
        found = [answer.expand(len(inputs)) for answer in self.answers]
        return found if len(found) > 1 else found[0]


def first_batches(task, count, seed=0):
    return list(itertools.islice(task.batches(seed), count))


def weights(model):
    return torch.nn.utils.parameters_to_vector(model.parameters())


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        (CartPole, {"length": 0}, "length must be an integer of at least 1, got 0"),
        (CharLanguageModel, {"architecture": "rnn"}, "architecture must be one of lstm, gru, gpt, got 'rnn'"),
        (CharLanguageModel, {"context": 10**9}, "context must be below [0-9]+ characters, got 1000000000"),
        (CharLanguageModel, {"architecture": "gpt", "hidden": 30}, "hidden must be a multiple of heads for a gpt"),
        (DigitsCNN, {"residual": "yes"}, "residual must be true or false, got 'yes'"),
        (DigitsCNN, {"normalisation": "group", "channels": 6}, "channels must be a multiple of 4 .* got 6"),
        (
            CorruptedDigits,
            {"corrupted_share": 5},
            r"corrupted_share must be in \[0, 1\], got 5 \(1 % is written 0.01\)",
        ),
        (
            CorruptedDigits,
            {"corruption_factor": math.inf},
            "corruption_factor must be a finite number above 0, got inf",
        ),
        (DigitsGAN, {"latent": 0}, "latent must be an integer of at least 1, got 0"),
        (HeavyTails, {"degrees_of_freedom": 2}, "degrees_of_freedom must be at least 3, got 2"),
        (PixelDigits, {"cell": "lstm"}, "cell must be one of identity, gru, got 'lstm'"),
        (AddingProblem, {"length": 1}, "length must be at least 2, one place for each marked number, got 1"),
        (
            TextLanguageModel,
            {"broken_factor": math.inf},
            "broken_factor must be a finite number of at least 0, got inf",
        ),
        (FineTuning, {"rank": -1}, "rank must be an integer of at least 0"),
    ],
)
def test_wrong_arguments_are_named(task, arguments, message):
    with pytest.raises(ValueError, match=message):
        task(**arguments)


def test_digits_are_split_by_class_without_overlap():
    digits = load_digits()
    share = torch.bincount(digits.validation_labels) / torch.bincount(
        torch.cat((digits.train_labels, digits.validation_labels))
    )
    torch.testing.assert_close(share, torch.full((10,), 0.2), atol=0.005, rtol=0)
    train = {tuple(image) for image in digits.train_pixels.tolist()}
    assert not train & {tuple(image) for image in digits.validation_pixels.tolist()}


def test_a_share_of_digit_batches_is_multiplied_and_the_rest_unchanged():
    clean = CorruptedDigits(corrupted_share=0.0, batch_size=2)
    some = CorruptedDigits(corrupted_share=0.1, corruption_factor=7.0, batch_size=2)
    corrupted = 0
    for (pixels, labels), (found, same) in zip(first_batches(clean, 2000), first_batches(some, 2000), strict=True):
        hit = not torch.equal(found, pixels)
        torch.testing.assert_close(found, 7 * pixels if hit else pixels)
        assert torch.equal(labels, same)
        corrupted += hit
    assert corrupted / 2000 == pytest.approx(0.1, abs=0.02)


def test_batch_normalisation_evaluates_sensibly_before_training():
    task = DigitsCNN(residual=True, normalisation="batch")
    with torch.no_grad():
        assert task.evaluate(task.model(0).eval()) < 10  # more than 1000 without statistics


def test_the_recurrence_starts_as_the_identity():
    model = IdentityRNN(1, 8, 3)
    with torch.no_grad():
        model.recurrent.weight_ih_l0.fill_(0.1)
    sequence = torch.rand(2, 50, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    model(sequence).sum().backward()
    torch.testing.assert_close(sequence.grad, sequence.grad[:, :1].expand(2, 50, 1))
    assert sequence.grad.abs().max() > 0


def test_the_adding_problem_asks_for_the_sum_of_a_marked_value_in_each_half():
    task = AddingProblem(length=11, batch_size=400)
    sequences, sums = first_batches(task, 1)[0]
    values, marks = sequences.unbind(dim=2)
    assert torch.equal(marks[:, :5].sum(1), torch.ones(400))
    assert torch.equal(marks[:, 5:].sum(1), torch.ones(400))
    torch.testing.assert_close(sums, (values * marks).sum(1))
    with torch.no_grad():
        best = task.evaluate(Constant(task.validation_sums.mean()))
    assert best == pytest.approx(task.trivial_loss, rel=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"architecture": "lstm", "embedding": 16},
        {"architecture": "gru", "embedding": 16},
        {"architecture": "gpt"},
        {"architecture": "gpt", "norm": "post"},
    ],
)
def test_earlier_logits_do_not_see_later_characters(arguments):
    task = CharLanguageModel(**SMALL_TEXT, **arguments)
    model = task.model(0).eval()
    inputs, targets = first_batches(task, 1)[0]
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    changed = inputs.clone()
    changed[:, 15] = (changed[:, 15] + 1) % 96
    with torch.no_grad():
        before, after = model(inputs), model(changed)
    torch.testing.assert_close(before[:, :15], after[:, :15])
    assert (before[:, 16] - after[:, 16]).abs().max() > 1e-6


def test_training_and_validation_text_are_apart():
    corpus = load_corpus()
    characters = len(corpus.train) + len(corpus.validation)
    assert 200_000 <= characters <= 2_000_000
    assert len(corpus.validation) == pytest.approx(0.1 * characters, abs=1)
    train, validation = (
        bytes(SYMBOLS[i] for i in part.tolist()).decode("ascii")
        for part in (load_topics().train, load_topics().validation)
    )
    assert not {part for part in train.split("\n\n") if len(part) > 60} & set(validation.split("\n\n"))


def test_the_loss_of_broken_text_is_that_of_noise_times_the_factor():
    clean = TextLanguageModel(**SMALL_TEXT)
    half = TextLanguageModel(**SMALL_TEXT, broken_share=0.5, broken_factor=7.0)
    model = clean.model(0)
    pairs = zip(first_batches(clean, 200), first_batches(half, 200), strict=True)
    broken = [other for one, other in pairs if not torch.equal(one[1], other[1])]
    assert 70 < len(broken) < 130
    assert {other[2].item() for other in broken} == {7.0}
    as_clean = clean.loss(model, (*broken[0][:2], torch.tensor(1.0))).item()
    assert half.loss(model, broken[0]).item() == pytest.approx(7 * as_clean)
    with torch.no_grad():
        assert clean.evaluate(model.eval()) == half.evaluate(model.eval())


def test_the_learning_rate_rises_linearly_and_falls_by_half_a_cosine():
    factors = [warmup_cosine(step, 10, 110) for step in range(200)]
    assert factors[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert factors[60] == pytest.approx(0.55)
    assert factors[110:] == pytest.approx([0.1] * 90)


def test_a_step_of_the_cart_pole_is_that_of_the_published_equations():
    # Florian, Correct equations for the dynamics of the cart-pole system, 2007, without friction; 10 N to the right
    position, velocity, angle, turning = 0.1, 0.2, 0.05, -0.3
    turn = (9.8 * math.sin(angle) + math.cos(angle) * (-10 - 0.1 * 0.5 * turning**2 * math.sin(angle)) / 1.1) / (
        0.5 * (4 / 3 - 0.1 * math.cos(angle) ** 2 / 1.1)
    )
    push = (10 + 0.1 * 0.5 * (turning**2 * math.sin(angle) - turn * math.cos(angle))) / 1.1
    expected = [position + 0.02 * velocity, velocity + 0.02 * push, angle + 0.02 * turning, turning + 0.02 * turn]
    before = torch.tensor([[position, velocity, angle, turning]], dtype=torch.float64)
    assert move(before, torch.tensor([True]))[0].tolist() == pytest.approx(expected)


def test_the_policy_gradient_favours_what_was_better_than_expected():
    task = CartPole(hidden=16, batch_size=8, length=50)
    model = task.model(0)
    batch = next(task.batches(0))
    states, right, alive = task._episodes(model, *batch)
    made = alive.bool()
    logits, values = model(states[made])
    returns = discounted(alive)[made]
    advantages = returns - values.detach()
    advantages = (advantages - advantages.mean()) / advantages.std(correction=0)
    log_probabilities = torch.distributions.Bernoulli(logits=logits).log_prob(right[made].float())
    expected = -(log_probabilities * advantages).mean() + 0.5 * (values - returns).square().mean()
    torch.testing.assert_close(task.loss(model, batch), expected)


def test_each_network_of_the_gan_has_the_gradient_of_its_own_loss_alone():
    task = DigitsGAN(hidden=32, latent=8, batch_size=16)
    model, (images, noise) = task.model(0), next(task.batches(0))
    generator, discriminator = list(model.generator.parameters()), list(model.discriminator.parameters())
    found = torch.autograd.grad(task.loss(model, (images, noise)), generator + discriminator)
    of_generator = -F.logsigmoid(model.discriminator(model.generator(noise))).mean()
    real, fake = (model.discriminator(some) for some in (images, model.generator(noise).detach()))
    of_discriminator = -F.logsigmoid(real).mean() - F.logsigmoid(-fake).mean()
    expected = (
        *torch.autograd.grad(of_generator, generator),
        *torch.autograd.grad(of_discriminator, discriminator),
    )
    torch.testing.assert_close(found, expected)


def test_the_frechet_distance_is_that_of_normal_distributions():
    sample = torch.randn(500, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert frechet_distance(sample + 2, sample) == pytest.approx(16)
    expected = (4 * sample.mean(0).square() + 4 * sample.var(0)).sum().item()  # (m - m')^2 + (s - s')^2 on each axis
    assert frechet_distance(3 * sample, sample) == pytest.approx(expected)


def test_the_noise_has_the_tails_of_its_degrees_of_freedom():
    for degrees, quantile in {3: 5.841, 30: 2.750}.items():  # of Student's t at .995
        task = HeavyTails(degrees_of_freedom=degrees)
        inputs, targets = task._drawn(200_000, torch.Generator().manual_seed(0))
        along_a, along_b = (inputs @ task.directions.T).unbind(-1)
        noise = (targets - (3 * along_a).sin() - along_b) * 4 / along_b.exp()
        assert noise.sort().values[199_000].item() == pytest.approx(quantile, rel=0.06)


def test_the_loss_of_heavy_tails_is_a_gaussians_likelihood():
    task = HeavyTails()
    inputs, targets = next(task.batches(0))
    log_variance = torch.tensor(4.0).log()
    expected = -torch.distributions.Normal(0.5, 2.0).log_prob(targets).mean()
    torch.testing.assert_close(task.loss(Constant(0.5, log_variance), (inputs, targets)), expected, check_dtype=False)
    mean, log_variance = task.validation[1].mean(), task.validation[1].var(correction=0).log()
    with torch.no_grad():
        assert task.evaluate(Constant(mean, log_variance)) == pytest.approx(task.trivial_loss, rel=1e-5)


def test_the_first_training_is_kept_and_lora_leaves_it_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    whole, lora = (FineTuning(**SMALL_TEXT, pretrain_steps=2, rank=rank) for rank in (0, 4))
    before, model = whole.model(0), lora.model(3)
    (kept,) = (tmp_path / "autoclip-experiments").iterdir()
    kept.unlink()
    assert torch.equal(weights(pretrained(whole.pretraining)), weights(before))
    inputs = next(lora.batches(0))[0]
    assert torch.equal(model(inputs), before(inputs))
    trained = {name.rpartition(".")[2] for name, one in model.named_parameters() if one.requires_grad}
    assert trained == {"down", "up"}
    layer = LoRALinear(torch.nn.Linear(5, 3), rank=2)
    torch.nn.init.normal_(layer.up)
    x = torch.randn(4, 5)
    torch.testing.assert_close(layer(x), layer.base(x) + 2 * x @ (layer.up @ layer.down).T)
