# Each target sets up what it needs in a virtual environment of its own. PYTHON=python3.12 chooses another.
PYTHON ?= python3

.PHONY: demo test test-all lint
demo: .venv/ready
	.venv/bin/nnad demo

test: .venv/ready
	.venv/bin/python -m pytest --ignore tests/torch

test-all: .venv-all/ready
	.venv-all/bin/python -m pytest tests/torch

lint: .venv-all/ready
	.venv-all/bin/ruff check .
	.venv-all/bin/ruff format --check .
	.venv-all/bin/mypy

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable '.[test]'
	touch $@

# torch first and pinned: asked for by another package, pip could choose a build of several GB.
.venv-all/ready: pyproject.toml
	$(PYTHON) -m venv .venv-all
	.venv-all/bin/python -m pip install --quiet torch==2.13.0
	.venv-all/bin/python -m pip install --quiet --editable '.[test,dev,bench,torch]'
	touch $@
