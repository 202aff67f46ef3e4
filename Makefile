# Everything runs in .venv, which is built from the pinned requirement files: of the engine to serve, and of the
# simulation to prove.

export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

.DEFAULT_GOAL := help
.PHONY: help setup spike test quick serve lint bus clean

install := .venv/bin/python -m pip install --quiet --disable-pip-version-check

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' Makefile

setup: .venv/.simulation bus ## build .venv with all that simulation and tests need

spike: setup ## run the reference spike, judge it and write its report
	.venv/bin/flashsim run spike

# Most tests wait for services most of the time: one process more than there are cores.
test: lint ## lint, type-check and run every test
	.venv/bin/pytest --numprocesses $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --maxprocesses 4 \
	    --dist loadfile --no-loadscope-reorder

serve: .venv/.engine bus ## serve the engine on http://127.0.0.1:8080, where anybody on this machine may open a sale
	.venv/bin/flashgrid serve --dev

quick: lint ## lint, and test the pure parts, in under a minute
	.venv/bin/pytest -m "not slow" --hypothesis-profile quick --numprocesses logical --maxprocesses 4

lint: setup ## check style, format, types, and which room imports which
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/lint-imports --no-cache
	.venv/bin/mypy

bus: ## install RabbitMQ where the distribution has it
	@.ci/install rabbitmq-server || echo "going on without RabbitMQ: fulfilment reads the outbox itself" >&2

clean: ## remove .venv and the caches; data in .flashgrid and reports stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.engine: engine/requirements.txt engine/local/requirements.txt pyproject.toml
	@if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then \
	    for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	        $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	        python=; \
	    done; \
	    [ -n "$$python" ] || { echo "Flashgrid needs Python 3.11 or newer, and finds none on PATH" >&2; exit 1; }; \
	    $$python -c 'import ensurepip' 2>/dev/null \
	        || { echo "$$python can't build a virtual environment: install its venv package (python3-venv)" >&2; exit 1; }; \
	    echo "building .venv with $$($$python --version)" >&2; \
	    $$python -m venv --clear .venv; \
	fi
	$(install) -r engine/requirements.txt -r engine/local/requirements.txt
	$(install) --no-deps --editable .
	@touch $@

.venv/.simulation: .venv/.engine simulation/requirements.txt
	$(install) -r simulation/requirements.txt
	@touch $@
