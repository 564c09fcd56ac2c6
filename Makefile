# Everything that a person or CI calls. `make` prints what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
# Where the demo's lab lives; the other targets leave it alone.
DEMO_DIR ?= /var/lib/nixops-lab/demo
KEEP ?=

.PHONY: help
help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

.PHONY: demo
demo: ## the example's whole life on real parts; as root. KEEP=1 leaves it running
	@tests/lab/set-up
	@PYTHONPATH=tests/lab exec $(PYTHON) -m nixops_lab.demo --dir=$(DEMO_DIR) $(if $(KEEP),--keep)
