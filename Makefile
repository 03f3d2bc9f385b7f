# make demo: the main job, on this machine, in a minute.
# make test: the tests, with everything that they need.
# make check: the linters and the type checker.
# make bench: speed and size beside other tools, in about six minutes; BENCH_ARGS="launch --rounds 3".

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench clean

demo: $(VENV)/installed
	LAYERSTORE=$(CURDIR)/$(BIN)/layerstore sh examples/demo.sh

test: $(VENV)/installed-test
	sh .ci/packages
	$(BIN)/pytest $(PYTEST_ARGS)

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

$(VENV)/installed: pyproject.toml
	PYTHON="$(PYTHON)" sh .ci/venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
