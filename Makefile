# Everything starts here, with nothing but make and Python 3.11 or newer. `make test` and the others make .venv
# themselves, and again when pyproject.toml changes.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo demo-once test crash soak bench lint docs clean

help:
	@echo "make demo       the social feed example: web, two workers, addresses to open; until Ctrl-C"
	@echo "make demo-once  the same, ending after its numbers"
	@echo "make test       every test"
	@echo "make crash      an hour of trying to break the log: power cuts, kills, failing disks, fuzzing; new seeds"
	@echo "make soak       half an hour of a worker's life: kills, drains, delays, retries, order, rates"
	@echo "make bench      our curves, and the peers side by side"
	@echo "make lint       ruff, mypy, basedpyright, import contracts"
	@echo "make docs       the documentation, in site/"
	@echo "make clean      remove what the others made"

demo: $(VENV)/.example
	$(BIN)/python -m examples.sns_feed.demo

demo-once: $(VENV)/.example
	$(BIN)/python -m examples.sns_feed.demo --once

# What measures time or load runs by itself, first. Exit code 5: there was no such test.
test: $(VENV)/.test
	$(BIN)/python -m pytest -m alone $(TESTS) || test $$? -eq 5
	$(BIN)/python -m pytest -m "not alone" -n auto $(TESTS)

# Each prints its seed, and its numbers again at the end. CRASH="--kills 100 --cuts 500" for less, --seed N for the same.
crash: $(VENV)/.test
	$(BIN)/python -m tests.crash.long $(CRASH)

# Each prints its numbers. For another length: python -m tests.soak.life --seconds 7200.
soak: $(VENV)/.test
	$(BIN)/python -m tests.soak.delays
	$(BIN)/python -m tests.soak.order
	$(BIN)/python -m tests.soak.rate
	$(BIN)/python -m tests.soak.life
	$(BIN)/python -m tests.soak.rolling
	$(BIN)/python -m tests.soak.remembering

# The peers go into an environment of their own, .venv-bench.
bench: $(VENV)/.test
	$(BIN)/python -m benchmarks

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.docs
	$(BIN)/zensical build --clean

clean:
	rm -rf $(VENV) .venv-bench site dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage*

# A stamp for each dependency group: made once, and again when pyproject.toml is newer.
$(VENV)/.example $(VENV)/.test $(VENV)/.lint $(VENV)/.docs: $(VENV)/.%: pyproject.toml | $(VENV)/.pip
	@echo "installing taskq and what '$*' needs into $(VENV)"
	@$(BIN)/python -m pip install --quiet --editable '.[trio]' --group $*
	@touch $@

# Python 3.11 brings a pip that doesn't know dependency groups.
$(VENV)/.pip:
	@test -n "$(PYTHON)" || { echo "taskq needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "no venv: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@touch $@
