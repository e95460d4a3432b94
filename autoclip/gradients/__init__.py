"""Gradients as tensors: which there are, their norms, and how they are made smaller."""

from autoclip.gradients.functional import checked_norm_type, clip_grad_norm_, clip_grad_value_
from autoclip.gradients.grouping import group_by_parameter, kept_source
from autoclip.gradients.norms import (
    Norms,
    fast_norms,
    least_fast_norm,
    measure,
)
from autoclip.gradients.refused import refuse_complex
from autoclip.gradients.shrink import (
    clamp_,
    clip_coefficient,
    clip_coefficients,
    multiply_,
    multiply_each_,
    scale_,
    scale_each_,
    zero_,
)
from autoclip.gradients.source import Source, gradients_of, named_parameters
from autoclip.gradients.units import adaptive_grad_clip_, limit_units_, measure_units, measure_weighted

__all__ = [
    "Norms",
    "Source",
    "adaptive_grad_clip_",
    "checked_norm_type",
    "clamp_",
    "clip_coefficient",
    "clip_coefficients",
    "clip_grad_norm_",
    "clip_grad_value_",
    "fast_norms",
    "gradients_of",
    "group_by_parameter",
    "kept_source",
    "least_fast_norm",
    "limit_units_",
    "measure",
    "measure_units",
    "measure_weighted",
    "multiply_",
    "multiply_each_",
    "named_parameters",
    "refuse_complex",
    "scale_",
    "scale_each_",
    "zero_",
]
