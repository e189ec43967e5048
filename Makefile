# The targets a person or CI uses. Each works in a fresh clone: it first prepares .venv with pinned requirements.
# PYTHON=/path/to/python3.11 picks the interpreter for .venv.
SHELL := /bin/bash
CHECK = .venv/bin/python tools/check.py

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint units docs packaging sanity monitoring engine stand-ins molecule faults fleet tune two-routers closed-ports air-gap sites secrets takeover matrix tarball release-check release clean clean-images

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1	\2/p' $(MAKEFILE_LIST) | column -t -s '	'

setup: ## ansible-core in .venv, and this checkout findable as gpufleet.vllm
	@tools/setup.sh ansible

demo: setup ## deploy a small model on this machine, ask it something, write the report; MONITORING=1 has it watched
	@tools/demo.sh

test: tests-setup ## lint, units, docs, packaging, sanity, monitoring, engine, stand-ins and molecule, then where the time went
	@$(CHECK) lint units docs packaging sanity monitoring engine stand-ins molecule hosts

lint: tests-setup ## ruff, mypy, yamllint, ansible-lint
	@$(CHECK) lint

units: tests-setup ## unit tests
	@$(CHECK) units

docs: ## the documentation site, in .cache/docs/html
	@tools/setup.sh docs
	@.venv/bin/python tools/docsite/build.py

packaging: tests-setup ## build the collection, install it elsewhere, look inside; plays that need no server
	@$(CHECK) packaging

sanity: tests-setup ## ansible-test sanity
	@$(CHECK) sanity

monitoring: tests-setup ## rules and dashboards by a real Prometheus, which asks recorded servers through a real HAProxy
	@$(CHECK) monitoring

engine: tests-setup ## modules against a real Docker engine
	@$(CHECK) engine

stand-ins: tests-setup ## eight stand-in hosts behind a real HAProxy: a rolling change under load, and one that is killed
	@$(CHECK) stand-ins

molecule: tests-setup ## Molecule scenarios on a real Docker engine; SCENARIO=name runs only that one
	@$(CHECK) molecule hosts

faults: tests-setup ## every fault of the documentation's table, provoked on a server under load (not part of test)
	@$(CHECK) faults

fleet: tests-setup ## three servers, and 40 stand-in hosts, behind a router under load: changes and interruptions (not part of test)
	@$(CHECK) fleet many

tune: tests-setup ## a sweep of settings on a server, killed in between, and a deployment of what wins (not part of test)
	@$(CHECK) tune

air-gap: tests-setup ## from nothing to a verified server on a host without network, out of a bundle (not part of test)
	@$(CHECK) air-gap

sites: tests-setup ## from an empty host behind a proxy and a registry with passwords to a verified server (not part of test)
	@$(CHECK) sites

secrets: tests-setup ## a marker in every secret, looked for in all that every playbook tells and keeps (not part of test)
	@$(CHECK) secrets

takeover: tests-setup ## a fleet that 0.1.0 deployed, taken over by this version beneath requests (not part of test)
	@$(CHECK) takeover

closed-ports: tests-setup ## who reaches the servers' ports of a host, tried from other network namespaces (not part of test)
	@$(CHECK) closed-ports

two-routers: tests-setup ## two routers with one address, in network namespaces: one of them goes away under load (not part of test)
	@$(CHECK) two-routers

matrix: ## sanity and unit tests, both by ansible-test, on every supported ansible-core for which a Python is at hand (not part of test)
	@tools/setup.sh ansible
	@.venv/bin/python tools/matrix.py

tarball: setup ## build the collection here, as users install it
	@.venv/bin/ansible-galaxy collection build --force

release-check: tests-setup ## build the collection and let Galaxy's own importer check it (not part of test)
	@.venv/bin/python tools/release.py check

release: tests-setup ## make VERSION=1.2.3 release: bump, changelog, build, check; add DRY_RUN=1 to only see it
	@.venv/bin/python tools/release.py release $(VERSION) $(if $(DRY_RUN),--dry-run)

clean: ## remove what the targets above made in this checkout
	rm -rf .venv .cache .ansible .mypy_cache .pytest_cache .ruff_cache .hypothesis tests/output *.tar.gz
	find . -name __pycache__ -prune -exec rm -rf {} +

clean-images: tests-setup ## remove the tests' Docker engine with its images
	@.venv/bin/python tools/test_engine.py clean

.PHONY: tests-setup
tests-setup:
	@tools/setup.sh tests
