# Each target does its own set-up in .venv; `make` alone lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

# The name of a picture goes through the environment, untouched: neither make nor the shell reads it.
override export IMAGE := $(value IMAGE)

.PHONY: help setup demo test faults check audit bench constraints clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

setup: .venv/.complete  ## create .venv with the pinned dependencies

.venv/.complete: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "osteopan needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11 ...")'
	@echo "Setting up .venv (a few minutes, once) …" >&2
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$$(grep '^torch==' constraints.txt)" --editable '.[dev]'
	@# The reference rolling ball asks for opencv-python, which would overwrite the headless cv2; it runs on either.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps opencv-rolling-ball==1.0.1
	@touch $@

demo: setup  ## classify one radiograph: a synthetic one, or IMAGE=path/of/one.jpg
	@$(BIN)/osteopan demo $(if $(IMAGE),-- "$$IMAGE")

test: setup  ## run every test, the faults in their short form
	$(BIN)/python -m pytest

faults: setup  ## kill, freeze and cut off everything, at full length: 5,000 jobs
	$(BIN)/python -m pytest tests/faults --soak-jobs 5000

check: setup  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: setup  ## known weaknesses: bandit in our code, pip-audit in what we depend on
	$(BIN)/bandit --quiet --severity-level medium --recursive contract panoramic worker producer training local deploy
	$(BIN)/pip-audit --progress-spinner off --disable-pip --no-deps --requirement constraints.txt

bench: setup  ## measure speed and memory; prints a table and writes bench-output/bench.json
	$(BIN)/python -m bench

constraints: setup  ## write constraints.txt anew from what .venv holds
	$(BIN)/python -m pip freeze --exclude-editable --exclude opencv-rolling-ball | sed 's/+cpu$$//' > constraints.txt

clean:  ## delete .venv, caches and outputs
	rm -rf .venv build dist demo-output bench-output .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
