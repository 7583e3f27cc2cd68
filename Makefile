# The commands. scripts/ has how they work, CMakeLists.txt how things are built.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
PYTHON_IN_VENV := .venv/bin/python
SETUP := scripts/setup.sh
CONFIGURE := cmake --preset release --log-level=WARNING
BUILD := cmake --build --preset release

.DEFAULT_GOAL := help
.PHONY: help build compilers cuda demo docs test test-integrations bench sanitize format lint clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

build:  ## libraries, tests, benchmarks and the flashoptim command, into build/release
	@$(SETUP)
	@$(CONFIGURE)
	@$(BUILD)

cuda:  ## the CUDA backend for every GPU generation, into build/cuda (needs nvcc, no GPU)
	@$(SETUP)
	@cmake -S . -B build/cuda -G Ninja --log-level=WARNING -DCMAKE_BUILD_TYPE=Release -DFLASHOPTIM_TORCH=OFF \
	    -DFLASHOPTIM_CUDA=ON -DFLASHOPTIM_CUDA_ARCHITECTURES=all
	@cmake --build build/cuda --target flashoptim_cuda

compilers:  ## core, checkpoints and C interface with the oldest and newest compilers (NAMES=...)
	@$(SETUP)
	@scripts/compilers.sh $(NAMES)

demo:  ## train a transformer beside standard optimizers; ends with a table of memory and loss
	@$(SETUP)
	@$(CONFIGURE)
	@$(BUILD) --target flashoptim_command
	@scripts/demo.sh

docs:  ## the documents and the API reference as HTML, into build/docs/html; warnings are errors
	@$(SETUP) --docs
	@$(CONFIGURE)
	@$(BUILD) --target flashoptim_operators
	@$(PYTHON_IN_VENV) scripts/docs.py

test:  ## every test, the linters and the build without Torch; ends with the ten slowest steps and a summary
	@$(SETUP) --dev
	@$(PYTHON_IN_VENV) scripts/check.py test

test-integrations:  ## the Python package with transformers, accelerate and Lightning (from PyPI)
	@$(SETUP) --dev
	@$(CONFIGURE)
	@$(BUILD) --target flashoptim_operators
	@scripts/test_integrations.sh

bench:  ## the benchmarks: backends one by one, then the step beside its peers (QUICK=1: under 5 minutes)
	@$(SETUP) --bench
	@$(CONFIGURE)
	@$(BUILD) --target step_bench flashoptim_bench_c
	@[ -n "$(QUICK)" ] || build/release/bench/step_bench
	@$(PYTHON_IN_VENV) bench/compare.py $(if $(QUICK),--quick)

sanitize:  ## the core's tests and the command's bad inputs under sanitizers
	@$(SETUP) --dev
	@$(PYTHON_IN_VENV) scripts/check.py sanitize

format:  ## rewrite the layout of C++ and Python
	@$(SETUP) --dev
	@$(PYTHON_IN_VENV) scripts/lint.py --fix

lint:  ## clang-format, clang-tidy (core only), ruff and mypy, without changing anything
	@$(SETUP) --dev
	@$(CONFIGURE)
	@$(PYTHON_IN_VENV) scripts/lint.py

clean:  ## remove what was built; .venv stays
	rm -rf build
