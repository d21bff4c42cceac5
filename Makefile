# Every target works alone in a fresh clone: it makes .venv first where it must.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
# A folder of datasets/concepts, and what kind of thing it is.
CONCEPT ?= dotted_rabbit
CLASS ?= toy
DEMO := runs/demo
EXPERIMENTS ?= runs/experiments/results

BIN := .venv/bin
STAMP := .venv/.installed
# Prints the large downloads, which take the time, and no other line of pip's.
PIP_PROGRESS := awk '/(Downloading|Using cached).*[0-9][0-9]\.[0-9] MB/ || /^Installing/ \
	{ print substr($$0, 1, 100); fflush() }'

.PHONY: help install demo test lint webui experiments-pocket bench bench-gpu peft-suite diffusers-suite quantized test-ray
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile

install: $(STAMP)  ## make .venv with everything the other targets need

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
		"LoLDU needs Python 3.11 or newer, which '$(PYTHON)' is not: try 'make $(MAKECMDGOALS) PYTHON=python3.12'." >&2; exit 1; }
	@echo "Installing PyTorch, diffusers and their company into .venv (some minutes, about 3 GB to download)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off \
		-c constraints.txt -e '.[eval,webui,experiments,dev]' | $(PIP_PROGRESS)
	@touch $@

demo: $(STAMP)  ## teach the embedded base a concept; writes runs/demo/report.png over the last demo's
	$(BIN)/python -m trainer --preset pocket --instance_data_dir datasets/concepts/$(CONCEPT) \
		--instance_prompt "a photo of a sks $(CLASS)" --output_dir $(DEMO) --overwrite
	$(BIN)/python -m eval adapter --preset pocket --concept $(DEMO)/concept.safetensors \
		--output_dir $(DEMO) --overwrite

lint: $(STAMP)  ## ruff, pyright and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 \
	--dist loadfile --no-loadscope-reorder
# Checks the shapes in the signatures at run time; tests take half as long again.
SHAPES = --jaxtyping-packages=loldu,trainer,eval,webui,beartype.beartype

test: lint  ## lint, then the tests that need no GPU, no network and no patience
	$(PYTEST) $(SHAPES) tests/loldu
	$(PYTEST) --ignore tests/loldu tests

test-shapes: $(STAMP)  ## the same tests with the shapes of all packages checked at run time
	$(PYTEST) $(SHAPES)

webui: $(STAMP)  ## open the studio: teach and draw in a browser
	$(BIN)/python -m webui

experiments-pocket: $(STAMP)  ## the paper's tables on the embedded bases (37 minutes); runs/experiments
	$(BIN)/python -m experiments run --scale pocket --results $(EXPERIMENTS)
	$(BIN)/python -m experiments report --scale pocket --results $(EXPERIMENTS) \
		--output $(EXPERIMENTS)/figures

bench: $(STAMP)  ## all benchmarks beside their peers (40 minutes); writes benchmarks/results/
	$(BIN)/python -m benchmarks.factorize
	$(BIN)/python -m benchmarks.routes
	$(BIN)/python -m benchmarks.forward
	$(BIN)/python -m benchmarks.concepts
	$(BIN)/python -m benchmarks.routed
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.few_tokens
	$(BIN)/python -m benchmarks.eval_throughput
	$(BIN)/python -m benchmarks.full_scale --layers 2 --repetitions 5

bench-gpu: $(STAMP)  ## trainer and experiments beside peers on a GPU (15 minutes); SCRIPT=train_dreambooth_lora.py
	$(BIN)/python -m benchmarks.train_gpu --profile 10 $(if $(SCRIPT),--diffusers_script $(SCRIPT))
	$(BIN)/python -m benchmarks.full_scale --device cuda --output benchmarks/results/full_scale_gpu.json

peft-suite: $(STAMP)  ## run PEFT's own tests with LoLDU in their tables (some 15 minutes)
	$(BIN)/python -m tests.peft_suite

diffusers-suite: $(STAMP)  ## run diffusers' own LoRA tests with LoLDU (some 10 minutes)
	$(BIN)/python -m tests.diffusers_suite

quantized: $(STAMP)  ## install bitsandbytes and torchao, and run the tests on quantized bases
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[quantized]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/loldu/adapter/test_quantized.py

test-ray: $(STAMP)  ## install Ray, and run the tests that start a cluster of it here
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m ray tests/webui/serving tests/trainer
