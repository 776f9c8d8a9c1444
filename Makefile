PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ALGORITHM ?= fedavg
SEED   ?= 0
DATA   ?=
ROUNDS ?=
SLOW   ?=
CORES := $(shell nproc 2> /dev/null || getconf _NPROCESSORS_ONLN)
# Processes of a half of the tests. Tests of processes wait for half of their time, and the halves run side by side.
at_once = -n $(shell n=$$(( $(CORES) + $(1) )); echo $$(( n < 8 ? n : 8 ))) --dist loadfile --no-loadscope-reorder
FILES_AT_ONCE ?= $(call at_once,1)
SERVERS_AT_ONCE ?= $(call at_once,0)
ON_SERVERS_LOG := $(VENV)/test-on-servers.log

ON_SERVERS := tests/coordinator tests/chaos tests/faults tests/end_to_end tests/deploy
QUICK := -m "not slow and not gpu"

.PHONY: install demo up test test-on-files test-fast test-on-servers check bench pin-packages pin-images clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'  # most modules are never loaded
	touch $@

demo: install  ## a federation on this machine: DATA=folder ALGORITHM=name ROUNDS=n SEED=n
	$(BIN)/python -m examples.quickstart --algorithm $(ALGORITHM) --seed $(SEED) $(if $(DATA),--data $(DATA)) $(if $(ROUNDS),--rounds $(ROUNDS))

up: install
	$(BIN)/coordinator up

test: install  ## on SQLite and files, and beside it all that uses an engine on PostgreSQL, Redis and S3; SLOW=1: every test
	@$(MAKE) --no-print-directory test-on-servers > $(ON_SERVERS_LOG) 2>&1 & servers=$$!; \
	$(MAKE) --no-print-directory test-on-files; files=$$?; \
	wait $$servers; status=$$?; cat $(ON_SERVERS_LOG); exit $$(( files || status ))

test-on-files: install  ## the first half of `make test`
	$(BIN)/python -m pytest $(FILES_AT_ONCE) -rs $(if $(SLOW),-m "not gpu",$(QUICK))

test-fast: install  ## what a change touches: BASE=revision, by default where it left main
	$(BIN)/python -m pytest $(FILES_AT_ONCE) $(QUICK) $$($(BIN)/python -m tests.changed $(BASE))

test-on-servers: install  ## the second half of `make test`
	FEDLOOM_TESTS_ON=postgresql $(BIN)/python -m pytest $(SERVERS_AT_ONCE) -rs $(QUICK) $(ON_SERVERS)

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
