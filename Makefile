# Everything runs in .venv with the versions of .ci/constraints.txt; `make setup` creates it.

PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin

INTEGRATIONS := .integrations/bin
INTEGRATIONS_PACKAGES := tensorflow-cpu playwright pytorch_optimizer schedulefree opacus trl peft datasets
# Engines that the recipes of docs/engines.md are checked against; and what the parts that run on a CPU import.
OLMO_CORE := ai2-olmo-core==3.0.0
ENGINES := torchtitan==0.3.0 torchtune==0.6.1 mosaicml==0.32.1 $(OLMO_CORE) verl==0.9.1 nanotron==0.4 \
	megatron-core==0.16.1 megatron-bridge==0.3.1 llamafactory==0.9.5 \
	torchdata==0.11.0 omegaconf==2.4.0 spmd_types==0.2.3 tyro==1.0.13 typeguard==4.6.1 docstring-parser==0.15

PACKAGE := .package/bin
PACKAGE_TOOLS := build twine mypy pyright[nodejs] pytest
FEW_TESTS := tests/test_policy.py tests/test_clipper.py tests/test_yaml_source.py tests/test_example.py

FUZZER := atheris==3.0.0

DOCS := .docs/bin
DOCS_PACKAGES := mkdocs-material mkdocstrings[python] latex2mathml
DOCS_NEEDS := pydantic typer rich PyYAML ruff  # what is imported for the reference; ruff formats signatures

PARITY_PACKAGES := zclip==1.0.0 pytorch_optimizer==4.1.0
PYPI_AUTOCLIP := autoclip==0.2.1

.PHONY: setup demo test test-slow test-faults check parity test-distributed test-integrations bench clean

setup: .venv/ready

# torch comes first and alone: asked for by a dependency, pip would choose a build with several GB of CUDA libraries.
.venv/ready: pyproject.toml .ci/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "autoclip needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[dev]'
	touch $@

# DEMO=--quick: a few steps of everything, to see that it works.
demo: setup
	$(BIN)/python -m experiments.demo $(DEMO)

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --doctest-modules

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Sweeps of several workers, which are killed and continued.
test-slow: setup
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

# Kills, full disks, lost databases, damaged files; a table at the end tells what became of each.
test-faults: setup .venv/fuzz
	PYTHONPATH=.venv/fuzz $(BIN)/python -m pytest -n 2 --dist loadfile tests/faults

# The fuzzer, in a folder that only these tests see; there are none for some systems and Pythons.
.venv/fuzz: .venv/ready
	mkdir -p $@
	$(BIN)/pip install --quiet --disable-pip-version-check --target $@ --no-deps $(FUZZER) || echo "no $(FUZZER) to be had"

# The properties with 10 000 new examples each, an hour; no part of .ci/run.
.PHONY: test-nightly
test-nightly: setup
	$(BIN)/python -m pytest -n 2 -m hypothesis --hypothesis-profile=nightly

# Several processes on this machine, started by torchrun.
test-distributed: setup
	$(BIN)/python -m pytest tests/distributed

# The real trainers, DeepSpeed and TensorFlow (3 GB), in an environment of their own.
test-integrations: .integrations/ready docs
	$(INTEGRATIONS)/python -m pytest -n 2 --dist loadfile tests/integrations

.integrations/ready: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .integrations
	$(INTEGRATIONS)/pip install --quiet --disable-pip-version-check $(TORCH)
	DS_BUILD_OPS=0 $(INTEGRATIONS)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt \
		--editable '.[experiments,sweep,plot,lightning,transformers,deepspeed,dask,slurm,tensorboard,wandb]' pytest pytest-xdist hypothesis \
		$(INTEGRATIONS_PACKAGES)
	rm -rf .integrations/engines
	$(INTEGRATIONS)/pip install --quiet --disable-pip-version-check --no-deps --target .integrations/engines $(ENGINES)
	touch $@

