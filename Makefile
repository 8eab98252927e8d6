# `make` alone lists the targets. ARGS passes options on: make test ARGS='-k placement'
# STACK names a stack beside the usual one: make up STACK=two

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
PEERS := var/bench-venv
PEERS_READY := $(PEERS)/.ready
PROFILER_READY = $(if $(findstring --profile,$(ARGS)),$(PEERS_READY))
ARGS ?=
MINUTES ?= 10
SEED ?=
STACK ?=
# Two processes run the tests that need servers, which mostly wait, and one runs the others.
PARALLEL := -n 3 --dist loadscope

# Without compiled modules each process of the tests compiles all of them, five seconds long.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo images compose-demo test test-fast upgrade-test compat faults ecosystem soak bench bench-scale bench-containers simulate up \
	down status check fmt clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

setup: $(READY) ## Make .venv with everything in it, at the pinned versions.

$(READY): pyproject.toml requirements.lock deploy/local/requirements.txt deploy/local/venv.sh
	@deploy/local/venv.sh $(VENV)
	@touch $@

demo: $(READY) ## Run the demonstration on a private stack, from nothing to a prediction, and stop it.
	@$(PYTHON) -m deploy.local demo $(ARGS)

images: $(READY) ## Build and test the images of gateway, dispatcher, worker and command line.
	@$(PYTHON) -m deploy.containers images $(ARGS)

compose-demo: $(READY) ## Start deploy/compose.yaml, send it the five calls, break it a little, and stop it.
	@$(PYTHON) -m deploy.containers demo $(ARGS)

test: $(READY) ## Run all tests against the real servers.
	@$(PYTHON) -m pytest $(PARALLEL) $(ARGS)

test-fast: $(READY) ## Run the tests that need no server and no patience: under a minute.
	@$(PYTHON) -m pytest -n 4 --dist loadscope --fast tests/statemachine tests/unit tests/conformance $(ARGS)

upgrade-test: $(READY) ## Replace each process by that of the next version and back; needs the git history.
	@$(PYTHON) -m pytest -m upgrade tests/upgrade $(ARGS)

compat: $(READY) ## Run the end-to-end tests on RabbitMQ 4.0 and Docker 26.1, in a Debian 13 in var/trees.
	@$(PYTHON) -m deploy.compat $(ARGS)

faults: $(READY) ## Make every fault and check every invariant; ends with a table.
	@$(PYTHON) -m pytest -p tests.faults.report --fault-table -m '' tests/faults $(ARGS)

ecosystem: $(READY) ## Run public model servers (MLServer, LitServe, BentoML) through all verbs.
	@$(PYTHON) -m pytest -m '' tests/ecosystem $(ARGS)

soak: $(READY) ## Break things at random under load: make soak MINUTES=10 SEED=7
	@$(PYTHON) -m tests.faults.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: $(READY) $(PEERS_READY) ## Measure Modelyard beside Taskiq and Celery: under ten minutes; ARGS=--quick or --profile.
	@$(PYTHON) -m bench $(ARGS)

$(PEERS_READY): bench/requirements-peers.txt bench/requirements-profile.txt
	@$(PYTHON) -m venv --clear $(PEERS)
	@$(PEERS)/bin/python -m pip install -qq --disable-pip-version-check $(addprefix --requirement ,$^)
	@touch $@

bench-scale: $(READY) $(PROFILER_READY) ## Measure the dispatcher with 2,000 hosts, 1,000,000 waiting, and a takeover.
	@$(PYTHON) -m bench.scale $(ARGS)

bench-containers: $(READY) $(PROFILER_READY) ## Measure real containers beside the same calls by aiodocker alone.
	@$(PYTHON) -m bench.containers $(ARGS)

simulate: $(READY) ## Run the scheduling rules over traces of whole fleets: ARGS='--seed 2 --scale 1'
	@$(PYTHON) -m bench.simulator $(ARGS)

up: $(READY) ## Start the stack in the background; its addresses are in var/stack.env. STACK=two: another one.
	@$(PYTHON) -m deploy.local up $(if $(STACK),--stack $(STACK)) $(ARGS)

down: $(READY) ## Stop the stack and all that belongs to it.
	@$(PYTHON) -m deploy.local down $(if $(STACK),--stack $(STACK)) $(ARGS)

status: $(READY) ## Show what runs, and where it answers.
	@$(PYTHON) -m deploy.local status $(if $(STACK),--stack $(STACK)) $(ARGS)

check: $(READY) ## Check style, types, import rules and that the generated schemas are current.
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache
	$(PYTHON) -m modelyard.contract.schemas --check

fmt: $(READY) ## Format the code and repair what the linter can.
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

clean: ## Stop all stacks; remove their data, the virtual environment and all caches.
	@if [ -x $(PYTHON) ] && [ -d var ]; then $(PYTHON) -m deploy.local down --all; fi
	rm -rf $(VENV) var dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
