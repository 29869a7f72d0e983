# Each target is one command on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test check docs clean

setup: $(VENV)/.ready

# torch is installed first, from a bounded range: an unbounded one may pull another build.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed; set PYTHON=..."'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

TORCH ?= torch>=2.6,<2.14

demo: setup
	$(BIN)/python -m loraweave.miniature.demo demo

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

check: setup
	$(BIN)/loraweave miniature check

docs: setup
	$(BIN)/python docs/make_pictures.py
	$(BIN)/python docs/fill_tables.py

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .ruff_cache
