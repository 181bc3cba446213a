# Everything starts from a clone and python3: each target makes what it needs.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: help build demo test test-simulated-isa bench lint cuda-report clean

help:
	@echo "make demo    train a small network with fastconv's and torch's layers, side by side"
	@echo "make test    build and run every test"
	@echo "make test-simulated-isa  every test on the AVX-512 kernels, on a machine with AVX2 alone"
	@echo "make bench   compare with torch on this machine (BENCH_ARGS=--quick for a short run)"
	@echo "make lint    every check of style, types and spelling"
	@echo "make cuda-report  registers, spills, occupancy and instructions of every CUDA kernel; needs nvcc"
	@echo "make build   .venv with fastconv installed for development"
	@echo "make clean   remove what the targets above made"

# The environment is made anew when what it must hold changes. torch comes first and pinned, so that nothing replaces it.
$(VENV)/.ready: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet "$(TORCH)" numpy
	$(PY) -m pip install --quiet "scikit-build-core>=0.10" "pybind11>=3.0,<4" cmake ninja
	@touch $@

build: $(VENV)/.ready
	$(PY) -m pip install --quiet --no-build-isolation --editable ".[torch,numba,examples,test,bench]"

demo: build
	$(PY) examples/train_digits.py $(DEMO_ARGS)

test: build
	FASTCONV_REQUIRE_NATIVE=1 $(PY) -m pytest -n 2 $(TEST_ARGS)

# The library with simulated instruction sets takes the place of the installed one, which stays as it is.
SIMULATED := build/simulated-isa
test-simulated-isa: build
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake -S . -B $(SIMULATED) -G Ninja -D CMAKE_BUILD_TYPE=Release \
	  -D FASTCONV_SIMULATE_ISA=ON -D FASTCONV_CUDA=OFF -D SKBUILD_PROJECT_NAME=fastconv -D SKBUILD_PROJECT_VERSION=0 \
	  -D SKBUILD_PROJECT_VERSION_FULL=0 -D Python_EXECUTABLE="$(CURDIR)/$(PY)" \
	  -D pybind11_DIR="$$($(PY) -m pybind11 --cmakedir)"
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake --build $(SIMULATED) --target fastconv_kernels
	for isa in avx512 avx512_bf16; do \
	  LD_PRELOAD="$(CURDIR)/$(SIMULATED)/libfastconv_kernels.so" FASTCONV_ISA=$$isa FASTCONV_REQUIRE_NATIVE=1 \
	    $(PY) -m pytest -n 2 -k "not cuda" $(TEST_ARGS) || exit; \
	done

bench: build
	$(PY) -m bench $(BENCH_ARGS)

lint: build
	$(PY) -m pip install --quiet --no-build-isolation --editable ".[lint]"
	$(VENV)/bin/pre-commit run --all-files

# Needs no environment: the table is prettier with rich, which .venv has.
cuda-report:
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) tools/cuda_report.py $(REPORT_ARGS)

clean:
	rm -rf $(VENV) build dist wheelhouse demo.png .pytest_cache .mypy_cache .ruff_cache
