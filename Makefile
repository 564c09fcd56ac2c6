# Everything that a person or CI calls. `make` prints what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
# The demo's lab has a folder of its own; that of lab-up is lab's default.
DEMO_DIR ?= /var/lib/nixops-lab/demo
KEEP ?=
POD ?=
# A plan of tests/crash, see tests/crash/plans.py.
PLAN ?=
# More arguments for pytest, as in `make test ARGS="-k deletion"`.
ARGS ?=
# Not empty: the tests marked `long` as well.
LONG ?=
# The number of a benchmark.
B ?=
# Most levels wait for real parts more than they compute. A file's tests stay together: they share what they started.
WORKERS ?= 3
# Levels of their own: what they compile and wait for would make `make test` much longer.
GITOPS := tests/cluster/gitops
LOCKOUTS := tests/cluster/lockouts
# Each row is one level, see tests/.
QUICK := $(wildcard tests/crash) tests/unit tests/test_repository.py
# The longest first and unit tests, which are many and short, last, or one worker ends alone; the quick ones are in
# `make check`.
LEVELS := $(wildcard tests/cluster tests/contract tests/component tests/lab/tests) $(QUICK)

.PHONY: help
help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 12

.PHONY: demo
demo: ## the example's whole life on real parts; as root. KEEP=1 leaves it running, POD=1 has the operator as a pod
	@tests/lab/set-up
	@PYTHONPATH=tests/lab exec $(PYTHON) -m nixops_lab.demo --dir=$(DEMO_DIR) $(if $(KEEP),--keep) $(if $(POD),--pod)

.PHONY: test
test: lab-parts lint ## before a push: lint, and the tests of all levels but the long ones, twenty minutes; LONG=1 runs those, too; as root
	@exec $(PYTHON) -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder --ignore=$(GITOPS) --ignore=$(LOCKOUTS) \
	  $(if $(LONG),,-m 'not long') $(ARGS) $(LEVELS)

.PHONY: gitops
gitops: lab-parts ## examples/gitops under Flux, Argo CD and Helm, fifteen minutes; compiles them the first time, in as many
	@tests/lab/gitops/build.sh >/dev/null
	@tests/lab/gitops/argocd/build.sh >/dev/null
	@exec $(PYTHON) -m pytest $(ARGS) --durations=0 --durations-min=1 $(GITOPS)

.PHONY: lockouts
lockouts: lab-parts ## every way to lock everybody out of a machine, on 24 machines side by side, operator alive and dead; as root
	@exec $(PYTHON) -m pytest $(ARGS) $(LOCKOUTS)

.PHONY: check
check: lint ## what is quick: lint, and the tests that need neither root nor the lab
	@exec $(PYTHON) -m pytest --numprocesses=2 --dist=worksteal -m 'not long' $(ARGS) $(QUICK)

.PHONY: crash
crash: .venv ## the whole crash matrix, two hours; PLAN=create+delete@ec2.run_instances.1/before~4-8 runs one, with its trace; LOG=<file> goes on where another run ended
	@PYTHONPATH=operator:tests:tests/lab exec $(PYTHON) -m crash $(if $(LOG),--log '$(LOG)') '$(PLAN)'

.PHONY: bench
bench: lab-parts ## what it costs, and whom it lets down: B=6, B=7, B=10 or B=16, see benchmarks/README.md
	@PYTHONPATH=operator:tests:tests/lab:. exec $(PYTHON) -m benchmarks $(B)

.PHONY: lint
lint: .venv ## style, types, import contracts, generated files
	@$(PYTHON) -m ruff check --quiet
	@$(PYTHON) -m ruff format --quiet --check || { echo 'make format mends it' >&2; exit 1; }
	@$(PYTHON) -m mypy --no-error-summary
	@out=$$(.venv/bin/lint-imports --no-logo 2>&1) || { printf "%s\n" "$$out"; exit 1; }
	@$(PYTHON) -m nixops_operator.api.crd --check
	@$(PYTHON) -m nixops_operator.api.argocd --check
	@$(PYTHON) -m nixops_operator.reference --check
	@echo 'lint: nothing to complain about'

.PHONY: format
format: .venv ## brings the code into its form
	@$(PYTHON) -m ruff check --quiet --fix --exit-zero
	@$(PYTHON) -m ruff format

.PHONY: generate
generate: .venv ## CRDs and docs/reference, from the models and tables in operator/nixops_operator
	@$(PYTHON) -m nixops_operator.api.crd
	@$(PYTHON) -m nixops_operator.api.argocd
	@$(PYTHON) -m nixops_operator.reference

.PHONY: lab-up
lab-up: .venv ## a lab to work in by hand, see tests/lab/README.md
	@tests/lab/lab up

.PHONY: lab-down
lab-down: .venv ## takes it down
	@tests/lab/lab down

# The stamp inside decides whether there is something to do.
.PHONY: .venv
.venv:
	@tests/lab/set-up

# Made before the tests, where its progress is seen: the image beside what is compiled.
.PHONY: lab-parts
lab-parts:
	@tests/lab/set-up --lab
	@PYTHONPATH=tests/lab $(PYTHON) -m nixops_lab.image >/dev/null & image=$$!; \
	  LAB_PYTHON=$(abspath $(PYTHON)) tests/lab/control_plane/build.sh >/dev/null; wait $$image
