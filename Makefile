# make demo, make test: all that a fresh machine with Python >= 3.11, git and make needs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DATA = data
RUN = $(BIN)/python -m coco_jax.main

.PHONY: help env data demo ablation test lint clean

help:  ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

env: $(VENV)/installed  ## the virtual environment
$(VENV)/installed: requirements.txt requirements-test.txt requirements-beam.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-test.txt -e .
	touch $@

data: env  ## renders the demo's videos and writes its corpus (20 seconds, 7 MB)
	$(BIN)/python -m tfds_builders.build motion_zsar actionhub/motion --data_dir=$(DATA)

demo: data  ## trains `label` and `full`, evaluates, draws
	$(RUN) --config=configs/demo.py --workdir=runs/demo

ablation: data  ## four ablations x three splits x three seeds
	$(RUN) --config=configs/ablation.py --workdir=runs/ablation

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Apart from the rest: where JAX finds it beside itself, it looks for a TPU at each start.
$(VENV)/libtpu: requirements-compile.txt $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --target $@ -r requirements-compile.txt
	touch $@

test: lint $(VENV)/libtpu  ## linting, types, and the whole suite
	TPU_LIBRARY_PATH=$(abspath $(VENV))/libtpu/libtpu/libtpu.so $(BIN)/python -m pytest -n 2

clean:  ## removes data and runs
	rm -rf $(DATA) runs
