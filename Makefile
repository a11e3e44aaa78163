# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
PIP    := $(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# torchvision is kept out of the environment that runs the parity oracles: its compiled part may
# not fit a CPU torch, and transformers would stumble over it. Only the ComfyUI server sees it.
HOST_SITE := .test/host-site
FRONTENDS := .test/frontend
# The browser tests run where there is one; CHROMIUM=/path names another.
CHROMIUM  ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

export CHROMIUM

# Tests of one file stay together: they share servers. Each worker starts its own.
WORKERS ?= 2

export OMP_WAIT_POLICY = passive
# Some containers forbid Python to keep what it compiles; here hundreds of processes import the same.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help demo test lint unit tiny clean

help:
	@echo "make demo   prompt to mp4 on the bundled tiny family, through ComfyUI where there is one"
	@echo "make test   linters, types and every test this machine can run"
	@echo "make tiny   retrain the tiny family from nothing (about 90 minutes of two cores)"

demo: $(VENV)/.base $(VENV)/.host
	$(RUN) demo.py

test: lint unit

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

unit: $(VENV)/.test $(VENV)/.host $(if $(CHROMIUM),$(VENV)/.browser)
	$(VENV)/bin/pytest -q --durations=10 --numprocesses $(WORKERS) --dist loadfile

tiny: $(VENV)/.base
	$(RUN) -m tiny all

$(VENV)/.base: requirements.txt constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(PIP) torch numpy -r requirements.txt
	touch $@

$(VENV)/.test: $(VENV)/.base tests/requirements.txt
	$(PIP) -r tests/requirements.txt
	touch $@

$(VENV)/.host: $(VENV)/.base tests/requirements-host.txt
	$(PIP) -r tests/requirements-host.txt
	$(PIP) --no-deps -r tests/requirements-host-nodeps.txt
	$(PIP) --no-deps --upgrade --target $(HOST_SITE) torchvision==0.28.0
	touch $@

$(VENV)/.browser: $(VENV)/.base tests/requirements-browser.txt tests/frontends.txt
	$(PIP) -r tests/requirements-browser.txt
	for pin in $$(grep -v '^#' tests/frontends.txt); do \
	  $(PIP) --no-deps --upgrade --target $(FRONTENDS)/$${pin##*=} $$pin || exit 1; \
	done
	touch $@

clean:
	rm -rf $(VENV) .test .comfyui output
