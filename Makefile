# `make help` lists the targets. Everything happens in .venv, which `make` fills by itself: see scripts/set_up.py.
VENV ?= .venv
PY := $(VENV)/bin/python
SET_UP := @VENV=$(VENV) PYTHON=$(PYTHON) scripts/set_up
EXTRAS := llamacpp
ENGINES_VENV ?= .venv-engines
HAS_VLLM := $(PY) -c "import importlib.util; raise SystemExit(importlib.util.find_spec('vllm') is None)"

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: ## Fill .venv (every target that needs it does so by itself)
	$(SET_UP) $(EXTRAS)

.PHONY: run
run: ## Start the mesh on this machine; ENGINE=vllm MODEL=<dir or name> for a real model, TRACES=phoenix, ARGS="--once"
	$(SET_UP) $(EXTRAS) $(if $(filter phoenix,$(TRACES)),phoenix)
	$(if $(filter vllm,$(ENGINE)),@$(HAS_VLLM) || VENV=$(ENGINES_VENV) PYTHON=$(PYTHON) scripts/set_up --engines)
	@exec $(PY) scripts/foreground.py $(VENV)/bin/tokenworks up $(if $(TRACES),--traces $(TRACES)) \
	$(if $(ENGINE),--engine "$(ENGINE)") $(if $(MODEL),--model "$(MODEL)") $(if $(URL),--url "$(URL)") $(ARGS)

.PHONY: doctor
doctor: ## Say what is missing on this machine, and what would do
	$(SET_UP) $(EXTRAS)
	@$(VENV)/bin/tokenworks doctor $(ARGS)

.PHONY: test
test: ## Run every test; ARGS="tests/unit -k name" to choose
	$(SET_UP) $(EXTRAS) dev
	$(PY) -m pytest -n 2 --dist loadgroup $(ARGS)

.PHONY: fuzz
fuzz: ## Send MESSAGES=100000 (1000 when unset) with SEED=1 to every method, subject and route; ONLY="nats " FROM= REPLAY=
	$(SET_UP) $(EXTRAS) dev
	ONLY="$(ONLY)" FROM="$(FROM)" REPLAY="$(REPLAY)" $(PY) -m tests.fuzz $(or $(MESSAGES),1000) $(or $(SEED),1)

.PHONY: test-engines
test-engines: ## Hold every engine to the contract, vLLM's CPU build in .venv-engines too (Linux on x86-64); 2.5 GB
	@VENV=$(ENGINES_VENV) PYTHON=$(PYTHON) scripts/set_up --engines
	$(ENGINES_VENV)/bin/python -m pytest $(or $(ARGS),tests/contract/test_engines.py tests/engines)

.PHONY: lint
lint: ## Style of Python and protos, breaking changes of the wire, drift of generated files
	$(SET_UP) $(EXTRAS) dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/buf lint
	$(VENV)/bin/buf breaking --against protos/released.binpb
	$(PY) scripts/stubs.py --check
	$(PY) -m services.mesh.events_reference --check

.PHONY: types
types: ## mypy, strict
	$(SET_UP) $(EXTRAS) dev
	$(VENV)/bin/mypy

.PHONY: proto
proto: ## Generate tokenworks/v1 from protos/, and docs/events.md
	$(SET_UP) $(EXTRAS) dev
	$(PY) scripts/stubs.py
	$(PY) -m services.mesh.events_reference

.PHONY: release-proto
release-proto: ## Make protos/ as they stand what later changes are checked against (at a release)
	$(SET_UP) $(EXTRAS) dev
	$(VENV)/bin/buf build -o protos/released.binpb

.PHONY: bench
bench: ## Measure; results go to bench/results/
	$(SET_UP) $(EXTRAS) dev
	$(PY) -m bench.streams
	$(PY) -m bench.meter_booking --out bench/results/meter_booking.json
	$(PY) -m bench.fleet_bill --out $(TRACE)

.PHONY: bench-budgets
bench-budgets: ## What budgets add to a first token and to those after it; ARGS
	$(SET_UP) $(EXTRAS) dev
	$(PY) -m bench.budget_ttft $(ARGS)

