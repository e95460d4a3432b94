"""Next-character prediction on the source code of Python's standard library, by an LSTM, a GRU or a small GPT."""

import functools
import hashlib
import pathlib
import string
import sysconfig
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.checks import require_choice, require_positive, seeded

SYMBOLS = ("\n" + "".join(sorted(string.printable[:95]))).encode("ascii")
EVERYTHING_ELSE = bytes(set(range(256)) - set(SYMBOLS))
CORPUS_CHARACTERS = 2_000_000
VALIDATION_SHARE = 0.1
VALIDATION_WINDOWS = 200
VALIDATION_BATCH = 50


class Corpus(NamedTuple):
    """Text as indices into `SYMBOLS` (uint8, one dimension), and the sha256 of the text and the place of the split."""

    train: Tensor
    validation: Tensor
    sha256: str


@functools.cache
def load_corpus() -> Corpus:
    """Concatenate the standard library's top-level modules in sorted order; the last tenth is the validation text.

    Other characters than the 96 `SYMBOLS` are dropped. The text depends on the version of Python: compare
    `Corpus.sha256` before comparing losses across machines.
    """
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    text = b""
    for module in sorted(folder.glob("*.py")):
        text += module.read_bytes().translate(None, EVERYTHING_ELSE)
        if len(text) >= CORPUS_CHARACTERS:
            break
    text = text[:CORPUS_CHARACTERS]
    if len(text) < CORPUS_CHARACTERS // 10:
        raise RuntimeError(
            f"only {len(text)} characters of Python source in {folder}: this task needs a Python installation that "
            "has its standard library as plain .py files (not in a zip archive)"
        )
    return corpus_of(text)


def corpus_of(text: bytes) -> Corpus:
    """Turn a text of `SYMBOLS` alone into indices; its last tenth is for validation."""
    split = int((1 - VALIDATION_SHARE) * len(text))
    index_of_byte = torch.zeros(256, dtype=torch.uint8)
    index_of_byte[list(SYMBOLS)] = torch.arange(len(SYMBOLS), dtype=torch.uint8)
    indices = index_of_byte[torch.frombuffer(bytearray(text), dtype=torch.uint8).long()]
    sha256 = hashlib.sha256(text + f"|split {split}".encode()).hexdigest()
    return Corpus(indices[:split], indices[split:], sha256)


def next_character_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats per character; inputs and targets are int64 (B, T)."""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


class RecurrentLM(nn.Module):
    """Embedding, LSTM or GRU from a zero state, linear read-out: indices (B, T) -> logits (B, T, symbols)."""

    def __init__(self, architecture: str, hidden: int, embedding: int, layers: int) -> None:
        super().__init__()
        cell = nn.LSTM if architecture == "lstm" else nn.GRU
        self.embed = nn.Embedding(len(SYMBOLS), embedding)
        self.recurrent = cell(embedding, hidden, num_layers=layers, batch_first=True)
        self.readout = nn.Linear(hidden, len(SYMBOLS))

    def forward(self, characters: Tensor) -> Tensor:
        """Logits of the next character at every place."""
        states, _ = self.recurrent(self.embed(characters))
        logits: Tensor = self.readout(states)
        return logits


class TransformerLayer(nn.Module):
    """Causal self-attention and an MLP, (B, T, width) -> (B, T, width).

    `pre`: x + f(norm(x)), the identity path stays free. `post`: norm(x + f(x)), as in the original transformer.
    """

    def __init__(self, width: int, heads: int, norm: str) -> None:
        super().__init__()
        self.heads = heads
        self.norm_first = norm == "pre"
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Apply both sub-layers."""
        if self.norm_first:
            x = x + self._attend(self.attention_norm(x))
            x = x + self.mlp(self.mlp_norm(x))
        else:
            x = self.attention_norm(x + self._attend(x))
            x = self.mlp_norm(x + self.mlp(x))
        return x

    def _attend(self, x: Tensor) -> Tensor:
        per_head = self.query_key_value(x).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, heads, width / heads)
        query, key, value = per_head.permute(2, 0, 3, 1, 4)  # each (B, heads, T, width / heads)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.attention_out(mixed.transpose(1, 2).flatten(2))
        return out


class GPT(nn.Module):
    """Decoder-only transformer with learned positions: indices (B, T <= context) -> logits (B, T, symbols)."""

    def __init__(self, width: int, layers: int, heads: int, norm: str, context: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(SYMBOLS), width)
        self.positions = nn.Embedding(context, width)
        self.layers = nn.Sequential(*(TransformerLayer(width, heads, norm) for _ in range(layers)))
        self.final_norm = nn.LayerNorm(width) if norm == "pre" else nn.Identity()
        self.readout = nn.Linear(width, len(SYMBOLS))
        for embedding in (self.embed, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, characters: Tensor) -> Tensor:
        """Logits of the next character at every place."""
        places = torch.arange(characters.shape[1], device=characters.device)
        x = self.layers(self.embed(characters) + self.positions(places))
        logits: Tensor = self.readout(self.final_norm(x))
        return logits


