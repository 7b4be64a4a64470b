# The entry points that people type. `make` alone lists them.
#
#   LOCK=gpu       use requirements/gpu.txt, in an environment of its own (.venv-gpu)
#   PYTHON=...     the interpreter that makes the environment, 3.11 or later
#   ARGS="..."     further arguments of demo (overrides) and test (pytest options)
#   UPGRADE=--upgrade    let `make locks` move the pins

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

LOCK ?= cpu
PYTHON ?= python3
ARGS ?=
UPGRADE ?=

VENV := $(if $(filter cpu,$(LOCK)),.venv,.venv-$(LOCK))
BIN := $(VENV)/bin
# -qq: no line per package; errors still show.
INSTALL := $(BIN)/python -m pip install -qq --no-deps

.PHONY: demo test chaos check format bench locks clean help

demo: $(VENV)/.package ## The whole loop with the embedded model, on a CPU: runs/demo
	$(BIN)/python -m charactertrain experiment=demo run.dir=runs/demo $(ARGS)

test: $(VENV)/.dev ## All tests
	$(BIN)/python -m pytest $(ARGS)

demo test chaos: export HF_HUB_OFFLINE := 1

chaos: $(VENV)/.dev ## Engines, drivers and nodes killed at random moments, in twenty runs
	CHARACTERTRAIN_CHAOS_RUNS=20 $(BIN)/python -m pytest tests/chaos $(ARGS)

check: $(VENV)/.dev ## Format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict charactertrain launch hydra_plugins benchmarks
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Format, and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.bench ## Every benchmark, one JSON line each
	for benchmark in benchmarks/*.py; do $(BIN)/python "$$benchmark"; done

clean: ## Remove caches and build outputs; runs and environments stay
	rm -rf build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Environments. A stamp is newer than the lock that it stands for.

$(VENV)/.lock: requirements/$(LOCK).txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: charactertrain needs Python 3.11 or later; '$(PYTHON)' is older or missing." \
	        "Name another: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing $< into $(VENV): a few minutes."
	$(PYTHON) -m venv $(VENV)
	@torch=$$(grep '^torch==' $<); $(INSTALL) "$$torch" || { \
	    echo "error: your package index has no $$torch. PyTorch keeps its CPU builds on an index" \
	        "of its own (see its installation page): set PIP_EXTRA_INDEX_URL to it, and run again." \
	        >&2; exit 1; }
	$(INSTALL) -r $<
	touch $@

$(VENV)/.package: pyproject.toml $(VENV)/.lock
	$(INSTALL) --no-build-isolation -e .
	touch $@

$(VENV)/.dev $(VENV)/.bench: $(VENV)/.%: requirements/%.txt $(VENV)/.package
	$(INSTALL) -r $<
	touch $@

# Locks. Present pins are kept unless UPGRADE=--upgrade. Needs uv, and an index that has
# PyTorch's CPU build: UV_TORCH_BACKEND=cpu, or UV_FIND_LINKS=<folder with the wheel>.

COMPILE := uv pip compile pyproject.toml --quiet --no-header --no-annotate \
    --python-version 3.11 --python-platform x86_64-manylinux_2_31
COMPILE_CPU := $(COMPILE) --extra cpu $(foreach package,torchvision torchaudio torchcodec,\
    --no-emit-package $(package))

# $(call lock,name,command,unwanted): the comment lines stay, lines of the unwanted file go.
define lock
	grep '^#' requirements/$(1).txt > requirements/$(1).new
	$(2) -o requirements/$(1).txt > /dev/null
	grep -vxF $(if $(3),-f $(3),-e '') requirements/$(1).txt >> requirements/$(1).new
	mv requirements/$(1).new requirements/$(1).txt
endef

locks: ## Resolve requirements/ from pyproject.toml again
	$(call lock,cpu,$(COMPILE_CPU) $(UPGRADE))
	$(call lock,gpu,env -u UV_FIND_LINKS -u UV_TORCH_BACKEND $(COMPILE) --extra gpu $(UPGRADE))
	$(call lock,dev,$(COMPILE_CPU) --extra dev -c requirements/cpu.txt $(UPGRADE),requirements/cpu.txt)
	$(call lock,kube,$(COMPILE_CPU) --extra kube -c requirements/cpu.txt $(UPGRADE),requirements/cpu.txt)
	$(call lock,bench,$(COMPILE_CPU) --extra bench -c requirements/cpu.txt $(UPGRADE),requirements/cpu.txt)
