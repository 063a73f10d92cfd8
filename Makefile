# What a developer does, by name. All that a fresh clone needs is Python with venv and a C compiler.
#
# Stamps in the environment and the compiled core's own date say what is up to date: a second run of any target starts its
# job at once. An environment of another Python is made anew; cores of several Pythons lie side by side.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PYTHONS ?=
WORKERS ?= 6
BASE ?=
BENCH ?=
FACTOR ?=

SHELL := /bin/bash
.SHELLFLAGS := -e -u -o pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

PY := $(VENV)/bin/python

# pytest keeps the tests that it has rewritten: without that, each worker would spend 4 s on them
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(PY) -m pytest
# tests wait more than they compute: there are more workers than cores
SPREAD := --numprocesses=$(WORKERS) --dist=worksteal

# "3.13.0 .cpython-313-x86_64-linux-gnu.so"
IDENTIFY := import platform, sysconfig; print(platform.python_version(), sysconfig.get_config_var("EXT_SUFFIX"))
IDENTITY := $(shell $(PYTHON) -c '$(IDENTIFY)')
PYTHON_STAMP := $(VENV)/.python-$(word 1,$(IDENTITY))$(basename $(word 2,$(IDENTITY)))
CORE := gcp/_core$(word 2,$(IDENTITY))
CORE_SOURCES := gcp/_core.pyx $(wildcard gcp/core/*.pxd gcp/core/*.pyx)

.PHONY: help
help:  ## list the targets (the default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  PYTHON=$(PYTHON)  the interpreter to work with'
	@echo '  VENV=$(VENV)      the environment, made when missing'
	@echo '  ARGS=...          passed to the program that demo, test*, bench*, must-show, instructions and sanitize run'
	@echo '  WORKERS=$(WORKERS)         how many processes run tests at a time'
	@echo '  PYTHONS=...       interpreters: for which wheels are built'
	@echo '  BENCH=...         a regular expression: which benchmarks to run'

.PHONY: demo
demo: $(VENV)/.have-demo $(CORE)  ## serve three PostgreSQL databases for 15 s, and watch
	$(PY) -m gcp demo $(ARGS)

.PHONY: test
test: $(VENV)/.have-test $(CORE)  ## run the tests
	$(PYTEST) $(SPREAD) $(ARGS)

.PHONY: test-unit
test-unit: $(VENV)/.have-test $(CORE)  ## run those of the core, options, labels and names
	$(PYTEST) $(SPREAD) tests/unit $(ARGS)

.PHONY: test-core
test-core: $(VENV)/.have-test-core $(CORE)  ## run those of the core and of behaviour: where no driver or server is to be had
	$(PYTEST) $(SPREAD) tests/unit tests/behaviour $(ARGS)

# Those of tests/nightly come last, two files at a time: they build packages and run benchmarks, and share what is dear by file.
.PHONY: test-all
test-all: $(VENV)/.have-test $(VENV)/.have-release $(CORE)  ## run all tests, with all their cases, and those of tests/nightly
	@failed=0; \
	$(PYTEST) $(SPREAD) --nightly --ignore=tests/nightly $(ARGS) || failed=1; \
	GCP_TASK_FACTORY=wrapping $(PYTEST) $(SPREAD) tests/behaviour tests/drivers $(ARGS) || failed=1; \
	if $(PY) -c 'import asyncio; asyncio.eager_task_factory' 2>/dev/null; then \
		GCP_TASK_FACTORY=eager $(PYTEST) $(SPREAD) tests/behaviour tests/drivers $(ARGS) || failed=1; \
	fi; \
	$(PYTEST) --numprocesses=2 --dist=loadfile tests/nightly $(ARGS) || failed=1; \
	exit $$failed

.PHONY: dev
dev: $(VENV)/.have-dev $(CORE)  ## prepare the environment for everything below, and build the core in place
	@echo 'Ready: source $(VENV)/bin/activate'

.PHONY: lint
lint: $(VENV)/.have-dev  ## check style: Python and Cython
	@failed=0; \
	$(PY) -m ruff check . || failed=1; \
	PATH="$$(cd $(VENV)/bin && pwd):$$PATH" cython-lint $(CORE_SOURCES) || failed=1; \
	exit $$failed

.PHONY: types
types: $(VENV)/.have-dev $(CORE)  ## check types: the package, the stub of the core, the examples of use
	$(PY) -m mypy
	$(if $(wildcard tools/dashboard),$(PY) -m mypy -p tools.dashboard)
	$(if $(wildcard tools/wheels),$(PY) -m mypy -p tools.wheels)
	$(PY) -m mypy.stubtest gcp._core
	$(if $(wildcard tests/packaging/typing_examples.py),$(PY) -m mypy tests/packaging/typing_examples.py)
	$(if $(wildcard examples/*.py),$(PY) -m mypy examples)

.PHONY: bench
bench: $(VENV)/.have-dev $(CORE)  ## run the benchmarks (ARGS=--quick: each once; GCP_BENCH=full: with all parameters)
	$(PY) -m asv --config asv_bench/asv.conf.json machine --yes >/dev/null
	$(PY) -m asv --config asv_bench/asv.conf.json run --python=same --show-stderr $(BENCH:%=--bench='%') $(ARGS)

.PHONY: bench-compare
bench-compare: $(VENV)/.have-dev  ## find what is slower than in another commit (BASE=..., FACTOR=1.1)
	@test -n '$(BASE)' || { echo 'Compare with what? make bench-compare BASE=<commit or branch>' >&2; exit 2; }
	@$(PY) asv_bench/compare.py $(FACTOR:%=--factor='%') $(BENCH:%=--bench='%') $(ARGS) -- '$(BASE)'

.PHONY: must-show
must-show: $(VENV)/.have-bench $(CORE)  ## measure what gcp must show: a table, and an error when a target is missed
	$(PY) asv_bench/must_show.py $(ARGS)

.PHONY: instructions
instructions: $(VENV)/.have-test $(CORE)  ## count the instructions of an idle hit (ARGS=--update: keep them as the baseline)
	$(PY) asv_bench/instructions.py $(ARGS)

.PHONY: bench-peers
bench-peers: $(VENV)/.have-bench $(CORE)  ## measure gcp beside other pools (ARGS=--quick; ARGS=--write: for docs/performance.md)
	$(PY) asv_bench/bench_peers.py $(ARGS)

.PHONY: docs
docs: $(VENV)/.have-docs $(CORE)  ## build the pages: docs/_build/html/index.html
	$(PY) -m sphinx --quiet --fail-on-warning --keep-going --fresh-env --doctree-dir docs/_build/doctrees docs docs/_build/html

.PHONY: preview
preview: $(VENV)/.have-dev $(CORE)  ## draw the Grafana dashboard from a real run: docs/dashboard.png
	$(PY) -m tools.pictures.dashboard

.PHONY: changelog
changelog: $(VENV)/.have-dev  ## show what the change log will say of the next version
	@$(PY) -m towncrier build --draft --version next

.PHONY: sdist
sdist: $(VENV)/.have-release $(VENV)/.have-build  ## build dist/*.tar.gz
	$(PY) -m build --sdist --no-isolation
	$(PY) -m twine check --strict dist/*.tar.gz

# Built from the sdist with the core's optimisation and without debug information, repaired by auditwheel, installed into
# an empty environment with no compiler on the PATH, and tested there.
.PHONY: wheels
wheels: $(VENV)/.have-release $(VENV)/.have-build  ## build and test dist/*.whl for each Python found (PYTHONS=...: for these)
	@$(PY) -m tools.wheels --pythons='$(PYTHONS)' $(ARGS)

# A tree of its own under build/, with the instrumented core, the tests and the settings. Python itself is not instrumented:
# the sanitizer's library has to be loaded before it, and memory has to come from malloc to be seen.
.PHONY: sanitize
sanitize: $(VENV)/.have-test  ## run the stress tests under AddressSanitizer and UndefinedBehaviorSanitizer
	GCP_SANITIZE=address,undefined $(PY) setup.py --quiet build --build-base build/sanitize --build-lib build/sanitize/lib
	rm -rf build/sanitize/lib/tests
	cp -R tests pyproject.toml build/sanitize/lib/
	@python="$$(cd $(VENV)/bin && pwd)/python"; \
	library="$$($(CC) -print-file-name=libasan.so)"; \
	test -e "$$library" || { echo '$(CC) brings no libasan.so' >&2; exit 1; }; \
	cd build/sanitize/lib; \
	export PYTHONPATH="$$PWD" PYTHONMALLOC=malloc LD_PRELOAD="$$library"; \
	export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=abort_on_error=1:halt_on_error=1:print_stacktrace=1; \
	"$$python" -c 'import gcp._core as core, os; assert core.__file__.startswith(os.getcwd()), core.__file__'; \
	"$$python" -m pytest --capture=sys tests/behaviour/test_stress.py $(ARGS)

.PHONY: clean
clean:  ## remove what was built; environments stay
	rm -rf build dist docs/_build asv_bench/env/compare *.egg-info .hypothesis .mypy_cache .pytest_cache* .ruff_cache
	rm -f gcp/_core.*.so
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

# --- what the targets above stand on ---

$(CORE): setup.py $(CORE_SOURCES) | $(VENV)/.have-build gcp/contrib
	$(PY) setup.py --quiet build_ext --inplace
	@touch $@

# an sdist has no symlinks
gcp/contrib:
	ln -s ../contrib $@

$(PYTHON_STAMP):
	@$(PYTHON) -c 'import sys; sys.exit("gcp needs Python 3.10 or newer: PYTHON=..." if sys.version_info < (3, 10) else 0)'
	@if [ -e $(VENV) ] && [ ! -e $(VENV)/pyvenv.cfg ]; then echo '$(VENV) exists and is no environment' >&2; exit 1; fi
	@if [ "$$($(PY) -c '$(IDENTIFY)' 2>/dev/null)" != '$(IDENTITY)' ]; then \
		echo 'Making $(VENV) with Python $(word 1,$(IDENTITY))'; \
		$(PYTHON) -m venv --clear $(VENV); \
	fi
	@$(PY) -c 'import os, sysconfig; open(sysconfig.get_path("purelib") + "/gcp-in-place.pth", "w").write(os.getcwd() + "\n")'
	@touch $@

# the stamp comes last: what was interrupted is done again
$(VENV)/.have-%: pyproject.toml tools/requirements.py $(PYTHON_STAMP)
	@echo 'Installing into $(VENV): what `$*` needs'
	@$(PY) tools/requirements.py $* | $(PY) -m pip install --quiet --disable-pip-version-check --requirement /dev/stdin
	@touch $@
