# make quickstart | make test: the README's two commands. They need Python 3.11 or later and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
# options of the quickstart: make quickstart QUICKSTART='--steps 300 --generator-steps 300'
QUICKSTART ?=
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d%d" % sys.version_info[:2])')
# versions that were tried together; on another Python pip resolves for itself
CONSTRAINTS := $(wildcard constraints/py$(VERSION).txt)

# options of the measurements on a GPU; a dry run without one: make gpu GPU='--device cpu --small'
GPU ?=

.PHONY: quickstart test test-all lint gpu docs notebooks clean

quickstart: $(VENV)/installed
	$(BIN)/fqgan quickstart $(QUICKSTART)

test: lint
	$(BIN)/pytest -n 2 --dist worksteal -m 'not slow'

test-all: lint
	$(BIN)/pytest -n 2 --dist worksteal

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

gpu: $(VENV)/installed
	$(BIN)/python benchmarks/gpu.py $(GPU)

docs: $(VENV)/installed
	$(BIN)/mkdocs build --strict

notebooks: $(VENV)/installed
	$(BIN)/python tools/notebooks.py

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@# bytecode is made of what is imported, not of all: that took a quarter of the installation's time
	$(BIN)/pip install --disable-pip-version-check --no-compile -q $(addprefix -c ,$(CONSTRAINTS)) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
