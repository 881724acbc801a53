# Two commands do everything on a fresh machine with Python >= 3.11: `make demo` and `make test`.
PYTHON ?= python3
EXTRA ?= cpu
BIN := .venv/bin
# More than four processes would want more memory than laptops have.
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: .venv/installed ## Mine, train and evaluate on real pairs, four arms side by side
	$(BIN)/b3 demo

test: .venv/installed ## Run the fast tests
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-all: .venv/installed ## Run every test: real servers, kills, larger data
	$(BIN)/python -m pytest -m ''

check: .venv/installed ## Check format, lint, types, imports, and run the fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

format: .venv/installed ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: .venv/installed ## Make .venv with everything in it (EXTRA=gpu for faiss-gpu)

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRA),dev]'
	$(BIN)/python -m b3_core.kernels
	touch $@

cluster: .venv/installed ## Start Prefect on Postgres, Ray, an S3 gateway and a worker here, and deploy
	$(BIN)/python -m deployments.cluster up

cluster-down: .venv/installed ## End all of them; data stays in .b3/cluster
	$(BIN)/python -m deployments.cluster down

clean: ## Remove the environment and caches; artifacts in .b3 stay
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

.PHONY: help demo test test-all check format install cluster cluster-down clean
