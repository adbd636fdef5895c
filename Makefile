# Everything runs from .venv, which each target makes when it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
POSTGRES ?= $(lastword $(sort $(wildcard /usr/lib/postgresql/*/bin)))

.PHONY: demo dev test test-system check format lock clean

demo: $(READY)        ## an encrypted message goes round through a real Synapse, step by step
	$(BIN)/appservice-bridge dev --once

dev: $(READY)         ## the same, and stays up until Ctrl-C
	$(BIN)/appservice-bridge dev

test: $(READY)        ## needs nothing but the package index
	$(BIN)/pytest

test-system: $(READY) ## what needs the system's packages: the bridge on the system's Postgres
	@test -x "$(POSTGRES)/initdb" || { echo "needs Debian's postgresql, or make POSTGRES=DIR"; exit 1; }
	$(BIN)/pytest tests/storage tests/routing tests/sources tests/delivery --postgres-binaries "$(POSTGRES)"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:                 ## needs uv; rewrites requirements.txt from pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --all-extras --group make pyproject.toml -o requirements.txt

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "needs CPython 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-index --no-build-isolation -e .
	@touch $(READY)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
