# make run     the five notebooks on the tiny preset: make run ARGS="--name mine --seed 1 -p key=value"
# make check   whether this machine gives the committed smoke run's digits: make check ARGS="--preset tiny" for the whole
# make test    the tests:                             make test ARGS="tests/test_runs.py"
# make faults  runs killed, damaged and disturbed, and what else is slow, half an hour or so: what was tried, what was lost
# make lab     JupyterLab on the notebooks, with runs, figures and pages beside them
# make setup   only the environment, in .venv; another interpreter: make setup PYTHON=python3.12
# make lint    style
# make clean   delete the environment and caches; runs are kept

PYTHON ?= python3
ARGS ?=
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: run check test faults lab setup lint clean

run: setup
	$(VENV)/bin/mmsr run $(ARGS)

check: setup
	$(VENV)/bin/mmsr check $(ARGS)

test: setup
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

faults: setup
	$(VENV)/bin/python -m pytest -n 2 -m slow $(ARGS)

lab: setup
	$(VENV)/bin/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/01_build_data.ipynb $(ARGS)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

setup: $(STAMP)

# The stamp is written last: a set-up that was interrupted begins again from nothing.
$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "mmsr needs Python 3.11 or newer as $(PYTHON): install one, or name one: make setup PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --requirement requirements.lock
	$(VENV)/bin/python -m pip install --no-deps --no-build-isolation --editable .
	touch $(STAMP)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
