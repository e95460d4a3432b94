"""Measurements of speed: ratios of things timed in turn, never absolute promises."""
