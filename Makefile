# make bench: measure the bundled model on this machine's CPU (.venv has a CPU torch) and gate it; make test: the project's own tests; make lint: checks.
# ARGS passes options on: make bench ARGS="--llm-backends=eager,sdpa". PYTHON chooses the interpreter of a new .venv.

PYTHON ?= python3
ARGS ?=
RUN = HF_HUB_OFFLINE=1 .venv/bin/python -m

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

# --no-deps: the requirements are complete, and what they leave out would break the CPU environment. --no-compile: of
# 150 packages most modules are never imported, and compiling them all takes a third of the time.
.venv/installed: requirements/cpu.txt pyproject.toml
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -r requirements/cpu.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@.venv/bin/python -c "import torch" || { \
	  echo "torch was installed but does not import: on Linux it must be a CPU build. Point pip at PyTorch's CPU wheel" \
	       "index (PIP_EXTRA_INDEX_URL) and run make again; see docs/how-to/install.md" >&2; exit 1; }
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
