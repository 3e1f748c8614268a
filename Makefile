# Everything in two commands, on a machine with Python 3.11 to 3.13 and make:
#
#   make report     install, execute every notebook, build build/report.html and build/report.pdf
#   make test       install, lint, run every test, and compare every notebook with a fresh run; the network is cut
#
#   make quick      lint, and the tests without notebooks and browser: for whoever changes a line
#   make torture    the tests of reliability with many cases: killed runs, damaged files, hostile texts, broken servers
#   make record CORPUS=path    the same notebooks on other stories: figures/<corpus>/ and build/<corpus>/
#   make publish CORPUS=path REPO=owner/name    the model that was trained on them, to the Hugging Face Hub
#   make benchmark  speed beside other code, and below the machine's limit: figures/benchmark/
#   make render     the report alone, from the notebooks as they are
#   make sync       notebooks/src/*.py -> notebooks/*.ipynb, executing nothing
#   make clean      remove what can be made again
#
# torch comes first and alone, so that nothing else can choose its version or its build. Another build, once:
#   make report TORCH="torch==2.13.0 --extra-index-url ADDRESS"    CPU or CUDA: ADDRESS as PyTorch's install page gives it
#   make report TORCH=torch==2.13.0                          macOS, and Linux as it comes (with CUDA)
#   make report PYTHON=python3.13                            another Python
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
CORPUS ?=
REPO ?=

# A path from here, in quotes: the clone may lie in a folder with blanks or quotes in its name.
PY := "$(VENV)/bin/python"
READY := $(VENV)/.ready
JOBS ?= 2
LONGEST := notebooks/04_training.ipynb

.DEFAULT_GOAL := report
.PHONY: report test quick torture record publish benchmark render sync clean

report: $(READY)
	$(PY) report/execute.py
	$(PY) report/build.py

test: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) tests/without_network.py $(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
	    $(LONGEST) notebooks tests \
	    --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout 900

quick: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pytest -q -n $(JOBS) --dist worksteal -m "not slow" tests

torture: $(READY)
	TORTURE=1 $(PY) tests/without_network.py $(PY) -m pytest -n $(JOBS) --dist worksteal -m torture tests

record: $(READY)
	@test -n "$(CORPUS)" || { echo 'say which stories: make record CORPUS=path (or CORPUS=tinystories)' >&2; exit 2; }
	$(PY) report/execute.py --corpus "$(CORPUS)"

publish: $(READY)
	@test -n "$(CORPUS)" || { echo 'say whose model: make publish CORPUS=path REPO=owner/name' >&2; exit 2; }
	$(PY) report/publish.py "$(CORPUS)" $(if $(REPO),--to "$(REPO)")

benchmark: $(READY)
	$(PY) report/benchmark.py

render: $(READY)
	$(PY) report/build.py

sync: $(READY)
	$(PY) report/execute.py --sync

clean:
	rm -rf build .pytest_cache .ruff_cache .hypothesis
	find helpers tests report -name __pycache__ -type d -prune -exec rm -rf {} +

# One installation for all of the above, repeated when what it depends on changes.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	    { echo 'Python 3.11 to 3.13 is needed; `$(PYTHON)` is another. Try: make PYTHON=python3.12' >&2; exit 2; }
	$(PYTHON) -m venv "$(VENV)"
	$(PY) -m pip install --quiet $(TORCH) -c constraints.txt
	$(PY) -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
