# The recipes of this repository; `.ci/run` calls only these. Needs a Rust toolchain, a C compiler and make;
# Terraform (or OpenTofu), Go and cargo-deny are used where they are installed and skipped with a line where not.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
BINARIES := build -q -p causeway-node -p causeway-ops --bins
TERRAFORM ?= $(shell command -v terraform || command -v tofu)
TERRAFORM_MODULES := $(sort $(patsubst %/versions.tf,%,$(wildcard terraform/modules/*/versions.tf terraform/modules/region/*/versions.tf terraform/modules/region/*/node/versions.tf terraform/fleets/*/versions.tf)))

# Terraform asks nothing, calls nobody and reads no personal configuration.
terraform_env = CHECKPOINT_DISABLE=1 TF_IN_AUTOMATION=1 TF_CLI_CONFIG_FILE=/dev/null

.PHONY: help
help: ## Lists the recipes
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Brings up three regions of two nodes, sends packets across them, kills a node; Ctrl-C takes all down
	$(CARGO) build -p causeway-node -p causeway-ops --bins
	exec $(TARGET_DIR)/debug/causeway demo

.PHONY: test
test: ## Runs every test: unit, property, simulation, whole fleets with real processes, Terraform
	mkdir -p $(TARGET_DIR)
	# Builds the programs as well, for their packages have tests that run them; building them apart would build everything twice.
	status=0; CAUSEWAY_BIN_DIR=$(abspath $(TARGET_DIR))/debug $(CARGO) test --workspace --no-fail-fast 2>&1 | tee $(TARGET_DIR)/test.log || status=$$?
	.ci/totals $(TARGET_DIR)/test.log || status=1
	$(MAKE) --no-print-directory terraform-test || status=1
	exit $$status

.PHONY: check
check: fmt-check clippy doc deny terraform-check ## Formatting, lints, documentation, licences, Terraform; writes nothing

.PHONY: fmt-check
fmt-check:
	$(CARGO) fmt --all -- --check

.PHONY: clippy
clippy:
	$(CARGO) clippy --workspace --all-targets -- -D warnings

.PHONY: doc
doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc -q --workspace --no-deps

.PHONY: deny
deny:
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny check bans licenses sources; else echo "skipped: cargo-deny is not installed"; fi

.PHONY: advisories
advisories: ## Looks for known vulnerabilities of dependencies; fetches the advisory database
	$(CARGO) deny check advisories

.PHONY: fix
fix: ## Formats Rust and Terraform, applies what clippy can mend by itself
	$(CARGO) clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	$(CARGO) fmt --all
	terraform/tests/readme-tables --write terraform
	if [ -n "$(TERRAFORM)" ]; then $(terraform_env) $(TERRAFORM) fmt -recursive terraform; fi

.PHONY: sim
sim: ## Replays one seed of the simulations (SEED=n)
	@[ -n "$(SEED)" ] || { echo "usage: make sim SEED=n" >&2; exit 2; }
	SEED=$(SEED) $(CARGO) test -p causeway-control --test sim_presence -- --nocapture
	SEED=$(SEED) $(CARGO) test -p causeway-node --test router_model -- --nocapture

.PHONY: fuzz
fuzz: ## Fuzzes every decoder for a minute, or as told (SECONDS=600 TARGET=link_frames); needs a C++ compiler
	proto/fuzz/run $(or $(SECONDS),60) $(TARGET)

.PHONY: fuzz-smoke
fuzz-smoke: ## Fuzzes every decoder for a few seconds, as CI does
	proto/fuzz/run $(or $(SECONDS),5)

.PHONY: bench
bench: ## Measures whole processes and prints medians (ARGS="forward --rounds 3", see docs/benchmarks.md)
	$(CARGO) build --release -p causeway-node -p causeway-ops -p causeway-tests-integration --bins
	CAUSEWAY_BIN_DIR=$(TARGET_DIR)/release $(TARGET_DIR)/release/causeway-bench $(ARGS)

.PHONY: soak
soak: ## Repeats the fleet tests in their long versions until one fails (ROUNDS=10 ARGS="failover")
	$(CARGO) $(BINARIES)
	for round in $$(seq $(or $(ROUNDS),10)); do
		echo "round $$round"
		CAUSEWAY_LONG_TESTS=1 $(CARGO) test -q -p causeway-tests-integration --test it -- $(ARGS)
	done

.PHONY: interop
interop: ## Runs only the tests against other people's Go programs: Tailscale's, and the ACME directory Pebble
	$(CARGO) $(BINARIES)
	$(CARGO) test -p causeway-tests-integration --test it -- interop --nocapture
	$(CARGO) test -p causeway-node --test process -- acme --nocapture

.PHONY: terraform-check
terraform-check: ## Formats (checks), validates and lints terraform/
	@if [ -z "$(TERRAFORM)" ]; then echo "skipped: neither terraform nor tofu is installed"; exit 0; fi
	export $(terraform_env)
	$(TERRAFORM) fmt -check -recursive terraform
	terraform/tests/forbidden-words terraform
	terraform/tests/readme-tables --check terraform
	for module in $(TERRAFORM_MODULES); do
		$(TERRAFORM) -chdir=$$module init -backend=false -input=false -no-color >/dev/null
		$(TERRAFORM) -chdir=$$module validate -no-color >/dev/null || { echo "$$module does not validate" >&2; exit 1; }
	done
	echo "terraform: $(words $(TERRAFORM_MODULES)) modules are formatted and valid"

.PHONY: terraform-test
terraform-test: ## Runs `terraform test` in every module that has tests
	@if [ -z "$(TERRAFORM)" ]; then echo "skipped: neither terraform nor tofu is installed"; exit 0; fi
	export $(terraform_env)
	for tests in $(sort $(wildcard terraform/modules/*/tests terraform/modules/region/*/tests terraform/modules/region/*/node/tests)); do
		module=$$(dirname $$tests)
		$(TERRAFORM) -chdir=$$module init -backend=false -input=false -no-color >/dev/null
		$(TERRAFORM) -chdir=$$module test -no-color
	done

.ONESHELL:
