# `make` prints the targets. Everything runs from .venv, made from the hashed locks in requirements/.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
# The interpreter that makes .venv; empty means the first of the candidates that is new enough.
PYTHON ?=
CANDIDATES := python3.13 python3.12 python3.11 python3
BACKEND ?= sqlite
ARGS ?=
TESTS ?= tests
JOBS ?= 2
KILLS ?= 500
UPGRADE ?=
LOCK_FLAGS := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --no-header --no-annotate $(UPGRADE)

.PHONY: help venv demo test check fmt bench faults docs lock clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  PYTHON=python3.12   the interpreter for .venv (default: the first of $(CANDIDATES) that is >= 3.11)'
	@echo '  BACKEND=valkey      the store of the demo: valkey, postgres (default: sqlite); a server of its own is started for it'
	@echo '  TESTS=tests/cli     what test runs (default: all)'
	@echo '  FLOWFABRIC_VALKEY_SERVER=/path/to/valkey-server   for the demo and the tests (default: on the PATH, else a wheel)'
	@echo '  FLOWFABRIC_POSTGRES_BIN=/path/to/bin              for the same (default: on the PATH, else Debian, else a wheel)'
	@echo '  ARGS="..."          passed on to demo, test and bench'

venv: $(VENV)/.dev ## Make .venv with everything for development

demo: $(VENV)/.runtime $(if $(filter-out sqlite,$(BACKEND)),$(VENV)/.stores) ## Run the example job to its end (ARGS="--help" shows its options)
	@$(PY) -m examples.code_census --backend $(BACKEND) $(ARGS)

test: $(VENV)/.dev ## Run the tests
	$(PY) -m pytest -n $(JOBS) $(TESTS) $(ARGS)

check: $(VENV)/.dev ## Run formatter, linters, types, layers, spelling and the architecture tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/codespell
	$(PY) -m tests.architecture.lua
	$(PY) -m pytest -q tests/architecture

fmt: $(VENV)/.dev ## Format the code and repair what the linter can repair
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## Measure and print the table
	$(PY) -m bench $(ARGS)

faults: $(VENV)/.dev ## Run the slow fault tests (KILLS=500 process kills)
	FLOWFABRIC_FAULT_KILLS=$(KILLS) $(PY) -m pytest --timeout 3600 tests/faults $(ARGS)

docs: $(VENV)/.dev ## Generate the reference pages
	$(PY) docs/generate.py
	$(PY) docs/generate_acceptance.py

# The locks are plain hashed requirements files; uv is fetched into a place of its own and never into .venv.
# Later locks are constrained by the first, so that one environment can hold them all.
lock: $(VENV)/.runtime ## Make the hashed locks agree with pyproject.toml (UPGRADE=--upgrade: newest versions)
	@set -eu; dir="$$(mktemp -d)"; trap 'rm -rf "$$dir"' EXIT; \
	$(PY) -m venv "$$dir"; "$$dir/bin/python" -m pip --disable-pip-version-check --quiet install uv; \
	uv="$$dir/bin/uv pip compile $(LOCK_FLAGS)"; \
	$$uv --all-extras --group dev pyproject.toml -o requirements/dev.txt; \
	$$uv --constraints requirements/dev.txt pyproject.toml -o requirements/runtime.txt; \
	$$uv --constraints requirements/dev.txt --group backend -o requirements/backend.txt; \
	$$uv --constraints requirements/dev.txt --group stores -o requirements/stores.txt; \
	echo 'renewed requirements/*.txt'

clean: ## Remove .venv and everything generated
	rm -rf $(VENV) build dist .hypothesis .pytest_cache .ruff_cache .import_linter_cache .grimp_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the virtual environment ---------------------------------------------------------------------------------------
# Three stamps: the demo needs the runtime alone, on another store that store's driver and server, too; development
# adds the rest. A stamp is older than its lock: install again.

$(PY):
	@set -u; python=''; \
	for candidate in $(or $(PYTHON),$(CANDIDATES)); do \
		if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
			python="$$candidate"; break; \
		fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo 'FlowFabric needs Python 3.11 or newer; tried: $(or $(PYTHON),$(CANDIDATES)).' >&2; \
		echo 'Install one, or name it: make $(or $(MAKECMDGOALS),venv) PYTHON=/path/to/python3' >&2; \
		exit 1; \
	fi; \
	if ! "$$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then \
		package="$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"; \
		echo "$$python cannot make virtual environments: its venv or ensurepip module is missing." >&2; \
		echo "On Debian and Ubuntu install one package: apt-get install $$package" >&2; \
		exit 1; \
	fi; \
	echo "making $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV)

$(VENV)/.runtime: requirements/runtime.txt requirements/backend.txt pyproject.toml | $(PY)
	@echo 'installing the runtime'
	@$(PIP) install --require-hashes -r requirements/runtime.txt -r requirements/backend.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.stores: requirements/stores.txt $(VENV)/.runtime
	@echo 'installing drivers and servers of other stores'
	@$(PIP) install --require-hashes -r requirements/stores.txt
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.runtime
	@echo 'installing the development tools'
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@
