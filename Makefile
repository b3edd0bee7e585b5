# Everything runs from a fresh clone with Python 3.10 or newer, make and git. `make` alone lists the commands.
# Windows without make, in PowerShell (we did not try it): py -m venv .venv; .venv\Scripts\pip install -e .;
# .venv\Scripts\personal-llm get

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
OUT ?= demo-output
ARGS ?=
# The model of the demo, by default qwen2.5-coder-0.5b. Your own choice: make demo MODEL=pocket, which also downloads no weights
MODEL ?=

# PyTorch. Linux without an NVIDIA card takes the CPU build, a tenth of the download; everybody else the one on PyPI.
# Your own choice, as arguments of pip: make demo TORCH="torch==2.9.1 --index-url https://download.pytorch.org/whl/cu126"
TORCH ?=
TORCH_RANGE := torch>=2.7,<3
TORCH_CPU := "torch==2.13.0+cpu" --extra-index-url https://download.pytorch.org/whl/cpu --timeout 15 --retries 1

PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := nbs tests tools benchmarks conftest.py setup.py
METADATA := settings.ini setup.py pyproject.toml

.PHONY: help install install-dev demo test test-portable test-rest test-oldest test-slow test-wheel lint site diagrams page slides export clean-notebooks readme check notebooks experiments benchmarks
.DEFAULT_GOAL := help

help: ## this list
	@echo "personal_llm: personalise a language model on your own device"; echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile
	@echo; echo "The first command makes a virtual environment in .venv and installs the package into it; later ones reuse it."

install: .venv/.installed ## the package, ready to use, in .venv
install-dev: .venv/.installed-dev ## the same with what tests and notebooks need

demo: .venv/.installed ## a model learns one user from a stream of chats (report in demo-output, or OUT=folder)
	$(BIN)/personal-llm demo --out $(OUT) $(if $(MODEL),--model $(MODEL)) $(ARGS)

test: .venv/.installed-dev ## the chapters and the quick tests, a process a core (some of them: ARGS="-k buffer")
	@$(BIN)/python -m pytest -n auto --quick --durations=20 $(ARGS)

test-portable: .venv/.installed-dev ## the chapters as two other processors would run them, one without AVX, one without AVX-512
	@$(BIN)/python tools/portable.py $(ARGS)

test-rest: .venv/.installed-dev ## what `make test` leaves out: tutorials, lessons, faults, random input, experiments
	@$(BIN)/python -m pytest -n auto --rest --durations=20 $(ARGS)

test-oldest: .venv/.installed-dev ## the server with the oldest versions that settings.ini allows, from the package index
	@$(PIP) install --quiet --upgrade --target build/oldest $$(sed -n 's/^serve_requirements = //p' settings.ini | sed -E 's/>=([0-9.]+),<[0-9.]+/==\1/g')
	@PYTHONPATH=build/oldest $(BIN)/python -m pytest tests/test_server.py $(ARGS)

test-slow: .venv/.installed-dev ## all tests, also those of hours: cells flagged slow, kills at every file operation
	@$(BIN)/python -m pytest -n auto --slow --durations=20 $(ARGS)

test-wheel: .venv/.installed ## the wheel alone in a new environment: size, imports, demo, chat and a tutorial
	@$(BIN)/python tools/wheel_check.py $(TORCH)

lint: .venv/.installed-dev ## unused names, long lines, layout (mend most with: .venv/bin/ruff format nbs tests)
	@$(BIN)/ruff check --quiet $(SOURCES)
	@$(BIN)/ruff format --quiet --check $(SOURCES)

notebooks: .venv/.installed-dev ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

experiments: .venv/.installed-dev ## measure what is missing in nbs/experiments/results, for hours; call again to go on (what is missing: ARGS=--list)
	@$(BIN)/python -m personal_llm.experiments.harness $(ARGS)

site: .venv/.installed-docs ## write the site to site/, from the notebooks as they are saved; a dead link fails (open site/index.html)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

diagrams: build/diagrams/node_modules ## draw the diagrams of the notebooks from nbs/images/diagrams/*.dot (needs Node.js)
	@node tools/diagrams.mjs

page: build/page/node_modules ## bundle what the page takes from packages of npm as assets/page/library.js (needs Node.js)
	@NODE_PATH=$</ $</.bin/esbuild tools/page.mjs --bundle --minify --format=esm --legal-comments=eof --log-level=error --outfile=personal_llm/assets/page/library.js

benchmarks: .venv/.installed-dev ## a fine-tune beside the same work in Trainer and TRL (another model: ARGS="--model NAME")
	@$(BIN)/python -m benchmarks $(ARGS)

slides: .venv/.installed-docs ## slides of the course in site/slides/, a file a lesson; in the browser they fetch reveal.js
	@$(BIN)/jupyter nbconvert --log-level ERROR --to slides --config tools/slides.py --output-dir site/slides nbs/course/lesson_*.ipynb

export: .venv/.installed-dev ## write personal_llm/ from the notebooks
	@$(BIN)/nbdev-export

clean-notebooks: .venv/.installed-dev ## remove from the notebooks what changes at each run
	@$(BIN)/nbdev-clean

readme: .venv/.installed-dev ## write README.md from nbs/index.ipynb
	@$(BIN)/python tools/readme.py

check: ## what the continuous integration runs
	@.ci/run

build/diagrams/node_modules:
	npm install --silent --prefix build/diagrams @viz-js/viz@3.31.0

build/page/node_modules:
	npm install --silent --prefix build/page markdown-it@14.3.3 katex@0.16.47 highlight.js@11.12.0 dompurify@3.5.0 esbuild@0.28.2

.venv/bin/pip:
	@[ -n "$(PYTHON)" ] || { echo "No Python 3.10 or newer found: install one, or name it with PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is older than Python 3.10 or does not run: name a newer one with PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed: $(METADATA) | .venv/bin/pip
	@if [ -n '$(TORCH)' ]; then $(PIP) install $(TORCH); \
	elif $(PIP) show --quiet torch 2>/dev/null; then :; \
	elif [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
		$(PIP) install --no-deps $(TORCH_CPU) || { echo "The CPU build of PyTorch is not to be had here: taking the one on PyPI."; $(PIP) install "$(TORCH_RANGE)"; }; \
	else $(PIP) install "$(TORCH_RANGE)"; fi
	$(PIP) install -e .
	@[ "$(MODEL)" = pocket ] || $(BIN)/personal-llm get || \
		echo "The small model pocket serves meanwhile. Later, type: $(BIN)/personal-llm get"
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) install -e ".[dev]"
	@touch $@

.venv/.installed-docs: .venv/.installed
	$(PIP) install -e ".[docs]"
	@touch $@
