"""YAML-configured experiments: the schema, the only training loop, the run directory."""