class CharLanguageModel:
    """Predict each next character of Python source code; the loss is the mean cross-entropy in nats per character.

    Why clipping matters: back-propagation through 64 steps of a recurrent network multiplies 64 Jacobians, so now and
    then a gradient is far longer than usual, and at a high learning rate one such step undoes the training. A post-norm
    transformer has its largest gradients at the start, near the output, and leaves the trivial loss late or never
    unless the rate is warmed up or the norm is bounded; a pre-norm one is the tame control.

    Shapes: a batch is (inputs, targets), both int64 (batch_size, context), the targets one character further on.
    `hidden` is the state size of a recurrent network and the width of the GPT; `embedding` is read by `lstm` and `gru`
    only, `heads` and `norm` by `gpt` only.

    References: R. Pascanu, T. Mikolov, Y. Bengio, On the difficulty of training recurrent neural networks, 2013,
    arXiv 1211.5063. A. Vaswani et al., Attention is all you need, 2017, arXiv 1706.03762 (post-norm). R. Xiong et al.,
    On layer normalization in the transformer architecture, 2020, arXiv 2002.04745 (pre- against post-norm).
    """

    data = "source of Python's standard library"

    def __init__(
        self,
        *,
        architecture: str = "lstm",
        hidden: int = 128,
        embedding: int = 64,
        layers: int = 1,
        heads: int = 4,
        norm: str = "pre",
        batch_size: int = 32,
        context: int = 64,
    ) -> None:
        require_choice("architecture", architecture, ("lstm", "gru", "gpt"))
        require_choice("norm", norm, ("pre", "post"))
        require_positive(
            hidden=hidden, embedding=embedding, layers=layers, heads=heads, batch_size=batch_size, context=context
        )
        if architecture == "gpt" and hidden % heads:
            raise ValueError(f"hidden must be a multiple of heads for a gpt, got hidden {hidden} and heads {heads}")
        self.architecture = architecture
        self.hidden = hidden
        self.embedding = embedding
        self.layers = layers
        self.heads = heads
        self.norm = norm
        self.batch_size = batch_size
        self.context = context
        self.corpus = self._corpus()
        self.data_hash = self.corpus.sha256
        self.trivial_loss = _unigram_loss(self.corpus)
        if context >= len(self.corpus.validation):
            raise ValueError(f"context must be below {len(self.corpus.validation)} characters, got {context}")

    def model(self, seed: int) -> nn.Module:
        """Build the network; torch's global random state is left as it was."""
        with seeded(seed):
            if self.architecture == "gpt":
                return GPT(self.hidden, self.layers, self.heads, self.norm, self.context)
            return RecurrentLM(self.architecture, self.hidden, self.embedding, self.layers)

    def batches(self, seed: int) -> Iterator[tuple[Tensor, ...]]:
        """Endless windows from uniformly drawn places of the training text."""
        generator = torch.Generator().manual_seed(seed)
        places = len(self.corpus.train) - self.context
        while True:
            starts = torch.randint(places, (self.batch_size,), generator=generator)
            yield self._windows(self.corpus.train, starts)

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean cross-entropy over all characters of a batch."""
        inputs, targets = batch
        return next_character_loss(model, inputs, targets)

    def evaluate(self, model: nn.Module) -> float:
        """Mean cross-entropy over 200 evenly spaced windows of the validation text."""
        device = next(model.parameters()).device
        last_start = len(self.corpus.validation) - self.context - 1
        starts = torch.linspace(0, last_start, VALIDATION_WINDOWS, dtype=torch.float64).long()
        losses = []
        for some in torch.split(starts, VALIDATION_BATCH):
            inputs, targets = self._windows(self.corpus.validation, some)
            losses.append(next_character_loss(model, inputs.to(device), targets.to(device)))
        return torch.stack(losses).mean().item()

    def describe(self) -> dict[str, str | int | float]:
        """Facts for reports."""
        return {
            "data": self.data,
            "architecture": self.architecture,
            "symbols": len(SYMBOLS),
            "train_characters": len(self.corpus.train),
            "validation_characters": len(self.corpus.validation),
            "trivial_loss": self.trivial_loss,
        }

    def _corpus(self) -> Corpus:
        return load_corpus()

    def _windows(self, text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each (len(starts), context)."""
        windows = text[starts[:, None] + torch.arange(self.context + 1)].long()
        return windows[:, :-1], windows[:, 1:]


def _unigram_loss(corpus: Corpus) -> float:
    """Cross-entropy of the validation text under the training text's character frequencies (each count plus one)."""
    train = torch.bincount(corpus.train, minlength=len(SYMBOLS)).double() + 1
    validation = torch.bincount(corpus.validation, minlength=len(SYMBOLS)).double()
    return -(validation / validation.sum() * (train / train.sum()).log()).sum().item()
