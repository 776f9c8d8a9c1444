PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ALGORITHM ?= fedavg
SEED   ?= 0
DATA   ?=
ROUNDS ?=
SLOW   ?=
# Two more than there are cores: tests of processes wait for half of their time.
TESTS_AT_ONCE ?= -n $(shell n=$$(( $$(nproc 2> /dev/null || getconf _NPROCESSORS_ONLN) + 2 )); echo $$(( n < 8 ? n : 8 ))) --dist loadfile --no-loadscope-reorder

ON_SERVERS := tests/coordinator tests/chaos tests/faults tests/end_to_end tests/deploy
QUICK := -m "not slow and not gpu"

.PHONY: install demo up test test-fast test-on-servers check bench pin-packages pin-images clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'  # most modules are never loaded
	touch $@

demo: install  ## a federation on this machine: DATA=folder ALGORITHM=name ROUNDS=n SEED=n
	$(BIN)/python -m examples.quickstart --algorithm $(ALGORITHM) --seed $(SEED) $(if $(DATA),--data $(DATA)) $(if $(ROUNDS),--rounds $(ROUNDS))

up: install
	$(BIN)/coordinator up

test: install  ## on SQLite and files; then on PostgreSQL, Redis and S3 all that uses an engine; SLOW=1: every test
	$(BIN)/python -m pytest $(TESTS_AT_ONCE) -rs $(if $(SLOW),-m "not gpu",$(QUICK))
	$(MAKE) test-on-servers

test-fast: install  ## what a change touches: BASE=revision, by default where it left main
	$(BIN)/python -m pytest $(TESTS_AT_ONCE) $(QUICK) $$($(BIN)/python -m tests.changed $(BASE))

test-on-servers: install  ## the second half of `make test`
	FEDLOOM_TESTS_ON=postgresql $(BIN)/python -m pytest $(TESTS_AT_ONCE) -rs $(QUICK) $(ON_SERVERS)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.architecture.sizes
	$(BIN)/python -m tests.architecture.naming

bench: install
	$(BIN)/python -m benchmarks

pin-packages: install  ## hashes of the images' Python packages, from constraints.txt
	$(BIN)/python -m deploy.pin_packages

pin-images: install  ## digests of the images of others: REGISTRY=https://…, the registry of names without a host
	$(BIN)/python -m deploy.pin_images $(REGISTRY)
