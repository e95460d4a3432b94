"""The `optimizer` section of the YAML: torch's optimizers by `kind`, with torch's defaults."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, StrictBool, model_validator

from autoclip.lab.values import Section, by_kind
from autoclip.policies.parameters import Decay, Floor, Positive

Betas = Annotated[tuple[Decay, Decay], Field(description="Decays of the two moving averages.")]
Epsilon = Annotated[Floor, Field(description="Added to the denominator.")]
Momentum = Annotated[Floor, Field(description="Weight of the past steps.")]
L2 = Annotated[Floor, Field(description="L2 penalty, added to the gradient.")]


class OptimizerConfig(Section):
    """The settings of every optimizer."""

    kind: str
    lr: Positive = Field(description="Learning rate.")


class SgdConfig(OptimizerConfig):
    """`torch.optim.SGD`."""

    kind: Literal["sgd"]
    momentum: Momentum = 0.0
    dampening: Floor = Field(default=0.0, description="Share of the gradient that is kept out of the momentum.")
    nesterov: StrictBool = Field(default=False, description="Nesterov's momentum.")
    weight_decay: L2 = 0.0

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            got = f"momentum {self.momentum} and dampening {self.dampening}"
            raise ValueError(f"nesterov must go with a momentum above 0 and dampening 0, got {got}")
        return self


class AdamConfig(OptimizerConfig):
    """`torch.optim.Adam`."""

    kind: Literal["adam"]
    betas: Betas = (0.9, 0.999)
    eps: Epsilon = 1e-8
    weight_decay: L2 = 0.0


class AdamWConfig(OptimizerConfig):
    """`torch.optim.AdamW`."""

    kind: Literal["adamw"]
    betas: Betas = (0.9, 0.999)
    eps: Epsilon = 1e-8
    weight_decay: Floor = Field(default=0.01, description="Weight decay, decoupled from the gradient.")


class AdagradConfig(OptimizerConfig):
    """`torch.optim.Adagrad`."""

    kind: Literal["adagrad"]
    lr_decay: Floor = Field(default=0.0, description="Decay of the learning rate per step.")
    eps: Epsilon = 1e-10
    weight_decay: L2 = 0.0


class RmspropConfig(OptimizerConfig):
    """`torch.optim.RMSprop`."""

    kind: Literal["rmsprop"]
    alpha: Decay = Field(default=0.99, description="Decay of the average of squares.")
    eps: Epsilon = 1e-8
    momentum: Momentum = 0.0
    centered: StrictBool = Field(default=False, description="Divide by the standard deviation instead.")
    weight_decay: L2 = 0.0


OPTIMIZER_SECTIONS: dict[str, type[Section]] = {
    "sgd": SgdConfig,
    "adam": AdamConfig,
    "adamw": AdamWConfig,
    "adagrad": AdagradConfig,
    "rmsprop": RmspropConfig,
}

if TYPE_CHECKING:
    AnyOptimizerConfig = OptimizerConfig
else:
    AnyOptimizerConfig = by_kind(OPTIMIZER_SECTIONS)
