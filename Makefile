# Three commands for a fresh machine with Python 3.10 to 3.12, a C++ compiler and make:
#   make demo    the whole way on a small drawn world: runs/demo/report.html
#   make bench   speed beside open_clip's, in minutes
#   make test    the test suite: every check, of large grids a part; make test-all: all of it
# A faster way to install (another index, a wheel folder) goes through pip's own variables, e.g. PIP_FIND_LINKS. Only there pip is not
# quiet: in the minutes that it takes it says what it loads and how far it is.
# 2.7 GB: torch 2.13 and the wheels that it requires on PyPI, x86-64, 2026-11-26.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-all bench gpu-check peer spark install lint clean
.DELETE_ON_ERROR:

demo: install
	$(BIN)/python -m sycoca_ds.demo $(DEMO)

# Three processes side by side, since tests also wait, a file of tests at a time; WORKERS=0 is this process alone, for -s and --pdb.
# Threads of four processes on two cores would spend their time waiting for each other awake.
WORKERS ?= 3
# Modules are compiled once, whatever the environment says of that: hundreds of processes import them.
RUN_TESTS = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: install
	$(RUN_TESTS) $(PYTEST)

# Nightly: with the cells of grids that `make test` leaves out.
test-all: install
	$(RUN_TESTS) -m "" $(PYTEST)

# What only a GPU can show, in under ten minutes: correctness against the CPU, every ZeRO stage, memory, MFU, a save and its resume.
gpu-check: install
	$(BIN)/python benchmarks/gpu_check --out runs/gpu_check $(GPU_CHECK)

# Ours beside open_clip's, in one run, kept in runs/bench; BENCH="training --turns 9" is a part, with more turns (docs/performance.md).
bench: peer
	$(BIN)/python -m benchmarks $(BENCH)

# open_clip 3.3 and CLIP_benchmark 1.6 beside the environment, 270 MB, for the tests and benchmarks that compare with it; without it
# they skip.
peer: install
	tests/worlds/open_clip/peer.sh build/open_clip $(BIN)/python

# Spark for curation and download, 450 MB, for the tests that compare it with DuckDB; without it, or without Java, they skip.
spark: install
	$(BIN)/python -m pip install --quiet -e '.[spark]'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install: $(VENV)/.installed

# The stamp is written last, so an interrupted installation is taken up again. DeepSpeed compiles its operators at first use,
# about a minute each: done here, once, so that no run or test waits for it.
$(VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10, 3.11 or 3.12 found: install one, or name it with make PYTHON=..." >&2; exit 1; }
	@command -v c++ >/dev/null || { echo "error: no C++ compiler found, which DeepSpeed needs: install g++ (Red Hat: gcc-c++)" >&2; exit 1; }
	@$(PYTHON) -c 'import sysconfig; open(sysconfig.get_paths()["include"] + "/Python.h")' 2>/dev/null \
		|| { echo "error: no Python.h for $(PYTHON), which DeepSpeed needs: install python3-dev (Red Hat: python3-devel)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch, deepspeed and what else is needed into $(VENV): 2 to 9 minutes and 2.1 GB with torch for CPUs;"
	@echo "PyPI's torch for Linux brings CUDA, 2.7 GB to download: without a GPU give PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install -e '.[all]'
	@echo "compiling DeepSpeed's operators into $(VENV)/torch_extensions: 2 of about 45 s each, minutes on a busy machine"
	$(BIN)/python -m sycoca_ds.engine.operators
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
