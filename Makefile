# Every target works from a fresh clone: it makes the environment in .venv when that is missing or older than the lock.
# Nothing else has to be on the machine but Python >= 3.11 and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKED := $(VENV)/.locked
STAMP := $(VENV)/.installed
ROOMS := penstock actors cluster admission telemetry
CODE := $(ROOMS) $(wildcard examples tests benchmarks)
PYTEST_ARGS ?=
DEMO_ARGS ?=
LOCK_ARGS ?=
# One resolution for all platforms, with hashes, and without a word about where the files came from.
COMPILE := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --no-header
PIP_FLAGS := --quiet --disable-pip-version-check --no-input

export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-quick chaos matrix properties proofs metrics-doc runbooks lint format types imports check bench figures-spine figures-dependencies figures-effects figures-admission sim sim-scale lock clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(LOCKED): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null || { \
		echo "Penstock needs Python 3.11 to 3.14 (Ray has no wheels for others)," \
			"but '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)." >&2; \
		echo "Name another one, for example: make $(or $(MAKECMDGOALS),test) PYTHON=python3.12" >&2; exit 1; }
	@echo "Making the environment in $(VENV) (once; a minute or two)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install $(PIP_FLAGS) --require-hashes --requirement requirements.lock
	@touch $@

$(STAMP): $(LOCKED) pyproject.toml
	@$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation --editable .
	@touch $@

venv: $(STAMP) ## make the environment

demo: $(STAMP) ## run 1,000 jobs on a local cluster and kill a host half-way
	@$(BIN)/penstock demo $(DEMO_ARGS)

test: $(STAMP) ## run all tests
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

test-quick: $(STAMP) ## run the tests that take no cluster and little time
	@$(BIN)/python -m pytest -m "not slow and not chaos and not ray" $(PYTEST_ARGS)

chaos: $(STAMP) ## strike a real cluster every few seconds, for minutes
	@$(BIN)/python -m pytest -m chaos -s $(PYTEST_ARGS)

matrix: $(STAMP) ## strike every point of the effect protocol by every fault, for every kind of tool; about 5 minutes
	@$(BIN)/python -m pytest -m matrix -s $(PYTEST_ARGS)

properties: $(STAMP) ## state machines against a real server, with twenty times the examples; about 10 minutes
	@PENSTOCK_EXAMPLES=20 $(BIN)/python -m pytest -k "does_what_the_model_does or do_what_the_model_does" $(PYTEST_ARGS)

proofs: $(STAMP) ## what the default tests leave out: figures at a small size, the crash matrix; about 10 minutes
	@$(BIN)/python -m pytest -m "figures or matrix" $(PYTEST_ARGS)

metrics-doc: $(STAMP) ## write docs/metrics.md from the catalogue
	@$(BIN)/python -m telemetry.catalogue > docs/metrics.md

runbooks: $(STAMP) ## write docs/runbooks from the alerts
	@$(BIN)/python -m telemetry.alerts

lint: $(STAMP) ## ruff: rules and format
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

format: $(STAMP) ## let ruff format and repair what it can
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

types: $(STAMP) ## mypy --strict over everything
	@$(BIN)/mypy $(CODE)

imports: $(STAMP) ## the rooms' import contracts
	@$(BIN)/lint-imports

check: lint types imports ## lint, types and imports

bench: $(STAMP) ## measure the spine beside its raw floor; writes figures/spine.json
	@mkdir -p figures
	@$(BIN)/python -m benchmarks.spine --json figures/spine.json

figures-spine: bench ## the same as bench

figures-dependencies: $(STAMP) ## limits, breaker, storms and hubs, about 10 minutes; PART=rate-error for one
	@mkdir -p figures
	@$(BIN)/python -m benchmarks.dependencies $(PART) --json figures/dependencies$(addprefix -,$(PART)).json

figures-effects: $(STAMP) ## what effects cost, approvals, and 10,000 effects under kills, about 3 minutes
	@mkdir -p figures
	@$(BIN)/python -m benchmarks.effects $(PART) --json figures/effects$(addprefix -,$(PART)).json

figures-admission: $(STAMP) ## overload, refusals, recovery and 100,000 jobs on a real cluster, about 10 minutes; PART=flood for one
	@mkdir -p figures
	@$(BIN)/python -m benchmarks.admission $(PART) --json figures/admission$(addprefix -,$(PART)).json

sim: $(STAMP) ## admission under overload in virtual time, about 10 minutes; draws into docs/; PART=overload for one
	@mkdir -p figures
	@$(BIN)/python -m benchmarks.queue_simulation $(PART) $(if $(PART),,--pictures docs) \
		--json figures/simulation$(addprefix -,$(PART)).json

sim-scale: $(STAMP) ## the same law with up to 10 million queued runs and 10,000 hosts, about 15 minutes and 6 GB
	@mkdir -p figures
	@$(BIN)/python -m benchmarks.queue_simulation scale --json figures/simulation-scale.json

lock: $(STAMP) ## compile the locks from pyproject.toml; LOCK_ARGS=--upgrade for newer versions
	@cp -p requirements.lock $(VENV)/lock.before
	@$(COMPILE) --extra example --extra dev $(LOCK_ARGS) --output-file requirements.lock
	@cmp -s requirements.lock $(VENV)/lock.before && touch -r $(VENV)/lock.before requirements.lock || true
	@$(COMPILE) --constraint requirements.lock $(LOCK_ARGS) --output-file requirements-runtime.lock

clean: ## remove the environment, caches and built files
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
