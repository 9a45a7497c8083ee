# Every target that people use has a description after "##"; "make help" lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
STAMP := .venv/.installed-$(shell cat requirements/dev.lock tools/make-venv | sha256sum | cut -c1-16)
PYTEST := $(BIN)/python -m pytest
OLDEST := .venv-oldest
OLDEST_STAMP := $(OLDEST)/.installed-$(shell cat requirements/oldest.lock tools/make-venv | sha256sum | cut -c1-16)
WEB_STAMP := web/node_modules/.installed-$(shell cat web/package-lock.json tools/make-web | sha256sum | cut -c1-16)
WEB := nginx/files/usr/share/hypervisor-formula/web
# Folders of Salt's loader may hold modules of the same name, so that each is checked by itself.
MYPY_FOLDERS := lab bench tools _utils _modules _states _wrapper _runners _engines test/unit test/render test/golden test/web test/integration test/faults network/files/usr/lib/hypervisor-formula saltapi/files/usr/lib/hypervisor-formula/master libvirt/files/usr/lib/hypervisor-formula cluster/files/usr/lib/ocf/resource.d/hypervisor
# Suites whose emulated machines need many minutes: "make slow" runs them.
SLOW := test/integration/network test/integration/tunnels
FAULTS ?=
SHELL_SCRIPTS := bootstrap .ci/run tools/have tools/make-venv tools/make-web tools/lint-shell tools/lock lab/files/customize.sh lab/files/install-salt.sh lab/files/lab-init lab/vmfiles/first-boot $(wildcard lab/vmfiles/hooks/*.sh)
PYTEST_WORKERS ?= 2

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---- the lab ----

.PHONY: lab
lab: venv web ## start a controller and two hypervisors here, make them what the formulas say, serve the page (root)
	@$(BIN)/lab deps
	@$(BIN)/lab up

.PHONY: lab-vm
lab-vm: venv ## the same with virtual machines instead of containers (root)
	@$(BIN)/lab deps
	@$(BIN)/lab up --kind vm

.PHONY: lab-down
lab-down: venv ## stop the lab and remove everything of it (root)
	$(BIN)/lab down

.PHONY: kitchen
kitchen: venv ## write .kitchen.local.yml, so that Test Kitchen works on the running lab (root)
	$(BIN)/lab kitchen

# ---- checks ----

.PHONY: test
test: venv lint web-test oldest browser web ## everything: installs what it needs, all checks, the hosts' tests (root)
	$(BIN)/lab deps
	$(PYTEST) -n $(PYTEST_WORKERS) --instafail --timeout=2700 --durations=25 --durations-min=10 \
	  test/unit test/render test/golden test/web test/integration $(SLOW:%=--ignore=%)

.PHONY: check
check: venv lint web-test ## all that needs neither root nor hosts: linters, unit tests, render matrix
	$(PYTEST) -q -n $(PYTEST_WORKERS) test/unit test/render test/golden

.PHONY: lint
lint: venv ruff mypy yamllint salt-lint shell-lint docs-check web-lint ## linters and type checks alone

.PHONY: unit
unit: venv ## unit tests alone
	$(PYTEST) -q -n $(PYTEST_WORKERS) test/unit

.PHONY: render
render: venv ## render matrix alone: every SLS for every operating system
	$(PYTEST) -q -n $(PYTEST_WORKERS) test/render test/golden

.PHONY: oldest
oldest: $(OLDEST_STAMP) ## render matrix with the oldest Salt that is supported
	$(OLDEST)/bin/python -m pytest -q -n $(PYTEST_WORKERS) -W ignore -o filterwarnings=default test/render test/golden

$(OLDEST_STAMP):
	@tools/make-venv $@ $(OLDEST) requirements/oldest.lock

.PHONY: bench
bench: venv ## measure, and write build/bench.json and a table; BENCH='--only compile' passes options (root)
	$(BIN)/lab deps
	PYTHONPATH=.:test:test/integration $(BIN)/python -m bench $(BENCH)

.PHONY: faults
faults: venv ## cut the power of hosts after a highstate, break networks and clusters; FAULTS='--count 3' passes options (root)
	$(BIN)/lab deps
	PYTHONPATH=.:test:test/integration $(BIN)/python -m faults $(FAULTS)

.PHONY: slow
slow: venv ## tests that start whole systems and take many minutes without KVM (root)
	$(BIN)/lab deps
	LAB_SLOW=1 $(PYTEST) --instafail $(SLOW)
	LAB_SLOW=1 $(PYTEST) --instafail -m long test/integration $(SLOW:%=--ignore=%)

.PHONY: ruff mypy yamllint salt-lint shell-lint docs-check web-lint web-test
ruff: venv
	@$(BIN)/ruff check --quiet .

mypy: venv
	@status=0; for folder in $(MYPY_FOLDERS); do \
	  [ -z "$$(find $$folder -name '*.py' -print -quit)" ] || \
	    $(BIN)/mypy --no-error-summary $$folder || status=1; \
	done; exit $$status

yamllint: venv
	@$(BIN)/yamllint --strict .

salt-lint: venv
	@git ls-files -z --cached --others --exclude-standard '*.sls' | xargs -0 -r $(BIN)/salt-lint

shell-lint: venv
	@tools/lint-shell $(SHELL_SCRIPTS)

docs-check: venv
	@$(BIN)/python -m tools.pillar_reference --check
	@$(BIN)/python -m tools.uyuni_form --check

web-lint: $(WEB_STAMP)
	@cd web && node_modules/.bin/tsc
	@cd web && node_modules/.bin/eslint --max-warnings 0 .

web-test: $(WEB_STAMP)
	@cd web && node_modules/.bin/vitest run --reporter=dot

# ---- the page ----

.PHONY: web
web: $(WEB_STAMP) ## build the page that nginx serves (as root also installs Node.js if there is none)
	@cd web && node build.mjs ../$(WEB)

$(WEB_STAMP):
	@tools/make-web $@

.PHONY: browser
browser:
	@tools/have chromium=chromium fc-list=fontconfig
	@fc-list | grep -q . || tools/have no-font=fonts-dejavu-core

# ---- generated files ----

.PHONY: docs
docs: venv ## write docs/pillar.rst and metadata/ from the formulas' schemas and defaults
	$(BIN)/python -m tools.pillar_reference
	$(BIN)/python -m tools.uyuni_form

.PHONY: golden
golden: venv ## rewrite test/golden from the formulas' defaults and osmaps
	$(PYTEST) -q test/golden --update-golden

.PHONY: lock
lock: venv ## renew requirements/*.lock from requirements/*.in
	tools/lock

# ---- the tools ----

.PHONY: venv
venv: $(STAMP) ## make .venv with the locked tools (as root also installs a compiler if there is none)

$(STAMP):
	@tools/make-venv $@

.PHONY: clean
clean: ## remove .venv, build and caches; a running lab is left alone
	rm -rf .venv $(OLDEST) web/node_modules $(WEB) build .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
