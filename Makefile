# Set-up and checks. Each target makes its own virtual environment; a stamp file makes the next run instant.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
JOBS ?= 2
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test test-serving lint benchmark clean

demo: $(VENV)/.run
	$(RUN) -m tools.demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist loadgroup

# Part of `test`. The tests make the server's own environment, .server-venv, themselves.
test-serving: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests/serving

lint: $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

benchmark: $(VENV)/.dev
	$(RUN) -m tools.benchmark

clean:
	rm -rf $(VENV) .server-venv demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(RUN):
	$(if $(PYTHON),,$(error Python 3.11 or newer was not found; install it or give PYTHON=/path/to/python3))
	"$(PYTHON)" -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(RUN)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

# The development environment serves the demo too.
$(VENV)/.dev: pyproject.toml | $(RUN)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ $(VENV)/.run
