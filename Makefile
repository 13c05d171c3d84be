# make demo: the main job on the embedded recordings;  make test: everything that is checked.
export NEURODIFF_DATA ?= $(firstword $(wildcard ../shared/data))
PYTHON ?= python3
PIP = .venv/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
JOBS ?= 2

.PHONY: demo test lint format docs clean

.venv/demo: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) -e '.[demo]'
	touch $@

.venv/dev: .venv/demo
	$(PIP) -e '.[dev]'
	touch $@

demo: .venv/demo
	.venv/bin/neurodiff demo

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright --pythonpath .venv/bin/python

test: .venv/dev
	.venv/bin/python -m pytest -n $(JOBS) -m "not slow"
	.venv/bin/python -m pytest -n $(JOBS) -m slow tests

format: .venv/dev
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

docs: .venv/dev
	$(PIP) -e '.[docs]'
	.venv/bin/python -m sphinx -W -b html docs docs/_build/html

clean:
	rm -rf .venv build dist docs/_build
