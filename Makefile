# Two commands do everything on a machine with Python 3.11 and Rust: `make demo` and `make test`.
# Each installs what it needs into .venv first, and rebuilds nothing that has not changed.

PYTHON ?= python3
BIN := .venv/bin
# Both maturin and pyo3's build script look for the environment's own interpreter.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export VIRTUAL_ENV := $(CURDIR)/.venv
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python

TOOL := uv run --quiet --no-project --with-requirements requirements-tools.txt --
RUST := Cargo.toml Cargo.lock pyproject.toml $(shell find rust -name '*.rs' -o -name Cargo.toml)

.PHONY: help demo test test-zoo test-matrix check format fix lint types pytest cargo-test bench gpu-wheels docs wheel sdist wheel-test \
	audit lock clean
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: .venv/.native ## Set up, then distil a digits classifier four ways and print the table
	cid distill

test: pytest cargo-test ## Set up, then run all tests, doctests included

test-zoo: .venv/.native ## Distil a model of every family that timm, torchvision and Transformers have; takes minutes
	python -m pytest -n auto --maxprocesses 4 --dist worksteal -m zoo tests/integrations/test_zoo.py

test-matrix: .venv/.native ## Run the tests as on other processors, with other draws, threads and the oldest PyTorch
	python tools/matrix.py $(RUNS)

check: format lint types test ## Everything that a commit must pass

format: .venv/.requirements ## Check the formatting (`make fix` mends it)
	ruff format --check .
	cargo fmt --all --check

fix: .venv/.requirements ## Format, and mend what the linters can
	ruff format .
	ruff check --fix .
	cargo fmt --all

lint: .venv/.requirements ## Lint Python and Rust, warnings denied
	ruff check .
	cargo clippy --workspace --all-targets --locked -- -D warnings

types: .venv/.requirements ## Check the types, strictly
	mypy

pytest: .venv/.native
	python -m pytest -n auto --maxprocesses 8 --dist worksteal

cargo-test: .venv/.requirements
	cargo test --locked -p cid-kernels

bench: .venv/.native ## Measure each loss against eager and compiled PyTorch
	cid bench

gpu-wheels: .venv/.requirements ## Put into dist/gpu what benches/gpu_day.sh installs on a machine with a GPU
	rm -rf dist/gpu
	maturin build --quiet --release --locked --out dist/gpu
	python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest dist/gpu \
		$$(grep '^liger-kernel==' requirements-dev.txt)

docs: .venv/.requirements ## Build the documentation, strictly, into target/site
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

wheel: .venv/bin/uv ## Build the wheel, on Linux for glibc 2.28 and newer, and check what it holds
	python tools/wheel.py build

sdist: .venv/bin/uv ## Build the source distribution, and from it alone a wheel
	python tools/wheel.py sdist

wheel-test: .venv/bin/uv ## Test the built wheel in an empty environment, without the source tree
	python tools/wheel.py test

audit: .venv/bin/uv ## Audit the dependencies (vulnerabilities, licences, sources) and the workflows
	$(TOOL) check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(TOOL) zizmor --offline .github
	$(TOOL) pip-audit --strict --no-deps --disable-pip -r requirements-dev.txt -r requirements-tools.txt
	cargo deny --locked check

lock: .venv/.requirements ## Pin the newest versions of all development requirements
	echo '# Made by `make lock` from pyproject.toml and requirements-dev.in.' > requirements-dev.txt
	uv pip compile -q --upgrade --no-header --no-annotate --python-version 3.11 --all-extras \
		pyproject.toml requirements-dev.in >> requirements-dev.txt
	echo '# Made by `make lock` from requirements-tools.in.' > requirements-tools.txt
	uv pip compile -q --upgrade --no-header --no-annotate --python-version 3.11 --universal \
		--constraint requirements-dev.txt requirements-tools.in >> requirements-tools.txt

clean: ## Remove the environment and everything built
	rm -rf .venv target dist python/cid/_native.*.so

.venv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed (set PYTHON): found " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

.venv/.requirements: .venv/bin/uv requirements-dev.txt
	uv pip install --quiet --requirement requirements-dev.txt
	@touch $@

.venv/.native: .venv/.requirements $(RUST)
	maturin develop --quiet --release --uv --locked
	@touch $@
