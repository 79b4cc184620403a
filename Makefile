# Everything sets itself up: `make demo` and `make test` work in a fresh clone with Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
DEMO_ARGS ?=
TEST_ARGS ?=
LOAD_ARGS ?= --weights demo

.PHONY: venv demo test soak check format lock openapi bench bench-gpu load

venv: .venv/.installed

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=python3.11 or so")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# A server with small random weights, driven by Segmind's own SDK. DEMO_ARGS=--once stops after the pictures.
demo: venv
	$(BIN)/flux-server demo $(DEMO_ARGS)

test: venv
	$(BIN)/python -P -m pytest $(TEST_ARGS)

# The proofs that take longer than a change can wait for: the full figures of the reliability tests.
soak: venv
	$(BIN)/python -P -m pytest -m soak --timeout=7200 $(TEST_ARGS)

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -P -m pytest $(TEST_ARGS)

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# All benchmarks that need no card, on the demo weights; reports go to benchmarks/results.
bench: venv
	$(BIN)/python -m benchmarks.suite cpu

# On a CUDA card, full-size models with random values: latency beside stock diffusers, throughput, cold start. No download.
bench-gpu: venv
	$(BIN)/python -m benchmarks.suite gpu

# How long a worker takes until it can draw, by phases. LOAD_ARGS='--weights random' takes full-size weights, on a card.
load: venv
	$(BIN)/python -m benchmarks.load $(LOAD_ARGS) --save

# The API's description, checked in so that changes to it are seen.
openapi: venv
	$(BIN)/flux-server openapi > openapi.json

# Pinned versions for every platform, without index addresses. Needs uv.
lock:
	uv pip compile --universal --python-version 3.11 --extra dev --no-header --no-annotate --upgrade pyproject.toml -o requirements.lock
