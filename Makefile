# `make demo` and `make test` set everything up on a machine that has Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint env clean

env: $(VENV)/.installed

# The constraints keep torch to one that brings no CUDA packages; a GPU user installs torch first (see README).
$(VENV)/.installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable '.[test,arrow]'
	touch $@

demo: env
	mkdir -p demo
	$(BIN)/pyrtrav classify sample_data/slide.svs sample_data/scene.ome.tif sample_data/scene.png
	$(BIN)/pyrtrav explain sample_data/slide.svs --out demo/slide.json --overlay demo/slide.png --foveated demo/slide-foveated.png
	@echo "Pictures: demo/slide.png (where it looked), demo/slide-foveated.png (what it saw)"

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A process a core already; threads of theirs would only wait for each other.
test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

clean:
	rm -rf $(VENV) demo build *.egg-info
