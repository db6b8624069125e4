# The one door to building and testing. CI calls the same targets.

SHELL := /bin/bash
NEXTEST_VERSION := 0.9.143
VENV := target/venv

.PHONY: help build demo test test-fast bench fmt lint doc deny clean peers nextest

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build both programs for use
	@deploy/ci/install-peers.sh cc
	cargo build --release --locked --bins

demo: ## Watch two users on a real Prosody send a file end to end
	@deploy/ci/install-peers.sh cc openssl prosody
	cargo build --release --locked --bins --example demo
	@cargo run --quiet --release --locked --example demo

test: peers nextest ## Run all tests, with real servers and independent clients
	cargo nextest run --locked --lib --bins --tests
	cargo test --locked --doc

test-fast: nextest ## Run the tests that need no server
	@deploy/ci/install-peers.sh cc
	cargo nextest run --locked --lib --bins --tests -E 'not binary(/^(e2e_.*|chat|crashes|crowds|message_initiation|registry_model|idle|harness|terminal|resume|library|methods|mitm|interop_tls)$$/)'

bench: ## Measure, against real peers; writes docs/BENCHMARKS.md
	@deploy/ci/install-peers.sh cc postgresql relays
	cargo bench --locked --bench relay
	cargo bench --locked --bench registry

fmt: ## Format the code
	cargo fmt

lint: ## Check format and lints; a warning is an error
	@deploy/ci/install-peers.sh cc
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

doc: ## Build the documentation; a warning is an error
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

deny: ## Check licences, bans and advisories (needs cargo-deny)
	cargo deny check

clean: ## Remove everything that was built
	cargo clean

peers:
	@deploy/ci/install-peers.sh cc chromium openssl tmux gnupg gnutls prosody ejabberd postgresql python nbxmpp qxmpp relays
	@deploy/ci/install-python.sh $(VENV)

nextest:
	@cargo nextest --version >/dev/null 2>&1 || cargo install cargo-nextest --version $(NEXTEST_VERSION) --locked
