# make quickstart   set up, then train a small model with BRIDGE end to end (a few minutes on two CPU cores)
# make test         set up (also a real SGLang server), then run the tests
# make quickstart-sglang   20 steps of the quickstart with rollouts from a real SGLang server
# make engines      real SGLang and vLLM servers for a CPU, in .venv-sglang and .venv-vllm (also: engine-sglang, engine-vllm)
# The first two make .venv; the second run's set-up takes seconds. To use another interpreter: make PYTHON=/path/to/python3.12 …
# torch is its CPU build (.venv takes 1.7 GB). For a GPU: make setup TORCH_INDEX= (pip's own choice; on Linux a CUDA build, 5.5 GB)

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	  command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
# One thread a process: on shared cores two busy threads are slower than one.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: quickstart quickstart-sglang test lint setup engines engine-sglang engine-vllm clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,6p' Makefile | cut -c3-

# Where torch's CPU builds are; pip takes 2.13.0+cpu from there before any other 2.13.0. Empty: pip's own indexes alone.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

# $(1): the environment. torch goes first, alone and pinned: asked for by another package, pip may choose a build with
# gigabytes of CUDA. The index is asked once before: pip itself would ask one that cannot be reached six times.
define install_torch
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed; install it or say make PYTHON=/path/to/python3"; exit 1; }
	@echo "== setting up $(1) with $(PYTHON) (the first time downloads about $(2); without torch's CPU build 3 GB more)"
	@$(PYTHON) -m venv $(1) || { echo "error: 'python -m venv' failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(1)/bin/python $(PIP_INSTALL) --upgrade "pip>=25"
	@index="$(TORCH_INDEX)"; \
	if test -n "$$index" && ! $(1)/bin/python -c \
	  'import sys, urllib.request as u; u.urlopen(sys.argv[1].rstrip("/") + "/torch/", timeout=5)' "$$index" 2>/dev/null; then \
	  echo "== $$index cannot be reached: pip takes the torch of its own indexes, which may be a CUDA build"; index=; fi; \
	$(1)/bin/python $(PIP_INSTALL) --no-compile $${index:+--extra-index-url "$$index"} torch==2.13.0
endef

$(VENV)/.installed: pyproject.toml
	$(call install_torch,$(VENV),400 MB)
	@$(BIN)/python $(PIP_INSTALL) -e ".[dev]"
	@touch $@
	@echo "== $(VENV) is ready ($$(du -sh $(VENV) | cut -f1) on disk)"

setup: $(VENV)/.installed

quickstart: setup
	@echo "== bridge-mcore train quickstart"
	@$(BIN)/bridge-mcore train quickstart run.resume=restart

quickstart-sglang: setup engine-sglang
	@echo "== bridge-mcore train quickstart rollout.engine=sglang"
	@$(BIN)/bridge-mcore train quickstart run.resume=restart run.directory=runs/quickstart_sglang \
	  rollout.engine=sglang training.steps=20 evaluation.every=10

# One process for the tests that start ranks and servers, the other for the rest (tests/conftest.py).
JOBS ?= 2
test: setup engine-sglang
	@echo "== pytest, $(JOBS) processes"
	@$(BIN)/python -m pytest -n $(JOBS) $(TESTS)

# The engines' own environments. uv is many times faster than pip but does not read pip's configuration: torch goes
# first, through pip, as above, and where uv cannot reach an index pip takes over. The last step imports the server:
# that checks the installation and compiles just the modules it loads, which is quicker than compiling everything.
SGLANG_VENV ?= .venv-sglang
VLLM_VENV ?= .venv-vllm
SGLANG_SHIM := tests/support/sglang_cpu_shim
SGLANG_SHIM_FILES := $(wildcard $(SGLANG_SHIM)/*.p* $(SGLANG_SHIM)/*/*.py)

define install_engine
	$(call install_torch,$(1),$(2))
	@{ $(1)/bin/python $(PIP_INSTALL) --no-compile uv==0.13.8 \
	  && $(1)/bin/python -m uv pip install --quiet --python $(1)/bin/python --no-deps -r $(3); } \
	  || { echo "== uv did not work; pip takes over" && $(1)/bin/python $(PIP_INSTALL) --no-compile --no-deps -r $(3); }
	@touch $@
endef

$(SGLANG_VENV)/.installed: tools/engines/sglang.txt
	$(call install_engine,$(SGLANG_VENV),600 MB,$<)

$(SGLANG_VENV)/.ready: $(SGLANG_VENV)/.installed $(SGLANG_SHIM_FILES)
	@cp -R $(SGLANG_SHIM)/. "$$($(SGLANG_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@PYTHONDONTWRITEBYTECODE= SGLANG_USE_CPU_ENGINE=1 $(SGLANG_VENV)/bin/python -W ignore -c 'import sglang.launch_server, sglang.srt.entrypoints.http_server, sglang_cpu_models.families'
	@touch $@
	@echo "== $(SGLANG_VENV) is ready"

$(VLLM_VENV)/.installed: tools/engines/vllm.txt
	$(call install_engine,$(VLLM_VENV),700 MB,$<)

$(VLLM_VENV)/.ready: $(VLLM_VENV)/.installed
	@PYTHONDONTWRITEBYTECODE= $(VLLM_VENV)/bin/python -W ignore -c 'import vllm.entrypoints.openai.api_server'
	@touch $@
	@echo "== $(VLLM_VENV) is ready"

engine-sglang: $(SGLANG_VENV)/.ready
engine-vllm: $(VLLM_VENV)/.ready
engines: engine-sglang engine-vllm

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy bridge_mcore

clean:
	rm -rf $(VENV) $(SGLANG_VENV) $(VLLM_VENV) runs build *.egg-info
