# Skerry: everything a fresh machine needs is set up by the target that needs it.
#   make demo            the whole system doing its main job; keeps running (ONCE=1: check and exit, JSON=1: one object)
#   make test            all tests (SKERRY_REQUIRE_ALL=1: a missing program is a failure, not a skip)
#   make bench           every figure, one JSON line each (ONLY=name: one of them)
#   make soak            the data plane under load and faults for an hour (SECONDS=600), then 20,000 worlds (ONLY=plane, world)
#   make lint            ruff and mypy
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TESTS ?= tests
DEPENDENCIES := pyproject.toml scripts/setup.sh $(wildcard locks/*.txt)

.PHONY: help setup demo test bench soak lint format lock assets screenshots clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile | expand -t 20

setup: $(VENV)/.ready ## a virtual environment with all of Skerry in it

$(VENV)/.ready: $(DEPENDENCIES)
	@PYTHON="$(PYTHON)" VENV="$(VENV)" bash scripts/setup.sh
	@touch $@

demo: $(VENV)/.ready ## the whole loop on this machine, for real
	@$(BIN)/skerry-sim demo $(if $(ONCE),--once) $(if $(JSON),--json)

test: $(VENV)/.ready ## all tests
	@bash scripts/test-programs.sh
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(TESTS) $(ARGS)

soak: $(VENV)/.ready ## the long runs: the data plane under load and faults, then worlds by seed
	@result=0; \
	case "$(ONLY)" in ""|plane|world) ;; *) echo "cannot run ONLY=$(ONLY): there are plane and world" >&2; exit 2;; esac; \
	if [ "$(ONLY)" != world ]; then $(BIN)/python -m benchmarks.soak --seconds $(or $(SECONDS),3600) --seed $(or $(SEED),0) $(if $(RECORD),--record $(RECORD)) || result=1; fi; \
	if [ "$(ONLY)" != plane ]; then $(BIN)/skerry-sim world --seeds $(or $(SEEDS),0..20000) || result=1; fi; \
	exit $$result

bench: $(VENV)/.ready ## every figure of docs/benchmarks.md
	@bash scripts/test-programs.sh
	@$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

lint: $(VENV)/.ready ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.ready ## let ruff lay the code out
	@$(BIN)/ruff check --fix-only -q .
	@$(BIN)/ruff format .

lock: $(VENV)/.ready ## resolve the development environment anew
	@bash scripts/lock.sh

assets: ## fetch the console's third-party files anew
	@bash scripts/vendor-assets.sh

screenshots: $(VENV)/.ready ## the README's pictures, from a running demo
	@$(BIN)/python scripts/screenshots.py

clean: ## remove what the other targets made
	rm -rf $(VENV) .skerry dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
