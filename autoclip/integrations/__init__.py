"""Trainers and other frameworks, each in a module that imports its framework: lightning, transformers, tensorflow."""
