# Each line below is a whole job: it sets up what it needs first, and does nothing slow the second time.
PYTHON ?= python3
BIN    := .venv/bin

.PHONY: help setup lab test quick tour claims verify bench site export
help:     ## what can be made
	@sed -n 's/^\([a-z]*\): .*## /make \1	/p' $(MAKEFILE_LIST) | expand -t 14

setup: .venv/.all   ## an environment in .venv with everything the lessons need
lab: .venv/.all     ## do the lessons: opens JupyterLab on the first page
	@$(BIN)/python tools/lab.py
test: .venv/.dev    ## every check (about twenty minutes on two cores)
	@MPLBACKEND=agg $(BIN)/python -m pytest -q --durations=10
quick: .venv/.dev   ## the checks of what has changed since the last commit
	@MPLBACKEND=agg $(BIN)/python tools/quick.py
tour: .venv/.all    ## run lesson 1 here and now, and print its last table
	@$(BIN)/python tools/tour.py
claims: .venv/.all  ## measure every claim at scale small, then print the ledger
	@$(BIN)/python tools/claims.py
verify: .venv/.all  ## one topic again with a fresh seed beside what is recorded: make verify TOPIC=trm
	@$(BIN)/python tools/verify.py "$(TOPIC)" $(SEED)
bench: .venv/.dev   ## ours beside the peers: a table of ratios, kept in data/results/bench.json
	@$(BIN)/python -m tests.benchmarks
site: .venv/.dev    ## the lessons as web pages, English and Korean: open _docs/html/index.html
	@$(BIN)/sphinx-build -q -W --keep-going -c docs nbs _docs/html
	@$(BIN)/sphinx-build -q -W --keep-going -c docs -D language=ko nbs _docs/html/ko
export: .venv/.dev  ## write the library, the exercises and the lesson table from the notebooks
	@$(BIN)/python tools/export.py

.venv/.all: pyproject.toml constraints.txt tools/setup.py
	@$(PYTHON) tools/setup.py all
.venv/.dev: pyproject.toml constraints.txt tools/setup.py
	@$(PYTHON) tools/setup.py dev
