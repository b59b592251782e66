# Everything here works in a fresh clone: what a target needs, it installs first.
# Only .venv and node_modules are written; system packages are installed by `make test` alone.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
JS_TESTS = $(sort $(wildcard tests/web/*.test.mjs tests/web/*.test.js))

.PHONY: help demo install test check bench soak clean test-tools
.DELETE_ON_ERROR:

help:
	@echo 'make demo      start a relay and print the address of its demo page'
	@echo 'make test      install what the tests need and run them all'
	@echo 'make check     lint, formatting, types, layers'
	@echo 'make bench     measure, and print one table'
	@echo 'make soak      the long forms of the randomised tests'
	@echo 'make install   .venv with the relay and everything for development'
	@echo 'make clean     remove what these commands made'

# --- the relay alone: quick to install, nothing for development ----------------------------------

demo: .venv/.relay
	@exec $(BIN)/relay demo $(ARGS)

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null || \
	  { echo 'make: $(PYTHON) is not installed: Python 3.11 or newer is needed (apt-get install python3 python3-venv)' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $$($(PYTHON) --version) is too old, 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'make: $(PYTHON) cannot make virtual environments: apt-get install python3-venv' >&2; exit 1; }
	@$(PYTHON) -m venv .venv

.venv/.relay: pyproject.toml | .venv/bin/python
	@echo 'Installing the relay into .venv ...'
	@$(PIP) install --editable .
	@touch $@

# --- development ---------------------------------------------------------------------------------

install: .venv/.dev

.venv/.dev: pyproject.toml | .venv/bin/python
	@echo 'Installing the relay and its tools for development into .venv ...'
	@$(PIP) install --editable '.[dev]'
	@touch $@ .venv/.relay

node_modules/.installed: package.json package-lock.json
	@node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' 2>/dev/null || \
	  { echo 'make: Node.js 20.19 or newer with npm is needed for the JavaScript tests: https://nodejs.org' >&2; exit 1; }
	npm ci --no-audit --no-fund
	@touch $@

# Debian's redis-server starts a server of its own when it is installed; the tests start theirs.
test-tools:
	@missing=; \
	for tool in redis-server chromium; do \
	  command -v $$tool >/dev/null || missing="$$missing $$tool"; \
	done; \
	test -z "$$missing" && exit; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "make: the tests need$$missing: as root, apt-get install$$missing" >&2; exit 1; \
	fi; \
	echo "Installing$$missing ..."; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -qq && apt-get install -qq -y --no-install-recommends $$missing </dev/null || exit; \
	case $$missing in *redis*) service redis-server stop >/dev/null 2>&1 || true ;; esac

# Tests wait more than they work, so several files run side by side; what breaks a Redis or kills
# processes under load has the machine for itself. pytest runs last: its closing line is the run's.
ALONE = tests/hardening tests/egress/test_crashes.py

test: .venv/.dev node_modules/.installed test-tools
	node --test $(JS_TESTS)
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(BIN)/python -m pytest -n 2 --dist loadfile $(addprefix --ignore=,$(ALONE))
	$(BIN)/python -m pytest $(ALONE)
endif

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

bench: .venv/.dev
	$(BIN)/python -m benchmarks $(ARGS)

# Tests that know a long form read SOAK, a factor on what they try, or the rig's ROUNDS made of it.
soak: .venv/.dev test-tools
	@long=$$(grep -rlwE 'SOAK|ROUNDS' tests --include='test_*.py' || true); \
	test -n "$$long" || { echo 'No test has a long form yet.'; exit 0; }; \
	set -x; SOAK=$${SOAK:-50} $(BIN)/python -m pytest -o faulthandler_timeout=1800 $$long $(ARGS)

clean:
	rm -rf .venv node_modules build dist artifacts .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find relay tests benchmarks -name __pycache__ -type d -exec rm -rf {} +