# Compares with the packages that the rules come from, in a folder that only these tests see.
parity: setup .parity/ready
	PYTHONPATH=.parity/packages $(BIN)/python -m pytest tests/parity

# PyPI's autoclip has our import name: it gets a folder that only its own process sees.
.parity/ready: .venv/ready
	rm -rf .parity
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .parity/packages $(PARITY_PACKAGES)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .parity/pypi-autoclip $(PYPI_AUTOCLIP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .parity/olmo-core $(OLMO_CORE)
	touch $@

# The documentation as pages that need no server and no network, in build/site; `make test-integrations` opens them.
.PHONY: docs docs-serve
docs: .docs/ready
	NO_MKDOCS_2_WARNING=1 $(DOCS)/mkdocs build --strict --config-file docs/mkdocs.yml
	@echo build/site/index.html

docs-serve: .docs/ready
	NO_MKDOCS_2_WARNING=1 $(DOCS)/mkdocs serve --config-file docs/mkdocs.yml

# torch is not needed: the docstrings are read from the files, the rest from what imports none.
.docs/ready: .ci/constraints.txt
	$(PYTHON) -m venv .docs
	$(DOCS)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt \
		$(DOCS_PACKAGES) $(DOCS_NEEDS)
	touch $@

# The distributions as others get them: built, checked, and installed into an empty environment, where they are used.
.PHONY: package test-python
package: .package/ready
	rm -rf dist .package/empty
	PIP_CONSTRAINT=$(CURDIR)/.ci/constraints.txt $(PACKAGE)/python -m build
	$(PACKAGE)/twine check --strict dist/*
	$(PYTHON) -m venv .package/empty
	.package/empty/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	.package/empty/bin/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt dist/*.whl
	$(PACKAGE)/python -m pytest --confcutdir=tests/package tests/package

.package/ready: .ci/constraints.txt
	$(PYTHON) -m venv .package
	$(PACKAGE)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt $(PACKAGE_TOOLS)
	touch $@

# The same with another Python, and a few tests: make test-python PYTHON=python3.13
test-python: package
	.package/empty/bin/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt pytest hypothesis
	.package/empty/bin/python -m pytest $(FEW_TESTS)

# Under ten minutes on two cores. PyPI's packages are compared where `make parity` has installed them.
RESULTS := experiments/benchmarks/results
SHORT_SWEEP := configs/sweep_corrupted_digits.yaml steps=600 sweep.seeds=[0,1,2] sweep.lr_multipliers=[1,3] \
	sweep.percentiles=[10,50] sweep.kinds=[running_quantile]

bench: setup
	$(BIN)/python -m experiments.benchmarks.overhead --json $(RESULTS)/overhead.json
	$(BIN)/python -m experiments.benchmarks.training --json $(RESULTS)/training.json
	$(BIN)/python -m experiments.benchmarks.policies --json $(RESULTS)/policies.json
	$(BIN)/python -m experiments.benchmarks.imports --json $(RESULTS)/imports.json
	$(BIN)/python -m experiments.benchmarks.sweep $(SHORT_SWEEP) --race --json $(RESULTS)/sweep.json
	$(BIN)/python -m experiments.benchmarks.report

# Every study, with all of its runs: hours. Started again, it goes on where it was.
.PHONY: studies studies-quick
STUDIES := thresholds default recipes ablation learning_rates
SHORT_STUDIES := loss_scale drift suggest published
studies: setup
	for study in $(STUDIES); do $(BIN)/python -m experiments.studies.$$study --workers 2 || exit; done
	for study in $(SHORT_STUDIES); do $(BIN)/python -m experiments.studies.$$study || exit; done

# Fewer tasks, seeds and steps, into runs/studies-quick: minutes.
studies-quick: setup
	for study in $(STUDIES); do $(BIN)/python -m experiments.studies.$$study --quick --workers 2 || exit; done
	for study in $(SHORT_STUDIES); do $(BIN)/python -m experiments.studies.$$study --quick || exit; done

clean:
	rm -rf .venv .parity .integrations .docs .package build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
