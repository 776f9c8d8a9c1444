PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ALGORITHM ?= fedavg
SEED   ?= 0
DATA   ?=
ROUNDS ?=
TESTS_AT_ONCE ?= -n logical --maxprocesses 8 --dist loadfile

.PHONY: install demo up test test-slow test-all check bench clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: install  ## a federation on this machine: DATA=folder ALGORITHM=name ROUNDS=n SEED=n
	$(BIN)/python -m deploy.quickstart --algorithm $(ALGORITHM) --seed $(SEED) $(if $(DATA),--data $(DATA)) $(if $(ROUNDS),--rounds $(ROUNDS))

up: install
	$(BIN)/coordinator up

test: install
	$(BIN)/python -m pytest $(TESTS_AT_ONCE) -m "not slow and not gpu"

test-slow: install
	$(BIN)/python -m pytest -m "slow and not gpu"

test-all: test test-slow

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.architecture.sizes

bench: install
	$(BIN)/python -m benchmarks
