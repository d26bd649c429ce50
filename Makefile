# Everything happens in .venv; nothing is installed outside it. `make help` lists the targets.
# The first that is 3.11 or newer and runs (a pyenv shim may not), unless one is named: make train PYTHON=python3.13
PYTHONS := python3 python3.11 python3.12 python3.13 python3.14
ifeq ($(origin PYTHON), undefined)
PYTHON = $(shell for python in $(PYTHONS); do \
	if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$python; break; fi; done)
endif
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
EVALUATE = [ -n "$(HYENA_DATA)" ] || { echo "make: the tasks need their data; say where: make $@ HYENA_DATA=DIR" >&2; exit 2; }; \
	HYENA_DATA="$(HYENA_DATA)" $(BIN)/hyena-ds evaluate configs/suites/$(@:evaluate-%=%).yaml --at-once 2
# Suites of many processes, or of many thousand inputs, which test-fast leaves out.
SEVERAL := cluster distributed faults fuzz launch
# Files of tests that make test runs at once.
WORKERS ?= 2
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help train sweep evaluate-here evaluate-quick test test-fast test-kernels test-packages test-full fuzz soak soak-full lint docs bench gpu clean
.DEFAULT_GOAL := help

help:
	@echo "make train   prepare the shipped genome and train a small HyenaDNA on it (2 minutes on two cores)"
	@echo "make sweep   train on contexts from 1k to 64k, one run after another: a table and a plot (minutes on two idle cores)"
	@echo "make evaluate-quick HYENA_DATA=DIR   three tasks, three models, three seeds: a table that shows what scores are worth (10 minutes)"
	@echo "make evaluate-here HYENA_DATA=DIR    all that configs/suites/here.yaml has (at most 6 hours of two cores; stop it, and it goes on)"
	@echo "make test    run every test, distributed ones included"
	@echo "make test-fast   the tests of one process that take no more than seconds each: what to run while working (5 minutes)"
	@echo "make test-kernels   the Triton kernels in its interpreter, on a CPU (at most 5 minutes)"
	@echo "make test-packages   install sshd, pdsh, Slurm, shellcheck and Chromium (Debian, root), without which tests are skipped"
	@echo "make test-full   the same, with every combination of grid, ZeRO stage and activation policy"
	@echo "make fuzz    10,000 hostile inputs for every command that reads files; HYENA_FUZZ_SEED=N tries others"
	@echo "make soak    kill, corrupt, resume and attack at random for at most 40 minutes; make soak-full: the full counts, three hours"
	@echo "make lint    ruff and mypy"
	@echo "make docs    build the documentation into site/; open site/index.html"
	@echo "make bench REFERENCE=DIR   every measurement of bench/RESULTS.md, beside a clone of HazyResearch/hyena-dna"
	@echo "make gpu     whether a card computes what the CPU does, and how fast: three parts of at most ten minutes; small without a card"
	@echo "make clean   remove .venv, data/, site/ and caches (runs/ stays)"

# What training needs; with it everything else, for tests, documents and the use of a model.
$(VENV)/trainer: setup.cfg constraints.txt pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "make: found no Python 3.11 or newer, tried $(PYTHONS); install one, or name one: make train PYTHON=/path/python" >&2; exit 2; }
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "make: found no $(PYTHON); install Python 3.11 or newer, or name one: make train PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than 3.11; name a newer one: make train PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: $(PYTHON) has no venv module; install it (Debian: apt-get install python3-venv)" >&2; exit 2; }
	@if $(PYTHON) -c 'import sys, torch; sys.exit(sys.prefix != sys.base_prefix)' 2>/dev/null; then \
		echo "make: using the torch that $(PYTHON) already has"; \
		$(PYTHON) -m venv --system-site-packages $(VENV) && $(PIP) -e .; \
	else \
		echo "make: installing into $(VENV)"; \
		$(PYTHON) -m venv $(VENV) && $(PIP) -c constraints.txt torch numpy && $(PIP) -c constraints.txt -e .; \
	fi
	@touch $@

$(VENV)/installed: $(VENV)/trainer
	@if grep -q 'include-system-site-packages = true' $(VENV)/pyvenv.cfg; then $(PIP) -e ".[dev]"; \
	else $(PIP) -c constraints.txt -e ".[dev]"; fi
	@touch $@

train: $(VENV)/trainer
	@$(BIN)/hyena-ds prep build configs/prep/quickstart.yaml
	@$(BIN)/hyena-ds train configs/quickstart.yaml

sweep: $(VENV)/installed
	@$(BIN)/hyena-ds prep build configs/prep/quickstart.yaml
	@$(BIN)/hyena-ds sweep configs/sweeps/contexts.yaml

evaluate-quick: $(VENV)/installed
	@$(EVALUATE)

evaluate-here: $(VENV)/installed
	@$(EVALUATE)

test: $(VENV)/installed
	$(TESTS) -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-fast: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" $(SEVERAL:%=--ignore=tests/%)

test-kernels: $(VENV)/installed
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/kernels

test-packages:
	@command -v apt-get >/dev/null 2>&1 || { echo "make: found no apt-get; install by hand: $$(xargs < tests/packages.txt)" >&2; exit 2; }
	@[ "$$(id -u)" -eq 0 ] || { echo "make: apt-get needs root: sudo make test-packages" >&2; exit 2; }
	apt-get update -qq
	xargs env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends < tests/packages.txt >/dev/null

test-full: $(VENV)/installed
	HYENA_FULL=1 $(TESTS)

fuzz: $(VENV)/installed
	HYENA_FUZZ=$${HYENA_FUZZ:-480} OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/fuzz

soak: $(VENV)/installed
	HYENA_FUZZ=100 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/fuzz
	HYENA_CORRUPTIONS=60 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/checkpoints/test_corruption.py tests/checkpoints/test_choice.py
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.kills --count 10
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.grids --count 40
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.strangers --rounds 3 --steps 150

soak-full: $(VENV)/installed fuzz
	HYENA_CORRUPTIONS=200 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/checkpoints/test_corruption.py tests/checkpoints/test_choice.py
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.kills --count 50
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.grids --all
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.strangers --rounds 7 --steps 300

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open site/index.html; for its search: $(BIN)/python -m mkdocs serve"

gpu: $(VENV)/installed
	PYTHON=$(BIN)/python bash bench/card/run.sh 1 2 3

bench: $(VENV)/installed
	@[ -n "$(REFERENCE)" ] || { echo "make: bench needs the published code; clone HazyResearch/hyena-dna and say where: make bench REFERENCE=DIR" >&2; exit 2; }
	PATH="$(CURDIR)/$(BIN):$$PATH" bash bench/run.sh "$(REFERENCE)"

clean:
	rm -rf $(VENV) data site .pytest_cache .mypy_cache .ruff_cache *.egg-info
