"""Trainers and other frameworks. Each module imports its own framework: lightning, transformers, tensorflow."""
