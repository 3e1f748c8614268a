# Everything in two commands, on a machine with Python 3.11 to 3.13 and make:
#
#   make report     install, execute every notebook, render build/report.html, live.html, results.pdf and book.pdf
#   make test       install, lint, run every test, and compare every notebook with a fresh run; the network is cut
#
#   make quick      lint, and the tests without notebooks and browser: for whoever changes a line
#   make torture    the tests of reliability with many cases: killed runs, damaged files, hostile texts, broken servers
#   make benchmark  speed beside other code, and below the machine's limit, of the processor as it is: build/benchmark/
#   make publish CORPUS=path REPO=owner/name    a trained model, to the Hugging Face Hub; CONTEXT=256: of whole stories
#   make render     build/report.html, live.html, results.pdf and book.pdf of the committed notebooks, executing nothing
#   make pages      the same as a folder to publish: build/pages/
#   make clean      remove what can be made again
#
# These leave the files that git tracks as they are. These renew them:
#
#   make notebooks  execute every notebook: notebooks/**/*.ipynb and figures/, after an edit in notebooks/src/
#   make sync       notebooks/src/**/*.py -> notebooks/**/*.ipynb, executing nothing
#   make record CORPUS=path    the same notebooks on other stories: figures/<corpus>/ and build/<corpus>/
#   make benchmark RECORD=1    the same, and with oneDNN limited to AVX512_CORE and to AVX2: figures/benchmark/
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
CONTEXT ?= 64
RECORD ?=

# A path from here, in quotes: the clone may lie in a folder with blanks or quotes in its name.
PY := "$(VENV)/bin/python"
READY := $(VENV)/.ready
JOBS ?= 2
# First, so that no core waits long at the end: each of two workers takes one of these, and then has a second one waiting.
FIRST := $(patsubst %,notebooks/%.ipynb,04_training 06_memory 02_attention 05_decoding)

.DEFAULT_GOAL := report
.PHONY: report test quick torture notebooks record publish benchmark render pages sync clean
# What a user gives, for the shell: every character in it stays as it is.
quoted = '$(subst ','\'',$(value $(1)))'

report: $(READY)
	$(PY) report/execute.py --build --jobs $(JOBS)
	$(PY) report/build.py build/notebooks

notebooks: $(READY)
	$(PY) report/execute.py
	$(PY) report/exercises.py

test: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) tests/without_network.py $(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
	    $(FIRST) notebooks tests \
	    --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout 900

quick: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pytest -q -n $(JOBS) --dist worksteal -m "not slow" tests

torture: $(READY)
	TORTURE=1 $(PY) tests/without_network.py $(PY) -m pytest -n $(JOBS) --dist worksteal -m torture tests

record: $(READY)
	@test -n $(call quoted,CORPUS) || { echo 'say which stories: make record CORPUS=path (or CORPUS=tinystories)' >&2; exit 2; }
	$(PY) report/protocol.py $(call quoted,CORPUS)
	$(PY) report/epochs.py $(call quoted,CORPUS)
	$(PY) report/execute.py --corpus $(call quoted,CORPUS)

publish: $(READY)
	@test -n $(call quoted,CORPUS) || { echo 'say whose model: make publish CORPUS=path REPO=owner/name' >&2; exit 2; }
	$(PY) report/publish.py $(call quoted,CORPUS) --context $(call quoted,CONTEXT) $(if $(REPO),--to $(call quoted,REPO))

benchmark: $(READY)
	$(PY) report/benchmark.py $(if $(RECORD),--record)

render: $(READY)
	$(PY) report/build.py

pages: render
	rm -rf build/pages && mkdir build/pages
	cp build/report.html build/pages/index.html
	cp build/live.html build/results.pdf build/book.pdf build/pages/

sync: $(READY)
	$(PY) report/execute.py --sync
	$(PY) report/exercises.py --sync

clean:
	rm -rf build .pytest_cache .ruff_cache .hypothesis
	find helpers notebooks tests report -name __pycache__ -type d -prune -exec rm -rf {} +

# Every package that pyproject.toml names. To install the project itself would be to build it, which fails if its path holds a $.
REQUIREMENTS := import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
    lists = project["dependencies"], *project["optional-dependencies"].values(); \
    print(*(item for one in lists for item in one if not item.startswith(project["name"])), sep="\n")

# One installation for all of the above, repeated when what it depends on changes.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	    { echo 'Python 3.11 to 3.13 is needed; `$(PYTHON)` is another. Try: make PYTHON=python3.12' >&2; exit 2; }
	$(PYTHON) -m venv "$(VENV)"
	$(PY) -m pip install --quiet $(TORCH) -c constraints.txt
	@$(PY) -c '$(REQUIREMENTS)' > "$(VENV)/requirements.txt"
	$(PY) -m pip install --quiet -c constraints.txt -r "$(VENV)/requirements.txt"
	@touch $@
