# What a person types. Each target makes the environment that it needs, and is quick when it is there.
#
#   make demo                    train Mask R-CNN with PartialNet on drawn images, in minutes
#   make test                    the test suite
#   make test-slow               the tests that take minutes
#   make faults                  interrupt trainings in every way that a machine does, and resume them
#   make soak                    train for 20 minutes with changing image sizes, and watch the memory
#   make lint                    ruff
#   STACK=openmmlab make ...     the same on OpenMMLab's own last releases

STACK ?= onedl
VENV := $(if $(filter openmmlab,$(STACK)),.venv-openmmlab,.venv)
BIN := $(CURDIR)/$(VENV)/bin
WORK_DIR ?= work_dirs/demo
# Two processes of one thread each suit the smallest machines, and networks this small.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
PYTEST_ARGS ?=

.PHONY: env demo test test-slow faults soak lint

env:
	@tools/env/setup_env.sh $(STACK)

demo: env
	@PYTHON=$(BIN)/python tools/misc/demo.sh $(WORK_DIR)

test: env
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-slow: env
	$(PYTEST) -m slow $(PYTEST_ARGS)

faults: env
	$(BIN)/python -m tests.drills.fault_drill

soak: env
	@[ -d data/shapes ] || $(BIN)/python tools/dataset_tools/make_shapes.py data/shapes
	nice -n 19 $(BIN)/python tools/misc/soak.py configs/mask_rcnn/partialnet_t0_shapes.py

lint: env
	$(BIN)/ruff check .
