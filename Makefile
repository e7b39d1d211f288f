# make help lists what there is. demo and test set up .venv by themselves, once, and again when the lock file changes.
.DEFAULT_GOAL := help
.NOTPARALLEL:
ARTIFACTS := $(basename $(notdir $(wildcard configs/artifact/table*.yaml configs/artifact/figure*.yaml))) theorem1 appendix_c fair
.PHONY: help demo tune plan status retry paper $(ARTIFACTS) ledger report bundle verify test lint types unit proofs \
  setup setup-dev clean

PYTHON ?= python3
BIN := .venv/bin
SCALE ?= laptop
LAUNCHER ?= local
PLAN = $(if $(GPU),--gpu $(GPU)) $(if $(GPUS),--gpus $(GPUS)) $(if $(PRICE),--price $(PRICE)) $(if $(SEEDS),--seeds $(SEEDS))
EVIDENCE = --scale $(SCALE) --launcher $(LAUNCHER) $(if $(TRACKER),--tracker $(TRACKER)) $(if $(SEEDS),--seeds $(SEEDS)) \
  $(if $(DETACH),--detach) $(if $(JOB),--job $(JOB))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock

help:  ## show this list
	@awk -F ':.*## ' '/^[a-zA-Z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/train.stamp  ## cautious against decoupled weight decay: AdamW, Lion, Muon on two cores, about three minutes
	@echo "Three optimizers, decoupled and cautious, three seeds: 18 runs of a small language model on Python source."
	@echo "A line for each run; stop and start again as you like, finished runs are kept."
	@$(BIN)/python scripts/artifact.py demo

$(ARTIFACTS): .venv/train.stamp
	@$(BIN)/python scripts/artifact.py $@ $(EVIDENCE)

table4 table5: .venv/finetune.stamp  # their runs are evaluated by lm-evaluation-harness
table3 paper: .venv/vision.stamp

tableN:   ## a table or figure of the paper (table1-10, figure1-13, theorem1): runs what is missing, then shows and writes it
	@echo "name one: make table10, make figure1, make theorem1; SCALE=smoke|laptop|paper SEEDS=n LAUNCHER=local|slurm|ray DETACH=1"

paper: .venv/finetune.stamp  ## every table and figure; SCALE=smoke (minutes), laptop (two to three hours) or paper (a cluster)
	@$(BIN)/python scripts/artifact.py all $(EVIDENCE)

tune: .venv/train.stamp  ## the baseline's rates and lambdas, written to configs/tuned/
	@$(BIN)/python scripts/tune.py $(EVIDENCE)

plan: .venv/finetune.stamp .venv/vision.stamp  ## time, memory, cost and seeds before a GPU hour: ARTIFACT=table10 SCALE=paper GPU=h100 GPUS=64 PRICE=2.5
	@$(BIN)/python scripts/plan.py $(ARTIFACT) --scale $(if $(filter command line environment,$(origin SCALE)),$(SCALE),paper) $(PLAN)

status: .venv/train.stamp  ## how far an artifact's runs are, from any shell: ARTIFACT=table10; done, running, queued, failed and why, time left
	@$(BIN)/python scripts/artifact.py $(or $(ARTIFACT),all) $(EVIDENCE) --status

retry: .venv/train.stamp  ## runs again what failed: ARTIFACT=table10
	@$(BIN)/python scripts/artifact.py $(or $(ARTIFACT),all) $(EVIDENCE) --retry

ledger: .venv/train.stamp  ## every claim of the paper, and what the runs that are there say
	@$(BIN)/python scripts/report.py --scale $(SCALE)

report: .venv/train.stamp  ## everything in one HTML page, results/SCALE/report.html; SERVE=1 PORT=8000 shows a sweep while it runs
	@$(BIN)/python scripts/report.py $(ARTIFACT) --scale $(SCALE) $(if $(RUNS),--runs $(RUNS)) $(if $(SEEDS),--seeds $(SEEDS)) \
	  $(if $(SERVE),--serve $(PORT),--html)

bundle: .venv/train.stamp  ## records, tables and figures in one archive: ARTIFACT="table10 figure1" (all, if none) RUNS=runs
	@$(BIN)/python scripts/bundle.py $(ARTIFACT) --scale $(SCALE) $(if $(RUNS),--runs $(RUNS)) $(if $(SEEDS),--seeds $(SEEDS))

verify: .venv/train.stamp  ## recompute every table of a bundle, or of BUNDLE=path, from the raw metrics
	@$(BIN)/python scripts/verify.py $(or $(BUNDLE),results/$(SCALE)/bundle.zip)

test: .venv/dev.stamp  ## everything that must hold: formatting, lint, types, unit tests
	@$(MAKE) --no-print-directory lint types unit

lint: .venv/dev.stamp  ## ruff
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: .venv/dev.stamp  ## mypy
	@$(BIN)/mypy

unit: .venv/dev.stamp  ## pytest
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow"

proofs: .venv/dev.stamp  ## the slow tests too
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest

setup: .venv/train.stamp  ## what train.py needs, in .venv

setup-dev: .venv/dev.stamp  ## what the tests need as well

clean:  ## remove .venv and caches; runs and data stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info build dist

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there; name a Python of 3.11 or newer: make PYTHON=python3.11 ..."; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is too old, 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 2; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 2; }

.venv/train.stamp: pyproject.toml requirements.lock | .venv/bin/python
	@echo "Installing into .venv (once; torch is large, so this takes some minutes)"
	@$(PIP) -e '.[train]'
	@touch $@

.venv/finetune.stamp: pyproject.toml requirements.lock | .venv/bin/python
	@echo "Installing into .venv (once; torch is large, so this takes some minutes)"
	@$(PIP) -e '.[finetune]'
	@touch $@ .venv/train.stamp

.venv/vision.stamp: pyproject.toml requirements.lock | .venv/bin/python
	@echo "Installing what images need into .venv"
	@$(PIP) -e '.[vision]'
	@touch $@ .venv/train.stamp

.venv/dev.stamp: pyproject.toml requirements.lock | .venv/bin/python
	@echo "Installing into .venv (once; torch is large, so this takes some minutes)"
	@$(PIP) -e '.[dev]'
	@touch $@ .venv/train.stamp .venv/finetune.stamp .venv/vision.stamp
