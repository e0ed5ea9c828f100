# make bench: measure the bundled model on this machine's CPU and gate it; make test: the project's own tests; make lint:
# checks. ARGS passes options on: make bench ARGS="--llm-backends=eager,sdpa". PYTHON is the interpreter of a new .venv.

PYTHON ?= python3
ARGS ?=
RUN = HF_HUB_OFFLINE=1 .venv/bin/python -m
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile

# Every worker imports torch and transformers: in 6 s, or in 12 where their bytecode is not kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: bench test lint clean
.DELETE_ON_ERROR:

bench: .venv/installed
	$(RUN) pytest suites --llm-device=cpu $(ARGS)

# In parallel, and each process on one thread: threads of several wait for one another. Latencies are for make bench.
test: .venv/installed
	OMP_NUM_THREADS=1 $(RUN) pytest tests -n logical --maxprocesses 4 --dist worksteal $(ARGS)

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python tools/prose.py

# --no-deps: the requirements are complete, and what they leave out would break the CPU environment. --no-compile: of
# 150 packages most modules are never imported, and compiling them all takes a third of the time.
# PyPI's torch for Linux is a CUDA build. It imports only with its CUDA libraries, which --no-deps leaves out.
.venv/installed: requirements/cpu.txt pyproject.toml
	$(PYTHON) -m venv --clear .venv
	$(PIP) --no-deps -r requirements/cpu.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	@.venv/bin/python -c "import torch" 2>/dev/null || { \
	  echo "pip found no CPU build of torch, so make also installs the CUDA libraries of the build it found, about 3.5 GB." \
	       "For the small build: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make clean bench"; \
	  $(PIP) --constraint requirements/cpu.txt torch; }
	.venv/bin/python -c "import torch"
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
