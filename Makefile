# The one list of verbs. `make help` prints it.
SHELL := /bin/sh
PYTHON ?= python3
# Which onnxruntime: cpu, gpu or openvino. They share one import folder, so each has an environment of its own.
EP ?= cpu
VENV ?= $(if $(filter cpu,$(EP)),.venv,.venv-$(EP))
# What is installed are the versions of requirements/*.txt with their digests; `no` takes the ranges of pyproject.toml instead.
LOCK ?= yes
# More extras, by comma: `train` for steps that train.
EXTRAS ?=
WORKERS ?= 1
# Which targets `make worker` takes jobs for: names by comma, `all`, or `own` (accelerators, and cpu where there is none).
TARGETS ?= own
BIN := $(VENV)/bin
COMMA := ,
RUN := $(EP)$(if $(EXTRAS),$(COMMA)$(EXTRAS))
# onnxruntime-genai runs on the plain onnxruntime only.
DEV := dev$(if $(filter cpu,$(EP)),$(shell printf ',genai'))
# Tests run in two processes more than there are cores, for those that kill wait more than they work; each has servers of its own.
SIDE_BY_SIDE = --numprocesses=$(shell $(BIN)/python -c 'import os; print(min(os.cpu_count() + 2, 8))')
.DEFAULT_GOAL := help

.PHONY: help
help:  ## Print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "onnxpress needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

PIP = $(BIN)/python -m pip install -q --disable-pip-version-check
# The other builds of ONNX Runtime and PyTorch are not locked: docs/decisions/0067.
RUN_LOCKS = $(if $(filter cpu,$(EP)),cpu,service) client
DEV_LOCKS = $(if $(filter cpu,$(EP)),dev,service client)
LOCKED = $(if $(filter yes,$(LOCK)),@$(PIP) --require-hashes $(patsubst %,-r requirements/%.txt,$(1)) \
	|| { echo "The index has not what requirements/ names; LOCK=no takes what it has."; exit 1; })
# Built with what the lock has brought, not with what an isolated build would fetch.
ISOLATION = $(if $(filter yes,$(LOCK)),--no-build-isolation)

$(VENV)/.run-$(RUN): pyproject.toml client/pyproject.toml $(wildcard requirements/*.txt) | $(BIN)/python
	$(call LOCKED,$(RUN_LOCKS))
	$(PIP) $(ISOLATION) -e '.[$(RUN)]' -e client
	@touch $@

$(VENV)/.dev-$(EP): pyproject.toml client/pyproject.toml $(wildcard requirements/*.txt) | $(BIN)/python
	$(call LOCKED,$(DEV_LOCKS))
	$(PIP) $(ISOLATION) -e '.[$(EP),$(DEV)]' -e client
	@touch $@ $(VENV)/.run-$(EP)

$(VENV)/.docs-$(EP): pyproject.toml client/pyproject.toml | $(BIN)/python
	$(PIP) -e '.[$(EP),docs]' -e client
	@touch $@

.PHONY: demo serve worker test soak chaos fuzz check lock bench docs clean
demo: $(VENV)/.run-$(RUN)  ## Compress a real network and show the measured result (no server needed)
	@$(BIN)/python -m standalone demo

serve: $(VENV)/.run-$(RUN)  ## Run the whole service on this machine (broker, workers, API; data in ./var)
	@exec $(BIN)/python -m standalone serve --workers $(WORKERS)

worker: $(VENV)/.run-$(RUN)  ## Run one more worker beside `make serve`, say with EP=openvino for its target
	@exec $(BIN)/python -m worker --queues work --targets $(TARGETS) --concurrency $(WORKERS)

test: $(VENV)/.dev-$(EP)  ## Run the tests on real parts (SQLite, Postgres, Valkey, ONNX Runtime)
	@$(BIN)/python -m tests.environments openvino
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE)

soak: $(VENV)/.dev-$(EP)  ## What CI tests beside it: every fault on the other stack, a minute of chaos, random networks
	@$(BIN)/python -m pytest -m "soak and not chaos" $(SIDE_BY_SIDE)

chaos: $(VENV)/.dev-$(EP)  ## Kill processes and stop servers under many jobs, on both stacks, for half an hour
	@$(BIN)/python -m pytest -m chaos

fuzz: $(VENV)/.dev-$(EP)  ## Look for inputs that break something, new ones at every run, for about four minutes
	@$(BIN)/python -m pytest -m "fuzz or hypothesis" --hypothesis-profile=fuzz $(SIDE_BY_SIDE)

check: $(VENV)/.dev-$(EP)  ## Format, lint, types, import contracts, docs fresh, known vulnerabilities
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m standalone docs --check
	$(BIN)/python requirements/audit.py

# For every Python and platform at once, with the digests of all files. No address of an index gets into them.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command 'make lock' --overrides requirements/overrides.txt requirements/build.txt

lock: $(VENV)/.dev-$(EP)  ## Choose the locked versions anew, the newest that the ranges allow
	$(PIP) uv
	rm -f requirements/dev.txt
	$(COMPILE) pyproject.toml client/pyproject.toml --extra s3 --extra cpu --extra dev -o requirements/dev.txt
	for name in cpu service client; do rm -f requirements/$$name.txt; done
	$(COMPILE) pyproject.toml --extra s3 --extra cpu -c requirements/dev.txt -o requirements/cpu.txt
	$(COMPILE) pyproject.toml --extra s3 -c requirements/dev.txt -o requirements/service.txt
	$(COMPILE) client/pyproject.toml -c requirements/dev.txt -o requirements/client.txt

bench: $(VENV)/.run-$(RUN)  ## Measure what the README claims (see benchmarks/README.md)
	@$(BIN)/python -m benchmarks.demo

docs: $(VENV)/.docs-$(EP)  ## Write the generated reference anew, and the documentation as a site into ./site
	@$(BIN)/python -m standalone docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

clean:  ## Remove the virtual environments and ./var
	rm -rf $(VENV) .venv .venv-* var site
