# Every target makes what it needs: a virtual environment in .venv, installed with the tested versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable
INPUTS := pyproject.toml setup.py constraints.txt uumamba/__init__.py $(wildcard uumamba/ops/native/*)
PYTEST := $(BIN)/python -m pytest --durations=10
# A process for each core, each with one thread; not for slow tests, some of which kill processes.
PARALLEL := OMP_NUM_THREADS=1 $(PYTEST) --numprocesses auto --dist loadfile

.PHONY: demo test slow lint types doctest docs image check clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/uumamba demo $(ARGS)

test: $(VENV)/.installed-test
	$(PARALLEL) $(ARGS)

slow: $(VENV)/.installed-test
	$(PYTEST) -m slow $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/python -m mypy

doctest: $(VENV)/.installed-test
	$(PARALLEL) --doctest-modules uumamba data_prep docs/hooks $(ARGS)

docs: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --site-dir build/docs $(ARGS)

image:
	.ci/image

check:
	.ci/run

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: $(INPUTS)
	$(call create-venv)
	$(PIP_INSTALL) .
	touch $@

$(VENV)/.installed-test: $(INPUTS)
	$(call create-venv)
	$(PIP_INSTALL) '.[test,docs]'
	touch $(VENV)/.installed $@

# Some systems split ensurepip from Python; there the pip at hand puts one into the environment.
define create-venv
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV) || { \
		$(PYTHON) -m venv --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install --disable-pip-version-check pip; }
endef
