# Needs Python 3.11 or newer, git and make. Everything else goes into .venv; nothing outside this folder is changed.
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input install --constraint constraints.txt

.PHONY: help demo test check bench soak clean

help:
	@echo "make demo    train, judge and report the first experiment (sets up .venv; then at most 5 minutes on 2 cores)"
	@echo "make test    run the tests (sets up .venv)"
	@echo "make check   style, types, import order, the documentation's code, links, scoreboard, citation file"
	@echo "make soak    the long versions of the fault tests"
	@echo "make bench   side-by-side timings against other tools (BENCH=curvature: one file alone)"
	@echo "make clean   remove .venv, the demo's runs and caches"

demo: .venv/.core
	$(BIN)/landscope run johannsen2026_batch_size --scale laptop --runs demo

# One thread each: two workers with two threads each wait for one another more than they calculate. Each begins with one
# half of the files, so that what a file's tests share is made once, and takes over from the other in the end.
test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q --durations=10

soak: .venv/.dev
	$(BIN)/python -m pytest -m soak

check: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	PATH="$(CURDIR)/$(BIN):$$PATH" pyright --verifytypes landscope --ignoreexternal
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q -m docs $$(grep -l 'mark\.docs' tests/*.py)
	$(BIN)/python docs/check_links.py
	$(BIN)/python docs/scoreboard.py --check
	$(BIN)/cffconvert --validate

bench: .venv/.core .venv/.bench
	$(BIN)/python -m bench $(BENCH)

clean:
	rm -rf .venv demo .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make repeats free; a changed dependency or pin installs again. PyTorch comes first to show a sign of life.
.venv/.core: pyproject.toml constraints.txt
	@$(find_python); "$$python" -m venv $$(test -x $(BIN)/pip || echo --clear) .venv
	@echo "Installing PyTorch into .venv (1 of 2; it is large: a minute or two) ..."
	@$(PIP) torch
	@echo "Installing Landscope and its other libraries into .venv (2 of 2; about a minute) ..."
	@$(PIP) --editable .
	@touch $@

.venv/.dev: .venv/.core
	@echo "Installing the tools for tests and checks into .venv (about a minute) ..."
	@$(PIP) --editable '.[dev]'
	@touch $@

# The tools that we are timed against lie apart, so that the project's own packages stay as they are. Without them the
# benchmarks run all the same and say what is missing.
.venv/.bench: .venv/.core bench/requirements.txt
	@echo "Installing the tools to compare with into .venv/bench-peers (a few seconds) ..."
	@rm -rf .venv/bench-peers
	@if $(PIP) --no-deps --target .venv/bench-peers -r bench/requirements.txt; then touch $@; \
	else echo "make bench: the tools to compare with could not be installed; their figures will be missing" >&2; fi

# Sets $python: the first that starts, is new enough and can make environments. PYTHON=... asks for a particular one.
define find_python
set -e; new=; python=; \
for candidate in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
  "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
  new="$$candidate"; \
  if "$$candidate" -c 'import venv, ensurepip' >/dev/null 2>&1; then python="$$candidate"; break; fi; \
done; \
if [ -z "$$new" ]; then \
  echo "Landscope needs Python 3.11 or newer; none of '$(or $(PYTHON),python3.13 python3.12 python3.11 python3)' is." >&2; \
  echo "Install one, or name it: make PYTHON=/path/to/python3 $(or $(MAKECMDGOALS),demo)" >&2; exit 2; \
elif [ -z "$$python" ]; then \
  echo "$$new cannot make virtual environments (its venv and ensurepip modules are missing)." >&2; \
  echo "On Debian and Ubuntu: apt install python3-venv" >&2; exit 2; \
fi; \
echo "Setting up .venv with $$("$$python" --version)"
endef
