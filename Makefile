# Lockstep: `make demo` shows it at work, `make test` runs every test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The Python that has torch: the one that is asked for, else that of .venv, else the machine's.
GPU_PYTHON = $(if $(findstring command,$(origin PYTHON)),$(PYTHON),$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)))
# Half of the time tests wait for processes, so there are more of them than cores. TEST_PROCESSES=0: one after another.
TEST_PROCESSES ?= 3
IN_PARALLEL = -n $(TEST_PROCESSES) --dist loadscope --no-loadscope-reorder

# The contract as it was last released.
LAST_RELEASE = $(shell ls proto/released/*.binpb | sort -V | tail -1)
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

.PHONY: help setup demo test test-faults check protos docs release-protos dashboards bench gpu-check gpu-kit clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(VENV)/.installed  ## make .venv and install everything into it

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Lockstep needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	@touch $@

demo: setup  ## train on two workers, then on one, and compare the bits
	@exec $(BIN)/python examples/demo.py

# Tests start hundreds of processes: each source is compiled once for all of them, also where containers forbid it.
test test-faults: export PYTHONDONTWRITEBYTECODE =

test: setup  ## run the whole test suite
	@exec $(BIN)/python -m pytest $(IN_PARALLEL)

test-faults: setup  ## run the whole table of faults: every place, rank and number of workers
	@exec $(BIN)/python -m pytest $(IN_PARALLEL) tests/faults tests/integration -m "exhaustive or not exhaustive"

check: setup  ## formatting, lint, types, generated code, tables and boards, contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python proto/generate.py --check
	$(BIN)/python docs/generate.py --check
	$(BIN)/python deploy/grafana/generate.py --check
	$(BIN)/buf lint
	$(BIN)/buf breaking --against $(LAST_RELEASE)

protos: setup  ## generate the code of the contract
	$(BIN)/python proto/generate.py

docs: setup  ## write the table of the spec's fields
	$(BIN)/python docs/generate.py

release-protos: setup  ## keep the contract of this version, which later ones must not break
	$(BIN)/buf build --exclude-source-info --as-file-descriptor-set --output proto/released/$(VERSION).binpb

dashboards: setup  ## generate the boards of Grafana
	$(BIN)/python deploy/grafana/generate.py

bench: setup  ## run every benchmark against its peers
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev,bench]'
	@exec $(BIN)/python benchmarks/run.py

gpu-check:  ## run everything that one GPU can tell, in 8 minutes (docs/gpu-check.md); ONLY=section,section
	@exec $(GPU_PYTHON) tests/machines/gpu_check/start.py $(if $(ONLY),--only $(ONLY))

gpu-kit: setup  ## pack what gpu-check needs on a machine without a network; PYTHON_VERSION=3.12 ARCH=x86_64 WITH_SCIPY=1
	@exec $(BIN)/python -m tests.machines.gpu_check.kit --python-version $(or $(PYTHON_VERSION),3.12) --arch $(or $(ARCH),x86_64) $(if $(WITH_SCIPY),--with-scipy)

clean:  ## remove what setup made
	rm -rf $(VENV)
