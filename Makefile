# The stages, in the order in which data flows. `make demo` and `make test` need only Python.
#
#   make prepare features train eval                         download COCO 2014 and use it
#   make prepare features train eval DATASET=flickr8k SOURCE=/path/to/flickr8k
#
# DATASET, SOURCE, RUN and DATA say what to work on and where. ARGS adds options to every stage named:
#   make train ARGS="--cell lstm"
# Paths may hold spaces, accents and quotes: use them through $(call quote,...).

DATASET ?= coco2014
SOURCE  ?=
RUN     ?=
DATA    ?= $(or $(SHOWTELL_DATA),data)
ARGS    ?=
PYTHON  ?= python3

VENV     := .venv
BIN      := $(VENV)/bin
SHOWTELL  = SHOWTELL_DATA=$(call quote,$(DATA)) $(BIN)/showtell

quote     = '$(subst ','\'',$(1))'
# --resume if run $(1) has a checkpoint to resume from.
resume    = $(shell [ ! -e $(call quote,$(DATA)/runs/$(1)/last.safetensors) ] || echo --resume)

.DEFAULT_GOAL := help
.PHONY: help install download prepare features train eval bench demo flickr8k-features flickr8k \
  flickr8k-ensemble test chaos lint types format clean

help:
	@echo "make demo                       train and score on drawn scenes, in a few minutes"
	@echo "make test                       run lint, type checks and tests"
	@echo "make chaos                      kill, fill disks, flip bits, feed hostile files: 30 minutes"
	@echo "make prepare features train eval [DATASET=flickr8k SOURCE=DIR] [RUN=NAME] [ARGS=...]"
	@echo "                                run the stages, on COCO 2014 by default"
	@echo "make flickr8k | flickr8k-ensemble SOURCE=DIR"
	@echo "                                run a recipe on Flickr8k, from its folder to scores"
	@echo "make bench [ARGS=STAGE]         compare the speed of each stage with the hardware limit"
	@echo "make install                    set up .venv (every target above does this first)"
	@echo "make format | clean             format the code | remove .venv and caches"

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml setup.py
	@echo "Installing torch and the other dependencies into $(VENV): about 7 GB with CUDA's libraries."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
	@touch $@
	@echo "Installed. To use the command showtell: source $(VENV)/bin/activate"

download: install
	$(SHOWTELL) download --dataset $(DATASET) $(ARGS)

prepare: install
	$(if $(SOURCE),,$(if $(filter coco2014 coco2017 scenes,$(DATASET)),$(SHOWTELL) download --dataset $(DATASET)))
	$(SHOWTELL) prepare --dataset $(DATASET) $(if $(SOURCE),--source $(call quote,$(SOURCE))) $(ARGS)

features: install
	$(SHOWTELL) features --dataset $(DATASET) $(ARGS)

train: install
	$(SHOWTELL) train --dataset $(DATASET) $(if $(RUN),--run $(RUN)) $(ARGS)

eval: install
	$(SHOWTELL) eval $(if $(RUN),--run $(RUN),--dataset $(DATASET)) $(ARGS)

demo: install
	$(SHOWTELL) download --dataset scenes
	$(SHOWTELL) prepare --dataset scenes
	$(SHOWTELL) features --dataset scenes
	$(SHOWTELL) train --dataset scenes --run demo $(call resume,demo) \
	  --hidden-size 256 --embed-size 256 --batch-size 64 --epochs 24 \
	  --dropout 0.3 --label-smoothing 0.05 --learning-rate 0.003
	$(SHOWTELL) eval --run demo --beam 3
	@echo "To caption a photograph with the built-in model, which was trained on Flickr8k:"
	@echo "  $(BIN)/showtell caption PHOTO --model flickr8k"

bench: install
	$(SHOWTELL) bench $(ARGS)

# Recipes on Flickr8k, from its folder to the scores. They score the test split if SOURCE has the
# official list of it, else the validation split. Stopped and run again, they keep finished work.
flickr8k-features: install
	@test -n $(call quote,$(SOURCE)) || { echo "make flickr8k needs SOURCE=/path/to/flickr8k"; exit 2; }
	$(SHOWTELL) prepare --dataset flickr8k --source $(call quote,$(SOURCE))
	$(SHOWTELL) features --dataset flickr8k --weights caffe --views 4 --grid

flickr8k: flickr8k-sc-0
	$(SHOWTELL) eval --run flickr8k-sc-0 --preset consensus $(ARGS)

flickr8k-ensemble: flickr8k-sc-0 flickr8k-sc-1 flickr8k-sc-2
	$(SHOWTELL) eval $(patsubst %,--run %,$^) --preset consensus --pool --consensus-precision 2 $(ARGS)

.SECONDARY:

train-flickr8k = $(SHOWTELL) train --dataset flickr8k --features resnet50-caffe --run $@ --seed $* \
  $(call resume,$@)

flickr8k-soft-%: flickr8k-features
	$(train-flickr8k) --preset soft-attention

flickr8k-sc-%: flickr8k-soft-%
	$(train-flickr8k) --preset self-critical --init flickr8k-soft-$*

test: lint types
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# See docs/reliability.md. The results are in build/chaos.
chaos: install
	$(BIN)/python tests/chaos --output build/chaos $(ARGS)
	$(BIN)/python tests/chaos/stops.py 40
	$(BIN)/python tests/chaos/clients.py 10000
	$(BIN)/python tests/chaos/cluster.py --output build/chaos
	SHOWTELL_FUZZ_EXAMPLES=50000 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 \
	  $(wildcard tests/*/*/test_fuzz.py)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	@mkdir -p .typecheck && ln -sfn .. .typecheck/showtell
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .typecheck .mypy_cache .ruff_cache .pytest_cache *.egg-info
