# make            environment into .venv, then the study (snakemake --cores all)
# make test       environment, then all tests;  make test-fast  without the slow ones
# make miniature  the paper's config on tiny models and a few real rows, which EVAL_DATA=FOLDER holds (about 7 minutes)
# make bench      steps beside TRL's, with ratios and the processor's limit (at most 30 minutes); nothing else may run
# make bench-scale  what a step costs by size, and memory over 100 steps (about 6 minutes)
# make soak       kill training at random moments, 200 times, and compare (about an hour; may be stopped and continued)
# make clean-env  remove .venv
# Variables: PYTHON (which python3), SCALE (smoke, laptop, paper; default auto), TORCH_OPTIONS (pip options for torch alone)
SHELL := bash
.DEFAULT_GOAL := all
.PHONY: all environment test-environment test test-fast miniature bench bench-scale soak clean-env

PYTHON ?= python3
VENV ?= .venv
EVAL_DATA ?= ../shared/eval-data
export PYTHON VENV TORCH_OPTIONS
# Nothing is fetched after the installation, and libraries that would try say so at once instead of waiting.
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export VLLM_NO_USAGE_STATS := 1
export TOKENIZERS_PARALLELISM := false

# Much of a test is waiting for processes that start; a file's tests stay together, since they share what they make.
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 15

all: environment
	@echo "the study at scale $(or $(SCALE),laptop) takes $$(sed -n 's/^cost: //p' config/$(or $(SCALE),laptop).yaml)"
	@$(VENV)/bin/snakemake --cores all $(if $(SCALE),--config scale=$(SCALE))

environment:
	@requirements/install.sh

test-environment:
	@requirements/install.sh test

test: test-environment
	@$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE)

test-fast: test-environment
	@$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) -m "not slow"

miniature: test-environment
	@$(VENV)/bin/python -m tests.miniature --eval-data $(EVAL_DATA)

bench: test-environment
	@$(VENV)/bin/python -m bench.step --output docs/measurements/bench.json

bench-scale: test-environment
	@$(VENV)/bin/python -m bench.scale --output docs/measurements/scale.json

soak: test-environment
	@$(VENV)/bin/python -m tests.soak --kills 200
	@$(VENV)/bin/python -m tests.soak --kills 10 --sampler vllm

clean-env:
	rm -rf $(VENV)
