"""Lists of parameter shapes of usual models, in the order in which the models hold them."""

from math import prod

Shape = tuple[int, ...]


def gpt(layers: int, width: int, vocabulary: int, context: int) -> list[Shape]:
    """Shapes of a GPT-2: embeddings, blocks of twelve tensors, the last norm; the read-out is the embedding."""
    block: list[Shape] = [
        (width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,),
        (width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,),
    ]  # fmt: skip
    return [(vocabulary, width), (context, width), *layers * block, (width,), (width,)]


def resnet50() -> list[Shape]:
    """Shapes of ResNet-50: 53 convolutions, each with the two vectors of its batch norm, and the read-out."""

    def convolution(out: int, into: int, kernel: int) -> list[Shape]:
        return [(out, into, kernel, kernel), (out,), (out,)]

    shapes = convolution(64, 3, 7)
    into = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for number in range(blocks):
            shapes += convolution(width, into, 1) + convolution(width, width, 3) + convolution(4 * width, width, 1)
            if number == 0:
                shapes += convolution(4 * width, into, 1)  # of the shortcut
            into = 4 * width
    return [*shapes, (1000, into), (1000,)]


SHAPES: dict[str, list[Shape]] = {
    "gpt-1m": gpt(layers=4, width=128, vocabulary=1536, context=128),
    "gpt-11m": gpt(layers=6, width=384, vocabulary=256, context=256),
    "gpt-124m": gpt(layers=12, width=768, vocabulary=50257, context=1024),
    "resnet-50": resnet50(),
    "tiny-1000": [(64,)] * 1000,
}
"""Name -> shapes of all parameters; "gpt-124m" are those of GPT-2 small."""


def elements(shapes: list[Shape]) -> int:
    """Number of elements of all tensors together."""
    return sum(prod(shape) for shape in shapes)
