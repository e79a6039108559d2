# Fairlane's commands. They need only make and Python 3.11 or newer; everything else goes into .venv.

PORT ?= 8000
UP ?=
MINUTES ?= 10
SEED ?=
LEASE ?= 30
PYTEST ?= -n 3 --dist loadfile
BENCHES := end-to-end broker fairness admission expressions scrape herd

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install -q --require-hashes --only-binary :all:
COMPILE := $(BIN)/uv pip compile -q --universal --python-version 3.11 --only-binary :all: --generate-hashes --no-header --no-annotate
SOURCES := actions api bench celeryconfig.py cli embedded engine exporters migrations tasks.py tests triggers

# What is installed carries the checksum of what it was installed from: it is done again when, and only when, that changes.
CHECKSUM := $(shell cat requirements.lock pyproject.toml 2>/dev/null | cksum | tr -d ' ')
CHECKSUM_DEV := $(shell cat requirements-dev.lock 2>/dev/null | cksum | tr -d ' ')
RUNTIME := .venv/.runtime-$(CHECKSUM)
DEV := .venv/.dev-$(CHECKSUM)-$(CHECKSUM_DEV)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help up test check chaos bench bench-% migrate lock clean

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: $(RUNTIME) ## Run everything in the foreground; PORT=8010 chooses the port, Ctrl-C stops it
	@exec $(BIN)/fairlane up --port $(PORT) $(UP)

test: $(DEV) ## Run all tests
	@$(BIN)/python -m pytest $(PYTEST)

check: $(DEV) ## Format, lint, types, tests: what CI runs
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy $(wildcard $(SOURCES))
	@$(BIN)/python -m pytest $(PYTEST)

chaos: $(DEV) ## Kill, freeze and cut off everything under load, then count; MINUTES=10 SEED=n LEASE=30
	@exec $(BIN)/python -m bench.chaos --minutes $(MINUTES) --lease $(LEASE) $(if $(SEED),--seed $(SEED))

bench: $(DEV) ## Run every benchmark, each with its table
	@for name in $(BENCHES); do $(MAKE) --no-print-directory bench-$$name || exit 1; done

bench-%: $(DEV) ## Run one benchmark, such as bench-broker
	@test -f bench/$(subst -,_,$*).py || { echo "There is no benchmark $*; there are: $(BENCHES)." >&2; exit 2; }
	@$(BIN)/python -m bench.$(subst -,_,$*)

migrate: $(RUNTIME) ## Bring the database to the newest schema
	@$(BIN)/fairlane migrate

lock: .venv/bin/python ## Choose versions anew and write the locks
	@$(PIP) install -q uv
	@echo 'setuptools>=80' | $(COMPILE) --upgrade --extra embedded pyproject.toml - -o requirements.lock
	@$(COMPILE) --upgrade --extra embedded --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock

clean: ## Remove what can be made again; the data in .fairlane stays
	@rm -rf .venv build ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@for python in python3.13 python3.12 python3.11 python3; do \
		if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Making .venv with $$($$python --version)"; exec $$python -m venv .venv; \
		fi; \
	done; \
	echo "Fairlane needs Python 3.11 or newer with its venv module (on Debian: python3-venv), and none was found." >&2; exit 1

$(RUNTIME): | .venv/bin/python
	@echo "Installing what Fairlane needs (only the first time, and when requirements.lock changes)"
	@$(INSTALL) -r requirements.lock
	@$(PIP) install -q --no-deps --no-build-isolation -e .
	@rm -f .venv/.runtime-* && touch $@

$(DEV): $(RUNTIME)
	@echo "Installing the tools for tests"
	@$(INSTALL) -r requirements-dev.lock
	@rm -f .venv/.dev-* && touch $@
