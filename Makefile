# SPDX-License-Identifier: GPL-3.0-or-later
.DEFAULT_GOAL := help
SHELL := /bin/sh
BIN := .venv/bin

.PHONY: help setup setup-dev demo demo-watch picture demo-down rehearse test test-all lint types unit agent pythons endurance explore fuzz molecule sanity soak collection bench campaign mutants generate lock

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## Make .venv with what the control node needs
	@tools/setup requirements.txt

setup-dev: ## … and with what tests and lint need
	@tools/setup requirements-dev.txt

demo: setup-dev ## Raise the demo depot's gateway, converge it, and have it shed load for its utility
	@tools/demo up

demo-watch: ## Show the demo depot live, until interrupted
	@tools/demo watch

picture: setup-dev ## Draw what the standing demo shows into docs/demo.svg, which the README begins with
	@tools/demo picture

demo-down: ## Take the demo depot down
	@tools/demo down

rehearse: setup-dev ## Rehearse a depot file against its twin: DEPOT=inventories/mine/depot.yml, as root; ONLY=day without
	@$(BIN)/python -B -m tools.rehearse $(if $(ONLY),--only $(ONLY)) $(if $(HOURS),--hours $(HOURS)) \
	  $(if $(PLATFORM),--platform $(PLATFORM)) $(if $(VAULT),--vault-password-file $(VAULT)) $(DEPOT)

test: setup-dev ## Lint, types, unit tests, fault campaign, the built collection, molecule; ALLOW_SKIP=1 lets a part be left out
	@$(BIN)/python -m tests.run

test-all: setup-dev ## … and what does not fit there: fifty dry runs amid bans, a day of control and 200 kills, Python 3.12, new examples for every property, ten minutes of damaged OpenADR messages (FUZZ_MINUTES), the virtual machine with a kernel of its own
	@$(BIN)/python -m tests.run --all

lint types unit agent pythons endurance explore fuzz sanity e2e molecule soak vm: setup-dev ## One part of the tests
	@$(BIN)/python -m tests.run $@

collection: setup ## Build the collection into build/, the agent in it
	@tools/build_collection

bench: setup-dev ## Measure; ONLY=prefix limits it, as in ONLY=host.
	@$(BIN)/python -m tests.bench $(if $(ONLY),--only $(ONLY))

campaign: setup-dev ## Fault episodes of control under virtual time; N=100000 for the long one
	@$(BIN)/python -m derms_agent.twin.campaign run --count $(or $(N),1000)

mutants: setup-dev ## Plant faults in control, one after the other, and see each caught by the campaign
	@$(BIN)/python -m derms_agent.twin.campaign mutants --count 200

generate: setup-dev ## Write the roles' defaults and docs/roles.md from their argument specs
	@$(BIN)/python tools/generate_role_reference.py

lock: setup-dev ## Lock the newest packages that requirements*.in allow
	@tools/lock
