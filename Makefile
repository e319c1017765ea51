# autovibe: `make` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
BIN := .venv/bin
# Every target works on a fresh clone: set-up is quick when nothing is missing.
# Python keeps what it compiles, whatever the environment says: it starts several times as fast.
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help setup setup-test vibe test soak lint format bench schema clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what is needed: distribution packages, then .venv
	@scripts/setup

setup-test:
	@scripts/setup --test

vibe: setup ## A machine's whole life on the embedded lab (KEEP=1 leaves it up)
	@$(BIN)/autovibe vibe $(if $(KEEP),--keep)

# By file, in the order of the files: the long ones stand in tests/, which comes first. Half of their time is waiting, so
# there is one process more than there are cores. PARALLEL= runs one test at a time.
PARALLEL ?= -n $(shell echo $$(($$(nproc) + 1))) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: setup-test ## Run every test but the long ones
	@$(BIN)/pytest -m 'not soak' $(PARALLEL) $(PYTEST_ARGS)

soak: setup-test ## Run the long tests: kills, fleets
	@$(BIN)/pytest -m soak --timeout 3600 $(PYTEST_ARGS)

lint: setup-test ## Check style: ruff, ansible-lint, shellcheck, YAML
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/ansible-lint --offline -q
	@shellcheck scripts/setup

format: setup ## Format the Python code
	@$(BIN)/ruff check --fix -q .; $(BIN)/ruff format .

bench: setup ## Print how long we take beside the bare API calls and community.proxmox
	@$(BIN)/python tests/bench/spawn.py
	@$(BIN)/python tests/bench/collection.py
	@$(BIN)/python tests/bench/money.py
	@$(BIN)/python tests/bench/ledger.py
	@$(BIN)/python tests/bench/api.py
	@$(BIN)/python tests/bench/checkpoints.py
	@$(BIN)/python tests/bench/ends.py
	@$(BIN)/python tests/bench/guests.py

schema: setup ## Write schema/schema.sql anew from the migrations
	@$(BIN)/python -m autovibe.schema

clean: ## Stop everything of this checkout and remove its state
	@[ ! -x $(BIN)/autovibe ] || { $(BIN)/autovibe down; $(BIN)/autovibe lab down; } 2>/dev/null; rm -rf .autovibe .pytest_cache .ruff_cache .hypothesis
