# Two commands for a newcomer: `make demo` and `make test`. The rest is for those who change something.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Everything pip needs to know; add options with e.g. PIP_OPTIONS="--no-index --find-links wheels".
# Build tools are held to the same versions: old and new pip hear of them by different names.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet $(PIP_OPTIONS)
OUT ?= demo-out

.PHONY: demo test web lint format docs evidence minimal sanitize venv clean

# What the extension is made of: a change builds it again.
NATIVE := $(wildcard native/*.cpp native/*.h native/CMakeLists.txt)

# What the page's viewer is made of. Without Node, or where its packages cannot be had, pages show still pictures.
STATIC := src/sagittal/workbench/static
WEB := $(wildcard web/src/*.ts web/*.json web/*.ts web/licences/*)

demo: $(VENV)/.installed $(STATIC)/built  ## Run one case, end to end, and print where the report is
	$(BIN)/sagittal demo --out $(OUT)

test: $(VENV)/.installed-test $(STATIC)/built  ## Run the tests, a process for each core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

web: $(STATIC)/built  ## Build the page's viewer; needs Node 20.19 or later, with npm

$(STATIC)/built: $(WEB)
	@if ! command -v npm >/dev/null; then echo "npm is not here: pages show still pictures, without the viewer"; \
	elif (cd web && npm ci --silent --no-audit --no-fund && npm run --silent build -- --logLevel warn); then touch $@; \
	else echo "the viewer could not be built: pages show still pictures"; fi

lint: $(VENV)/.installed-test  ## Style, types, and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	@if [ -d web/node_modules ]; then cd web && npm run --silent check && npm run --silent test >/dev/null; fi

format: $(VENV)/.installed-test  ## Put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs  ## Build the documentation site into site/
	$(BIN)/python evidence/tables.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# evidence/kv_cache.py takes the paths of a model and of texts: docs/language.md says how to run it.
evidence: $(VENV)/.installed-test  ## Measure everything again that needs no files of yours (tens of minutes)
	$(BIN)/python evidence/tissue_volumes.py
	$(BIN)/python evidence/record_reading.py
	$(BIN)/python evidence/tables.py

minimal:  ## The package without any extra and as without a compiler: it must import, keep cases, and say what is missing
	$(PYTHON) -m venv .venv-minimal
	SKBUILD_WHEEL_CMAKE=false .venv-minimal/bin/python -m pip --disable-pip-version-check install --quiet $(PIP_OPTIONS) \
		-c constraints.txt . pytest
	.venv-minimal/bin/python -m pytest tests/minimal --import-mode=importlib -p no:cacheprovider

sanitize: $(VENV)/.installed-test  ## The tests of the extension, built with the address and undefined-behaviour sanitizers
	$(PIP) nanobind
	cmake -S native -B build/sanitize -DSAGITTAL_SANITIZE=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	cmake --build build/sanitize
	mkdir -p build/plain && mv src/sagittal/_native*.so build/plain/
	cp build/sanitize/_native*.so src/sagittal/
	ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		$(BIN)/python -m pytest tests/language/test_attend.py tests/language/test_writing.py tests/reconstruction/test_projectors.py tests/reconstruction/test_variation.py tests/reconstruction/test_analytic.py tests/registration/test_native.py; status=$$?; mv build/plain/_native*.so src/sagittal/; exit $$status

venv: $(VENV)/bin/python  ## Only the empty environment, to put a torch build of your own into

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt $(NATIVE) | $(VENV)/bin/python
	$(PIP) -c constraints.txt -e '.[language,imaging,web]'
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt $(NATIVE) | $(VENV)/bin/python
	$(PIP) -c constraints.txt -e '.[all,test]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) .venv-minimal build dist site $(OUT) $(STATIC) web/node_modules
