# What a person types. Each target makes the environment that it needs, and is quick when it is there.
#
#   make demo                    train Mask R-CNN with PartialNet on drawn images, in minutes
#   make test                    the test suite
#   make test-slow               the tests that take minutes
#   make lint                    ruff
#   STACK=openmmlab make ...     the same on OpenMMLab's own last releases

STACK ?= onedl
VENV := $(if $(filter openmmlab,$(STACK)),.venv-openmmlab,.venv)
BIN := $(CURDIR)/$(VENV)/bin
WORK_DIR ?= work_dirs/demo
PYTEST_ARGS ?=

.PHONY: env demo test test-slow lint

env:
	@tools/setup_env.sh $(STACK)

demo: env
	@PYTHON=$(BIN)/python tools/demo.sh $(WORK_DIR)

test: env
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-slow: env
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: env
	$(BIN)/ruff check .
