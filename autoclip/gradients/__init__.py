"""Gradients as tensors: which there are, their norms, and how they are shrunk."""

from autoclip.gradients.functional import clip_grad_norm_, clip_grad_value_
from autoclip.gradients.norms import Norms, checked_norm_type, measure
from autoclip.gradients.shrink import clamp_, clip_coefficient, scale_
from autoclip.gradients.source import Source, live_gradients, named_parameters

__all__ = [
    "Norms",
    "Source",
    "checked_norm_type",
    "clamp_",
    "clip_coefficient",
    "clip_grad_norm_",
    "clip_grad_value_",
    "live_gradients",
    "measure",
    "named_parameters",
    "scale_",
]
