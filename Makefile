# Replicator. `make demo` and `make test` each make all that they need; a second run makes nothing again.
#
#   make demo     the whole way on this machine, with real data
#   make test     judges, lint, and every test folder with its time against a budget
#   make lint     format, ruff, mypy, import contracts
#   make bench    every program in benchmarks/
#   make soak     the long runs of the tests: a million crash states, 500 kills, fuzzing guided by coverage (hours)
#   make judges   other people's programs that the tests ask, into .cache/judges
#   make clean    removes what was made, but for .cache/; `make clean-all` that too

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test
INSTALLED_SOAK := $(VENV)/.installed-soak
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

export PYTHONUNBUFFERED := 1
.DELETE_ON_ERROR:
.PHONY: help demo test lint bench soak judges clean clean-all

help:
	@sed -n 's/^#   //p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Replicator needs Python 3.11 or newer as $(PYTHON): found $$($(PYTHON) --version 2>&1). Try make PYTHON=python3.12" >&2; exit 1; }
	@echo "environment: making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) -m venv failed: on Debian, apt-get install python3-venv" >&2; exit 1; }

$(INSTALLED): pyproject.toml | $(BIN)/python
	@echo "environment: installing replicator"
	@$(PIP) install --editable .
	@touch $@

$(INSTALLED_TEST): pyproject.toml | $(BIN)/python
	@echo "environment: installing replicator with what its tests need"
	@$(PIP) install --editable '.[test]'
	@touch $@ $(INSTALLED)

demo: $(INSTALLED)
	@$(BIN)/replicator demo

$(INSTALLED_SOAK): $(INSTALLED_TEST)
	@echo "environment: installing what the long runs need besides"
	@$(PIP) install --editable '.[test,soak]'
	@touch $@

test: lint judges
	@$(BIN)/python -m tests.support.suite

lint: $(INSTALLED_TEST)
	@echo "lint: ruff format, ruff check, mypy --strict, import contracts"
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@mkdir -p .cache && $(BIN)/lint-imports --no-cache >.cache/lint-imports 2>&1 || { cat .cache/lint-imports; exit 1; }

bench: $(INSTALLED_TEST) judges
	@set -e; for program in benchmarks/*.py; do \
		case $$program in */_*) continue;; esac; echo "bench: $$program"; $(BIN)/python "$$program"; done

soak: $(INSTALLED_SOAK) judges
	@$(BIN)/python -m tests.support.suite --soak

judges: $(INSTALLED_TEST)
	@$(BIN)/python -m tests.support.fetch_judges

clean:
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

clean-all: clean
	@rm -rf .cache
