"""A training script like anybody's, made ready for `autoclip sweep` (configs/sweep_script.yaml).

    python experiments/train_script.py --clip-config recommended.yaml --output-dir out

Three things were added to it: the clipper is built from `--clip-config`, it is given the loss, and its sink writes
`metrics.jsonl`. The losses in `summary.json` are optional; without them the training loss is judged.
"""

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import autoclip
from autoclip.sinks import JSONLSink

BATCH_SIZE = 64
LEARNING_RATE = 0.1
VALIDATION_IMAGES = 360


def read_data() -> tuple[Tensor, Tensor]:
    """Pixels, float32 (N, 64), standardised, and labels, int64 (N,), in a fixed random order."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    standardised = (pixels - pixels.mean()) / pixels.std()
    return torch.from_numpy(standardised).float()[order], torch.from_numpy(labels).long()[order]


def evaluate(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy."""
    with torch.no_grad():
        return F.cross_entropy(model(pixels), labels).item()


def main() -> None:
    """Train, and write metrics.jsonl and summary.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip-config", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr-multiplier", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()

    torch.set_num_threads(1)  # so small a network is fastest on one
    pixels, labels = read_data()
    training, validation = slice(VALIDATION_IMAGES, None), slice(VALIDATION_IMAGES)
    torch.manual_seed(args.seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE * args.lr_multiplier, momentum=0.9)
    sink = JSONLSink(args.output_dir, optimizer)
    clipper = autoclip.Clipper(model, **autoclip.from_config(args.clip_config), sinks=[sink])

    initial = evaluate(model, pixels[validation], labels[validation])
    for _ in range(args.steps):
        batch = torch.randint(len(labels) - VALIDATION_IMAGES, (BATCH_SIZE,))
        loss = F.cross_entropy(model(pixels[training][batch]), labels[training][batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        clipper.step(loss=loss)
        optimizer.step()
    clipper.close()

    final = evaluate(model, pixels[validation], labels[validation])
    losses = {"validation_loss": final, "initial_validation_loss": initial, "trivial_loss": math.log(10)}
    (args.output_dir / "summary.json").write_text(json.dumps(losses))
    print(f"validation loss {final:.4f}, {clipper.clip_rate:.0%} of the steps clipped")


if __name__ == "__main__":
    main()
