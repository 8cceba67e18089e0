# Everything here needs only python3 (3.11 or newer) with venv; each target sets up .venv by itself.
.PHONY: demo test lint bench simulate chaos alone soak audit lock clean

PYTHON ?= python3
# More words for pytest: make test TEST_ARGS="-k signal -x". Most tests wait for workers, so three files go side by side,
# each with servers of its own.
TEST_ARGS ?=
TEST_JOBS ?= 3
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Two stamps: the demo installs little, development installs everything. A changed lock installs again.
DEMO_READY := $(VENV)/.demo-ready
DEV_READY := $(VENV)/.dev-ready

demo: $(DEMO_READY)
	$(BIN)/python examples/checkout/demo.py

# Starts its own Redis servers: redis-server or valkey-server on PATH, else the embedded Valkey.
test: $(DEV_READY)
	$(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile $(TEST_ARGS)

lint: $(DEV_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(DEV_READY)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

# Random programs under random faults, on all cores: make simulate N=1000000 SEED=0; LIMIT=600 ends it after 10 minutes.
N ?= 20000
SEED ?= 0
LIMIT ?= inf
simulate: $(DEV_READY)
	$(BIN)/python -m tests.simulation --histories $(N) --seed $(SEED) --limit $(LIMIT)

# Every fault of the catalogue on real workers and servers, the long ones as well.
chaos: $(DEV_READY)
	$(BIN)/python -m pytest -m "chaos or not chaos" tests/chaos tests/crash tests/pools tests/sql $(TEST_ARGS)

# The crash suite with one database as store and broker, and no other server: DATABASE=postgresql, or sqlite.
DATABASE ?= postgresql
alone: $(DEV_READY)
	DURABLE_TEST_ALONE=$(DATABASE) DURABLE_CRASH_KILLS=15 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile \
		tests/crash $(TEST_ARGS)

# Random programs on real workers and servers under all faults; a seed of its own, unless one is given.
# make soak MINUTES=30 SEED=7 BROKER=rabbitmq STORE=postgresql
MINUTES ?= 30
BROKER ?= redis
STORE ?= redis
soak: $(DEV_READY)
	$(BIN)/python -m tests.chaos.soak --minutes $(MINUTES) --broker $(BROKER) --store $(STORE) \
		$(if $(filter command% environment%,$(origin SEED)),--seed $(SEED))

# Asks a vulnerability service: needs the internet, and fails without it.
audit: $(DEV_READY)
	$(BIN)/python tools/audit.py requirements/dev.lock requirements/demo.lock

# Bring the locked versions up to date. The files name neither registries nor machines.
UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --strip-extras \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml
lock: $(DEV_READY)
	$(UV_COMPILE) --extra dev --output-file requirements/dev.lock
	$(UV_COMPILE) --extra embedded --constraint requirements/dev.lock --output-file requirements/demo.lock

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "durable_celery needs Python 3.11 or newer; choose one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(DEMO_READY): requirements/demo.lock pyproject.toml | $(BIN)/python
	$(PIP) install --requirement requirements/demo.lock
	$(PIP) install --no-deps --editable .
	touch $@

$(DEV_READY): requirements/dev.lock pyproject.toml | $(BIN)/python
	$(PIP) install --requirement requirements/dev.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@ $(DEMO_READY)
