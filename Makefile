# Everything runs in .venv with the versions of .ci/constraints.txt; `make setup` creates it.

PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin

INTEGRATIONS := .integrations/bin
INTEGRATIONS_PACKAGES := tensorflow-cpu playwright

PARITY := .parity/bin
PARITY_PACKAGES := zclip==1.0.0 pytorch_optimizer==4.1.0
PYPI_AUTOCLIP := autoclip==0.2.1

.PHONY: setup demo test test-slow check parity test-distributed test-integrations clean

setup: .venv/ready

# torch comes first and alone: asked for by a dependency, pip would choose a build with several GB of CUDA libraries.
.venv/ready: pyproject.toml .ci/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "autoclip needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/python -m experiments.demo

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Sweeps of several workers, which are killed and continued, and PostgreSQL.
test-slow: setup
	$(BIN)/python -m pytest -m slow

# Several processes on this machine, started by torchrun.
test-distributed: setup
	$(BIN)/python -m pytest tests/distributed

# The real trainers and TensorFlow (3 GB), in an environment of their own.
test-integrations: .integrations/ready
	$(INTEGRATIONS)/python -m pytest tests/integrations

.integrations/ready: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .integrations
	$(INTEGRATIONS)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(INTEGRATIONS)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt \
		--editable '.[experiments,plot,lightning,transformers,tensorboard,wandb]' pytest hypothesis $(INTEGRATIONS_PACKAGES)
	touch $@

# Compares with the packages that the rules come from, in an environment of their own.
parity: .parity/ready
	$(PARITY)/python -m pytest tests/parity

# PyPI's autoclip has our import name: it gets a folder that only its own process sees.
.parity/ready: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .parity
	$(PARITY)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(PARITY)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable . pytest \
		$(PARITY_PACKAGES)
	rm -rf .parity/pypi-autoclip
	$(PARITY)/pip install --quiet --disable-pip-version-check --no-deps --target .parity/pypi-autoclip $(PYPI_AUTOCLIP)
	touch $@

clean:
	rm -rf .venv .parity .integrations build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
