# `make demo` and `make test` need only Python >= 3.11, git and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DATA = data
RUN = $(BIN)/python -m coco_jax.main

.PHONY: help env starter_features lock data demo ablation test lint docs clean

help:  ## lists the targets
	@grep -E '^[a-z_]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

env: $(VENV)/installed  ## the virtual environment
$(VENV)/installed: requirements-lock.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-lock.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

# What torch's builds for CUDA need: not locked, because a build for the CPU does not need it.
CUDA = cuda-bindings cuda-toolkit nvidia-cudnn-cu13 nvidia-cusparselt-cu13 nvidia-nccl-cu13 \
	nvidia-nvshmem-cu13 triton

lock:  ## locks what pyproject.toml needs (needs uv; LOCK=--upgrade replaces all versions)
	printf '%s\n' $(CUDA) | uv pip compile --quiet $(LOCK) --excludes=/dev/stdin --python-version=3.11 \
		--extra=dev --custom-compile-command="make lock" --no-annotate --no-emit-index-url \
		--output-file=requirements-lock.txt pyproject.toml

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
	$(BIN)/lint-imports

# In a folder of its own: if JAX finds libtpu in its environment, it looks for a TPU at each start.
$(VENV)/libtpu: requirements-compile.txt $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --target $@ -r requirements-compile.txt
	touch $@

test: lint $(VENV)/libtpu  ## linting, types, and the whole suite
	TPU_LIBRARY_PATH=$(abspath $(VENV))/libtpu/libtpu/libtpu.so $(BIN)/python -m pytest -n 2 --dist=loadfile --no-loadscope-reorder

starter_features: env  ## encodes the starter corpus again with MiniLM
	$(BIN)/python -c "from coco_jax.recognition import pretrained as p; p.write_features('coco_jax/recognition/' + p.FEATURES)"

docs: env  ## builds the documentation in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## removes data and runs
	rm -rf $(DATA) runs
