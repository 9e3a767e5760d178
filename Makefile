# Everything starts here. Each target does its own set-up; a second run of it is quick.
#
#   make demo                    a real training job, quoted, paid, killed, resumed, verified, settled   (DEMO_ARGS=--headless)
#   make demo EXECUTOR=docker    the same with Debian's container engine instead of the embedded sandbox
#   make test                    all tests, with the real engine, sandbox, chain runtime and processes    (ARGS="-k vault")
#   make check                   what CI runs: format, lint, types, import contracts, tests, wheel, demo
#   make format | lock | clean

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= $(shell for p in /usr/bin/python3 python3.11 python3; do command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
EXECUTOR ?= auto
DEMO_ARGS ?=
# One worker per core, whole files to each: a file's tests share what they started. Four are enough: engines and databases run beside them.
PYTEST := pytest --numprocesses auto --maxprocesses 4 --dist loadfile
ARGS ?=

.PHONY: setup setup-test demo test check lint format types contracts wheel-smoke bench nightly chaos mutations corpora corpora-run lock clean

setup:
	@scripts/setup.sh "$(PYTHON)" "$(VENV)" run

setup-test:
	@scripts/setup.sh "$(PYTHON)" "$(VENV)" test

demo: setup
	@$(BIN)/python -m scripts.demo --executor $(EXECUTOR) $(DEMO_ARGS)

test: setup-test
	@$(BIN)/$(PYTEST) $(ARGS)

check: setup-test lint types contracts
	@$(BIN)/$(PYTEST) $(ARGS)
	@$(MAKE) --no-print-directory wheel-smoke
	@$(MAKE) --no-print-directory demo DEMO_ARGS=--headless EXECUTOR=sandbox

lint: setup-test
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

format: setup-test
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

types: setup-test
	@$(BIN)/mypy

contracts: setup-test
	@$(BIN)/lint-imports

# A typo in the wheel's package list drops a component silently: install the wheel elsewhere and run every script.
wheel-smoke: setup-test
	@scripts/wheel_smoke.sh $(BIN)

bench: setup
	@$(BIN)/python -m benchmarks

# Thousands of simulated markets, every deliberate bug put in and looked for, and faults by chance on real processes: hours, not minutes.
# (SEEDS=5000, FAULTS=100)
SEEDS ?= 2000
nightly: setup-test mutations
	@$(BIN)/torg-marketplace simulate --seeds $(SEEDS)
	@$(MAKE) --no-print-directory chaos FAULTS=$(FAULTS) SEED=$(SEED)

# Processes of a market that are killed, frozen and cut apart, drawn by a seed that is printed first. As root.  (SEED=7 FAULTS=20)
FAULTS ?= 40
SEED ?=
chaos: setup-test
	@$(BIN)/python -m tests.e2e.run_chaos --faults $(FAULTS) $(if $(SEED),--seed $(SEED))

# Public job files of other platforms, which are not part of this repository: how much of them is taken over.  (TORG_CORPORA=DIR)
corpora: setup-test
	@$(BIN)/python -m scripts.corpora

# Of these, those that need only a base image, really run: a market and a container engine, so as root.
corpora-run: setup-test
	@$(BIN)/python -m tests.e2e.run_corpora

mutations: setup-test
	@$(BIN)/python -m tests.simulation.mutate

lock: setup-test
	@$(BIN)/pip install --quiet uv
	@$(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --all-extras --no-emit-package torch --no-header \
	  --annotation-style line --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) .torg .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
