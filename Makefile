# make demo   train on rendered scenes, export, verify, benchmark, draw; results in demo/
# make test   every test but those marked slow or gpu
# make gpu-check   correctness, speed and export on the GPU; results in docs/results/gpu
# make check  formatting, linters, type checkers, tests
#
# PYTHON    interpreter that makes .venv (3.11 or newer)
# PIP_ARGS  further words for pip, such as --extra-index-url with the address of PyTorch's CPU
#           wheels, which spares the CUDA packages; PIP_INDEX_URL and the like work too
# WORKERS   test processes; one thread each

PYTHON ?= python3
PIP_ARGS ?=
VENV ?= .venv
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Written when the environment holds what these files ask for.
READY := $(VENV)/.boxseg-ready
BUILT := $(VENV)/.boxseg-built
NATIVE := $(wildcard runtime/csrc/*.c runtime/csrc/*.h runtime/include/*.h)
C_FILES := $(NATIVE) $(wildcard $(foreach dir,runtime/examples/* tests/native tests/fuzz,\
    $(addprefix $(dir)/,*.c *.h *.cpp *.hpp)))

.PHONY: demo test gpu-check check format venv clean

venv: $(BUILT)

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
	    'boxseg needs Python 3.11 or newer, this is ' + sys.version.split()[0])"
	$(PYTHON) -m venv $(VENV)

$(READY): constraints.txt pyproject.toml | $(BIN)/python
	$(PIP) install $(PIP_ARGS) -c constraints.txt setuptools wheel
	$(PIP) install $(PIP_ARGS) -c constraints.txt --no-build-isolation -e ".[dev]"
	touch $@

$(BUILT): $(READY) setup.py $(NATIVE)
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	touch $@

test: $(BUILT)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not gpu"

gpu-check: $(BUILT)
	$(BIN)/python docs/gpu_check.py docs/results/gpu

demo: $(BUILT)
	PATH="$(abspath $(BIN)):$$PATH" bash docs/demo.sh demo

check: $(BUILT)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy boxseg
	$(BIN)/mypy tests
	$(BIN)/pyright
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)
	$(MAKE) test

format: $(BUILT)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(C_FILES)

clean:
	rm -rf build dist *.egg-info demo runtime/_native*.so
