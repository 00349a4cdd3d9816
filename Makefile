# Every target sets up .venv by itself; `make demo` and `make test` work on a new machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINED := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Three processes more than cores: the tests on clusters mostly wait for Slurm.
WORKERS := $(shell echo $$(( $$(nproc) + 3 )))
PARALLEL := --numprocesses $(WORKERS) --maxprocesses 8 --dist loadgroup --no-loadscope-reorder
# Some machines forbid compiled files; then every process that a test starts would compile the package again.
ENVIRONMENT := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1
PYTEST := $(ENVIRONMENT) $(BIN)/python -m pytest $(PARALLEL)

.PHONY: demo test test-shuffled test-long test-lowest test-slowest coverage lint check format docs docs-tables clean

# Install torch first, at the pinned version: any other would bring gigabytes of CUDA libraries to machines without
# a GPU.
$(VENV)/.run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(CONSTRAINED) torch numpy
	$(CONSTRAINED) --editable .
	$(BIN)/python tools/matching_torchvision.py
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(CONSTRAINED) --editable '.[dev]'
	touch $@

demo: $(VENV)/.run
	$(BIN)/python tools/demo.py

test: $(VENV)/.dev
	$(PYTEST) -m 'not long'

# In random order: the files, and the tests of each file.
SEED ?= $(shell date +%s)
test-shuffled: $(VENV)/.dev
	FLIPSCALE_TESTS_SEED=$(SEED) $(PYTEST) -m 'not long'

# One test at a time. Every program is executed instead of forked from a warm server, but for tests of thousands of
# programs (mark `warm`).
test-long: $(VENV)/.dev
	FLIPSCALE_TESTS_EXECUTE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long

# The fast tests with the oldest versions that pyproject.toml allows, in an environment of their own.
test-lowest:
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt torch numpy
	.venv-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable '.[dev]'
	$(ENVIRONMENT) .venv-lowest/bin/python -m pytest $(PARALLEL) -m 'not slow and not long'

# The 30 slowest tests, and what they wait for.
test-slowest: $(VENV)/.dev
	$(PYTEST) -m 'not long' --slowest 30

# The share of the package's lines that the tests run, in the processes that they start, too.
coverage: $(VENV)/.dev
	$(BIN)/coverage erase
	$(ENVIRONMENT) $(BIN)/coverage run -m pytest $(PARALLEL) -m 'not long'
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/lint/prose.py
	$(BIN)/pyrefly check --summary=none

check: lint
	$(PYTEST) -m 'not slow and not long'

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages as a site in site/, without a warning. mkdocs itself needs no network.
$(VENV)/.docs: $(VENV)/.run
	$(CONSTRAINED) --editable '.[docs]'
	touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "look at it with: python3 -m http.server --directory site"

# Make the tables of pages that come from the code again; tests fail if a page differs.
docs-tables: $(VENV)/.dev
	$(BIN)/python tools/documentation/job_keys.py --write
	$(BIN)/python tools/documentation/scaling_anchors.py --write
	$(BIN)/python tools/documentation/python_names.py --write
	cd tools && ../$(BIN)/python -m documentation.messages --write

clean:
	rm -rf demo runs
