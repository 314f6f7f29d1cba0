# SPDX-License-Identifier: Apache-2.0
# make demo    build tiny data and a tiny model, train it, evaluate it, print the table
# make test    ruff, mypy, pytest              PYTEST_ARGS="-k grader" narrows the last
# make lint    ruff and mypy alone
# make env     only make the environment (the others do so by themselves)
#
# PYTEST_WORKERS=0               tests in one process, such as for a debugger; default 2
# PYTHON=python3.12              interpreter to start from (3.11 to 3.13)
# MEDVLT_VENV=/big/disk/venv     where the environment lies; default .venv
# MEDVLT_ACCELERATOR=cpu|gpu     overrules what nvidia-smi says; a change makes the environment anew

supported = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.11 python3.12 python3.13; do \
  $$p -c '$(supported)' 2>/dev/null && { echo $$p; exit; }; done; echo python3)
endif
MEDVLT_VENV ?= .venv
PYTEST_ARGS ?=
PYTEST_WORKERS ?= 2
bin := $(MEDVLT_VENV)/bin

.PHONY: demo test lint env
.DEFAULT_GOAL := env

demo: env
	@$(bin)/medvlt demo

# In the order of the folders the slow files come first, and the many quick ones fill the end of both processes.
test: lint
	@$(bin)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: env
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .
	@$(bin)/mypy
	@$(bin)/mypy tools

# The version is tested here as well: an interpreter older than the syntax of the script could not say what is wrong.
env:
	@$(PYTHON) -c '$(supported)' 2>/dev/null || { echo "medvlt set-up: Python 3.11, 3.12 or 3.13 is needed," \
	"'$(PYTHON)' is $$($(PYTHON) --version 2>&1); name another: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	@$(PYTHON) tools/setup_env.py --venv '$(MEDVLT_VENV)'
