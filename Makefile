# make run and make test need Python 3.11 or newer, pip and make, and nothing else: each sets up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=

.PHONY: run test lint types bench results clean

run: $(READY)
	$(BIN)/python run.py $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

results: $(READY)
	$(BIN)/python run.py task=results $(ARGS)

bench: $(READY)
	$(BIN)/python -m tests.benchmarks $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache

# The constraints pin every package, so that two set-ups are alike; ranges with their reasons are in pyproject.toml.
$(READY): pyproject.toml .ci/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable '.[dev]'
	touch $@