.PHONY: bench-meter
bench-meter: ## How fast the meter books, against a plain INSERT per event; its lag; ARGS="--flat 10000000" for flatness
	$(SET_UP) $(EXTRAS) dev
	$(PY) -m bench.meter_booking --out bench/results/meter_booking.json $(ARGS)

.PHONY: bench-usage
bench-usage: ## How long questions about a year of hours of a thousand tenants take
	$(SET_UP) $(EXTRAS) dev
	$(PY) -m bench.usage_questions $(ARGS)

.PHONY: bench-overload
bench-overload: ## Far more asked than can be done, in virtual time: goodput, recovery, what a flood does to a neighbour
	$(SET_UP) $(EXTRAS) dev
	$(PY) -m bench.overload $(ARGS)

.PHONY: bench-datapath
bench-datapath: ## What relaying and placing costs our router; ARGS="--quick" to try it
	$(SET_UP) $(EXTRAS) dev
	$(PY) -m bench.datapath $(ARGS)

.PHONY: bench-policy
bench-policy: ## Policies in virtual time, ours against other routers' rules; TRACES=dir of the public traces, ARGS="--quick"
	$(SET_UP) $(EXTRAS) dev
	$(PY) -m bench.policy $(if $(TRACES),--traces "$(TRACES)") $(ARGS)

.PHONY: bench-plan
bench-plan: ## How long planning takes: a full solve of 50 classes on 1,000 workers, and a repair after one is lost
	$(SET_UP) $(EXTRAS) dev
	$(PY) -m bench.plan $(ARGS)

.PHONY: bench-elastic
bench-elastic: ## Fleet-hours over a day whose demand is followed, cold starts included, against a planner that knows the day
	$(SET_UP) $(EXTRAS) dev
	$(PY) -m bench.elastic $(ARGS)

.PHONY: bench-twin
bench-twin: ## The twin against the live mesh: the same requests on the same fleet, in virtual and in real time
	$(SET_UP) $(EXTRAS) dev
	$(PY) -m bench.live_vs_twin $(ARGS)

.PHONY: bench-reaction
bench-reaction: ## How soon a device that becomes ten times slower is left alone, and news becomes plans, on a live mesh
	$(SET_UP) $(EXTRAS) dev
	$(PY) -m bench.reaction $(ARGS)

.PHONY: bench-peers
bench-peers: ## The same beside other routers, installed under .bench/; goes on where it was broken off, FRESH=1 begins anew
	$(SET_UP) $(EXTRAS) dev
	FRESH=$(FRESH) $(PY) -m bench.peers $(ARGS)

.PHONY: bench-engines
bench-engines: ## Measure with vLLM's CPU build: unlike engines under one name, and the worker's CPU against vLLM's server
	@VENV=$(ENGINES_VENV) PYTHON=$(PYTHON) scripts/set_up --engines
	$(ENGINES_VENV)/bin/python -m bench.mixed_replay
	$(ENGINES_VENV)/bin/python -m bench.worker_cpu

.PHONY: chaos
chaos: ## Break a mesh on purpose, FAULTS=60 times on the schedule of SEED=1, and check that nothing was lost; ARGS
	$(SET_UP) $(EXTRAS)
	@$(VENV)/bin/tokenworks chaos --faults $(or $(FAULTS),60) --seed $(or $(SEED),1) $(ARGS)

.PHONY: worker-killed
worker-killed: ## 50 streams on a worker that is killed, direct and relayed: prints the longest pause that a client saw
	$(SET_UP) $(EXTRAS) dev
	$(PY) -m pytest -q -s tests/chaos/test_worker_killed.py

.PHONY: budget-storm
budget-storm: ## Storm one budget with 500 streams at 4 routers, killing routers and meter: RUNS=50 SEED=1
	$(SET_UP) $(EXTRAS) dev
	$(PY) -m bench.budget_storm --runs $(or $(RUNS),50) --seed $(or $(SEED),1) $(ARGS)

.PHONY: compose-test
compose-test: ## Build deploy/compose.yaml, start it, use it, restart it, tear it down
	$(SET_UP) $(EXTRAS) dev
	deploy/compose-test

.PHONY: clean
clean: ## Remove .venv, caches and build output; the mesh's data in .tokenworks stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
