# Everything runs in .venv, made here with the first Python 3.11 or newer on the path.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STORE  ?= stores
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check bench clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev]'
	touch $@

# Training runs on PyTorch; its constraint keeps it to a build without GPU libraries. Triton's kernels run on its
# interpreter.
$(VENV)/.torch: $(VENV)/.installed
	$(PIP) --editable '.[torch,triton]'
	touch $@

# Benchmarks also run the peers that they are compared with.
$(VENV)/.bench: $(VENV)/.torch
	$(PIP) --editable '.[bench]'
	command -v fio >/dev/null || echo "fio is not installed: the comparison with it will be skipped (apt-get install fio)"
	touch $@

# Peers whose pins clash with ours have environments of their own.
$(VENV)-mergekit/.installed:
	$(PYTHON) -m venv $(VENV)-mergekit
	$(VENV)-mergekit/bin/pip install --quiet --disable-pip-version-check mergekit==0.1.5
	touch $@

$(VENV)-trl/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-trl
	$(VENV)-trl/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[trl]'
	touch $@

# Exit code 3 says that predictions were too far off: the table shows it, and the demonstration has still run.
demo: $(VENV)/.installed
	$(BIN)/sandtable calibrate --quick --storage-path $(STORE)
	$(BIN)/sandtable check --suite flash-quick --store $(STORE) --report runs/demo.html --trace runs/demo.pftrace || test $$? -eq 3
	@echo "To go on in this shell: source $(BIN)/activate"

# A process per core, which takes over what another has left to do; more than a few only cost memory.
test: $(VENV)/.torch
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright

bench: $(VENV)/.bench $(VENV)-mergekit/.installed $(VENV)-trl/.installed
	SANDTABLE_BENCH=1 $(BIN)/python -m pytest tests/bench -s

clean:
	rm -rf runs stores this_machine.yaml .pytest_cache .mypy_cache .ruff_cache .benchmarks
