# make quickstart   set up, then train a small model with BRIDGE end to end (a few minutes on two CPU cores)
# make test         set up, then run the tests
# Both make .venv; the second run's set-up takes seconds. To use another interpreter: make PYTHON=/path/to/python3.12 …

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	  command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
# One thread a process: on shared cores two busy threads are slower than one.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: quickstart test lint setup clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,3p' Makefile | cut -c3-

# torch goes first, alone and pinned: asked for by another package, pip may choose a build with gigabytes of CUDA.
$(VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed; install it or say make PYTHON=/path/to/python3"; exit 1; }
	@echo "== setting up $(VENV) with $(PYTHON) (the first time downloads about 400 MB)"
	@$(PYTHON) -m venv $(VENV) || { echo "error: 'python -m venv' failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@
	@echo "== $(VENV) is ready"

setup: $(VENV)/.installed

quickstart: setup
	@echo "== bridge-mcore train examples/quickstart.yaml"
	@$(BIN)/bridge-mcore train examples/quickstart.yaml run.resume=restart

test: setup
	@echo "== pytest"
	@$(BIN)/python -m pytest $(TESTS)

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy bridge_mcore

clean:
	rm -rf $(VENV) runs build *.egg-info
