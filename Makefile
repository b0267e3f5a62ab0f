# Two commands matter: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin
MYPY_FLAGS ?=

.PHONY: demo test test-slow lint format docs bench release clean

.venv/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'robustres needs Python 3.11 or newer; try: make PYTHON=python3.12'; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/pyvenv.cfg
	$(BIN)/python -m pip install --quiet --editable '.[onnx]'
	@touch $@

.venv/installed-dev: pyproject.toml | .venv/pyvenv.cfg
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ .venv/installed

demo: .venv/installed
	$(BIN)/robustres demo

# One process per core, one thread each: twice as fast as one process with all threads.
test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(MYPY_FLAGS)

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# A broken link or an unknown name fails; the site is in runs/site.
docs: .venv/installed-dev
	$(BIN)/python -m mkdocs build --strict --quiet

# One JSON of a fixed small set, compared with the committed baseline, and then the tables of docs/.
bench: .venv/installed-dev
	$(BIN)/python benchmarks/track.py measure --out runs/benchmarks/now.json
	-$(BIN)/python benchmarks/track.py compare --no-seconds benchmarks/baseline.json runs/benchmarks/now.json
	$(BIN)/python benchmarks/bounds.py
	$(BIN)/python benchmarks/attacks.py

# make release VERSION=0.2.0: version, date and changelog in one commit with its tag; nothing is pushed.
release:
	$(PYTHON) .ci/release.py $(VERSION)

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
