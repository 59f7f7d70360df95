# Each target sets up what it needs in a virtual environment of its own. PYTHON=python3.12 chooses another.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BACKBONES ?= torch==2.14.1 torchvision==0.29.1

.PHONY: demo test test-torch test-backbones lint
demo: .venv/ready
	.venv/bin/nnad demo

test: .venv/ready-test
	.venv/bin/python -m pytest --ignore tests/torch --ignore tests/backbones

test-torch: .venv-all/ready
	.venv-all/bin/python -m pytest tests/torch

test-backbones: .venv-backbones/ready
	.venv-backbones/bin/python -m pytest tests/backbones

lint: .venv-all/ready
	.venv-all/bin/ruff check .
	.venv-all/bin/ruff format --check .
	.venv-all/bin/mypy

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable .
	touch $@

.venv/ready-test: .venv/ready
	.venv/bin/python -m pip install --quiet --editable '.[test]'
	touch $@

# On Linux PyPI's torch is a CUDA build of several GB; for a small one say
# TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu'.
.venv-all/ready: pyproject.toml
	$(PYTHON) -m venv .venv-all
	.venv-all/bin/python -m pip install --quiet $(TORCH)
	.venv-all/bin/python -m pip install --quiet --editable '.[test,dev,bench,parity]'
	touch $@

# torchvision and timm, and the torch that goes with them: 5.6 GB as a CUDA build; a small one by
# BACKBONES='torch==2.14.1 torchvision==0.29.1 --index-url https://download.pytorch.org/whl/cpu'.
.venv-backbones/ready: pyproject.toml
	$(PYTHON) -m venv .venv-backbones
	.venv-backbones/bin/python -m pip install --quiet $(BACKBONES)
	.venv-backbones/bin/python -m pip install --quiet --editable '.[test,torch]'
	touch $@
