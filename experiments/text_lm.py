"""Next-character prediction on English text by a pre-norm GPT, with warm-up and cosine decay of the learning rate."""

import functools
import math
from collections.abc import Iterator
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

from experiments.char_lm import EVERYTHING_ELSE, SYMBOLS, CharLanguageModel, Corpus, corpus_of, next_character_loss
from experiments.checks import require_nonnegative, require_positive, require_share

LAST_FACTOR = 0.1


@functools.cache
def load_topics() -> Corpus:
    """Concatenate the pages that Python's `help()` shows on its topics; the last tenth is the validation text.

    A paragraph that several pages share is kept once, so that none is in both parts. Other characters than the 96
    `SYMBOLS` are dropped. The text depends on the version of Python.
    """
    pages = "\n\n".join(topics[name] for name in sorted(topics)).encode().translate(None, EVERYTHING_ELSE)
    paragraphs = dict.fromkeys(paragraph.strip(b"\n") for paragraph in pages.split(b"\n\n"))
    return corpus_of(b"\n\n".join(paragraphs))


def warmup_cosine(step: int, warmup_steps: int, decay_steps: int) -> float:
    """Rise linearly to 1 at step `warmup_steps` (counted from 1), then fall by half a cosine to .1 at `decay_steps`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, decay_steps - warmup_steps))
    return LAST_FACTOR + (1 - LAST_FACTOR) * (1 + math.cos(math.pi * progress)) / 2


class TextLanguageModel(CharLanguageModel):
    """Predict each next character of English text by a pre-norm GPT, under a learning rate that rises and falls.

    Why clipping matters: under AdamW hardly, as long as the data are clean. With `broken_share`, that share of the
    batches has random targets and `broken_factor` times the loss, as a wrongly masked or joined batch may have. Adam
    divides by the size of earlier gradients, which were small: one such batch makes some of its longest steps. The
    validation text is never broken.

    Shapes: a batch is (inputs, targets, weight), int64 (batch_size, context) twice and float32 (), the weight of the
    batch's loss. The schedule is `warmup_cosine`.

    References: A. Radford et al., Language models are unsupervised multitask learners, 2019 (pre-norm GPT). I.
    Loshchilov, F. Hutter, SGDR, 2017, arXiv 1608.03983 (cosine decay); Decoupled weight decay regularization, 2019,
    arXiv 1711.05101 (AdamW).
    """

    data = "topics of Python's help(), in English"

    def __init__(
        self,
        *,
        hidden: int = 96,
        layers: int = 3,
        heads: int = 4,
        batch_size: int = 16,
        context: int = 64,
        warmup_steps: int = 50,
        decay_steps: int = 600,
        broken_share: float = 0.0,
        broken_factor: float = 10.0,
    ) -> None:
        super().__init__(
            architecture="gpt", hidden=hidden, layers=layers, heads=heads, batch_size=batch_size, context=context
        )
        require_positive(warmup_steps=warmup_steps, decay_steps=decay_steps)
        require_share(broken_share=broken_share)
        require_nonnegative(broken_factor=broken_factor)
        self.warmup_steps = warmup_steps
        self.decay_steps = decay_steps
        self.broken_share = broken_share
        self.broken_factor = broken_factor

    def batches(self, seed: int) -> Iterator[tuple[Tensor, ...]]:
        """Endless windows of the training text, some of them broken."""
        generator = torch.Generator().manual_seed(seed)
        for inputs, targets in super().batches(seed):
            broken = bool(torch.rand((), generator=generator) < self.broken_share)
            noise = torch.randint(len(SYMBOLS), targets.shape, generator=generator)
            yield inputs, noise if broken else targets, torch.tensor(self.broken_factor if broken else 1.0)

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean cross-entropy over all characters of a batch, times its weight."""
        inputs, targets, weight = batch
        return weight * next_character_loss(model, inputs, targets)

    def lr_factor(self, step: int) -> float:
        """Warm-up and decay of the learning rate."""
        return warmup_cosine(step, self.warmup_steps, self.decay_steps)

    def describe(self) -> dict[str, str | int | float]:
        """Facts for reports."""
        return super().describe() | {"broken_share": self.broken_share}

    def _corpus(self) -> Corpus:
        return load_topics()
