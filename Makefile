# The entry point for building and testing. CI calls the same targets.

SHELL := /bin/bash
NEXTEST_VERSION := 0.9.143
VENV := target/venv
ROUNDS ?= 5
# The property tests try the same inputs in each run; others: make test PROPTEST_RNG_SEED=$RANDOM
export PROPTEST_RNG_SEED ?= 1
# How long each part of `make soak` and `make fuzz` runs.
SECONDS ?= 60
KEYS ?= 1000000
# How often `make direct-test` cuts a direct path.
CUTS ?= 50

.PHONY: release release-test gajim-plugin gajim-test bindings-venv bindings-test bindings-bench bindings-lint bindings-header wheel c-library python-test xep-test guide-test clients-test direct-test outgoing-test direct-bench fuzz soak test-trixie interop-trixie trixie programs docs docs-test deb deb-test compose-test compose-up compose-down help build demo test test-fast interop bench fmt lint doc deny clean peers nextest

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build both programs for use
	@deploy/ci/install-peers.sh cc
	cargo build --release --locked --bins

demo: ## Watch two users on a real Prosody send a file end to end
	@deploy/ci/install-peers.sh cc openssl prosody
	cargo build --profile demo --locked --bins --package fingerpost --package fingerpost-xtls --package xtask
	@target/demo/xtask demo

test: peers nextest ## Run all tests, with real servers and independent clients
	cargo nextest run --locked --workspace --lib --bins --tests
	cargo test --locked --workspace --doc

test-fast: nextest ## Run the tests that need no server
	@deploy/ci/install-peers.sh cc
	cargo nextest run --locked --workspace --lib --bins --tests --profile fast

interop: peers nextest ## Run every dialect against every other, and look at the wire; writes the tables of docs/INTEROP.md
	FINGERPOST_WRITE_INTEROP=1 cargo nextest run --locked --test servers -E 'test(/^(interop|wire)::/)'

# A checkout of github.com/xsf/xeps, to validate the proposals with the XSF's own files.
XEPS ?=

xep-test: nextest ## Replay the examples of docs/xep; XEPS=DIRECTORY, a checkout of the XSF's xeps, also validates and renders them
	@deploy/ci/install-peers.sh cc
	cargo nextest run --locked --workspace --lib --bins --tests -E 'binary(programs) & test(/^xep::/)'
	@[ -z "$(XEPS)" ] || { deploy/ci/install-peers.sh xep && deploy/ci/xep.sh "$(XEPS)" target/xep; }

gajim-plugin: ## Write the plugin for Gajim, target/gajim/fingerpost.zip
	deploy/ci/gajim-plugin.sh target/gajim/fingerpost.zip

gajim-test: ## Run two Gajims with the plugin of gajim/, and xtls, each in a network of its own (as root); DEBIAN=trixie takes the Gajim 2 of Debian 13; SCREENSHOTS=1 also writes those of docs/
	@deploy/ci/install-peers.sh cc openssl prosody python relays $(if $(DEBIAN),,gajim)
	@deploy/ci/install-python.sh $(VENV)
	@# With a test among the targets the programs are those of `make test`: nothing is built twice.
	cargo build --locked --workspace --bins --test programs
	$(if $(SCREENSHOTS),FINGERPOST_WRITE_SCREENSHOTS=1 )$(if $(DEBIAN),FINGERPOST_TEST_DEBIAN=$(DEBIAN) )deploy/ci/gajim-test.sh $(VENV)/bin/python target/debug

direct-test: nextest ## Direct paths through every pair of NATs, and 50 cuts of a gigabyte (as root); writes the table of docs/INTEROP.md
	@deploy/ci/install-peers.sh cc openssl prosody ejabberd postgresql relays
	@# With a test among the targets the programs are those of `make test`: nothing is built twice.
	cargo build --locked --workspace --bins --tests
	FINGERPOST_WRITE_INTEROP=1 FINGERPOST_TEST_CUTS=$(CUTS) cargo nextest run --locked --workspace --lib --bins --tests \
		--profile direct --test-threads 1 --success-output final -E 'binary(servers) & test(/^(addresses|nats|outgoing|paths|roaming)::/)'

outgoing-test: peers nextest ## The tests that start a component, with each component under strace (as root): it connects to its server and its database only
	@deploy/ci/install-peers.sh strace
	cargo build --locked --workspace --bins --tests
	deploy/ci/watch.sh target/debug target/watched
	FINGERPOST_TEST_PROGRAMS=target/watched cargo nextest run --locked --workspace --lib --bins --tests -E 'binary(/^(hostile|programs|registry|servers)$$/)'
	deploy/ci/outgoing.py target/watched/records
	@# Another connection is noticed.
	@rm -rf target/watched/lie && mkdir target/watched/lie && cp -r $$(ls -d target/watched/records/* | head -n 1) target/watched/lie/
	@echo '1 connect(9, {sa_family=AF_INET, sin_port=htons(9), sin_addr=inet_addr("192.0.2.1")}, 16) = 0' >>$$(echo target/watched/lie/*/calls)
	@! deploy/ci/outgoing.py target/watched/lie 2>/dev/null >&2

direct-bench: nextest ## Measure a direct path against openssl in the same networks (as root): make direct-bench ROUNDS=3
	@deploy/ci/install-peers.sh cc openssl prosody relays
	cargo build --release --locked --bins --package fingerpost --package fingerpost-xtls
	FINGERPOST_TEST_PROGRAMS=target/release FINGERPOST_TEST_SPEED=$(ROUNDS) cargo nextest run --locked --test servers \
		--run-ignored only --success-output final -E 'test(=paths::a_direct_path_is_as_fast_as_openssl)'

# Set, it lets the tests of clients write the screenshots of docs/.
SCREENSHOTS ?=

# trixie: the clients of Debian 13, in a root directory that is made once.
DEBIAN ?=
CLIENTS_OF_trixie := profanity poezio gajim dino-im ca-certificates fonts-dejavu-core
TESTS_OF_CLIENTS := binary(servers) & test(/^clients::$(if $(DEBIAN),.*(dino|gajim|poezio|profanity))/)

clients-test: peers nextest ## Every page of every command, and files, in real clients (as root), or in those of Debian 13 with DEBIAN=trixie; SCREENSHOTS=1 also writes those of docs/
	@deploy/ci/install-peers.sh clients
	$(if $(DEBIAN),@deploy/ci/$(DEBIAN).sh target/$(DEBIAN)-clients $(CLIENTS_OF_$(DEBIAN)))
	@# With a test among the targets the programs are those of `make test`: nothing is built twice.
	cargo build --locked --workspace --bins --tests
	$(if $(SCREENSHOTS),FINGERPOST_WRITE_SCREENSHOTS=1 )FINGERPOST_TEST_CLIENTS=$(DEBIAN) cargo nextest run --locked --workspace --lib \
		--bins --tests --run-ignored only --success-output final -E '$(TESTS_OF_CLIENTS)'

test-trixie: peers trixie nextest ## Run the tests with XMPP servers on those of Debian 13 (as root)
	FINGERPOST_TEST_DEBIAN=trixie cargo nextest run --locked --profile trixie --tests

interop-trixie: trixie nextest ## Write the columns of Debian 13's servers into the tables of docs/INTEROP.md
	FINGERPOST_TEST_DEBIAN=trixie FINGERPOST_WRITE_INTEROP=1 cargo nextest run --locked --test servers -E 'test(/^wire::/)'

soak: nextest ## Send odd stanzas through both servers for a while: make soak SECONDS=600
	@deploy/ci/install-peers.sh cc openssl prosody ejabberd
	FINGERPOST_SOAK_SECONDS=$(SECONDS) FINGERPOST_TEST_SEED=$${FINGERPOST_TEST_SEED:-$$(date +%s)} \
		cargo nextest run --locked --profile soak --no-capture --test servers -E 'test(/^differential::/)'

fuzz: nextest ## Run every fuzz target for a while: make fuzz SECONDS=60
	@deploy/ci/install-peers.sh cc
	FINGERPOST_FUZZ_SECONDS=$(SECONDS) FINGERPOST_TEST_SEED=$${FINGERPOST_TEST_SEED:-$$(date +%s)} \
		cargo nextest run --locked --profile soak --success-output final --test programs -E 'test(/^fuzz::/)'

bench: ## Measure, against real peers; writes docs/BENCHMARKS.md (quickly: make bench ROUNDS=1 KEYS=10000)
	@deploy/ci/install-peers.sh cc openssl prosody ejabberd postgresql relays
	cargo bench --locked --bench relay -- $(ROUNDS)
	cargo bench --locked --bench registry -- $(KEYS)

# PROFILE=debug uses the programs of `make test` instead of a release build of several minutes.
PROFILE ?= release

programs:
	@deploy/ci/install-peers.sh cc
	cargo build --locked --bins $(if $(filter release,$(PROFILE)),--release)

docs: ## Write docs/CONFIGURATION.md from the code
	cargo run --locked -q -p xtask -- docs

docs-test: ## Check and run the commands in the documentation
	@deploy/ci/install-peers.sh cc
	@# With a test among the targets the programs are those of `make test`: nothing is built twice.
	cargo build --locked --workspace --bins --test programs
	deploy/ci/docs-test.sh target/debug
	@$(MAKE) --no-print-directory guide-test

guide-test: ## Run the commands of docs/MIGRATION.md on Debian's stock Prosody and ejabberd (as root)
	@deploy/ci/install-peers.sh cc openssl prosody ejabberd python relays
	@deploy/ci/install-python.sh $(VENV)
	cargo build --locked --workspace --bins --test programs
	deploy/ci/guide-test.sh target/debug $(VENV)

python-test: ## Test the slixmpp plugin in python/, the bot in examples/bot and parts of gajim/, with xtls on the other side and real servers between
	@deploy/ci/install-peers.sh cc openssl prosody ejabberd python systemd nbxmpp pyopenssl
	@deploy/ci/install-python.sh $(VENV)
	@# With a test among the targets the programs are those of `make test`: nothing is built twice.
	cargo build --locked --workspace --bins --test programs
	deploy/ci/python-test.sh $(VENV)/bin/python target/debug

# The workspace in bindings/ shares this directory: dependencies with the same features are not built twice.
BINDINGS_VENV := target/bindings-venv
BINDINGS = CARGO_TARGET_DIR=$(CURDIR)/target

# The versions of the main lock file, and those of the few packages that are not in it.
bindings/Cargo.lock: Cargo.lock bindings/Cargo.toml $(wildcard bindings/*/Cargo.toml)
	cp Cargo.lock $@
	cd bindings && cargo metadata --quiet --format-version 1 >/dev/null
	@touch $@

bindings-venv: bindings/Cargo.lock
	@deploy/ci/install-peers.sh cc python
	@deploy/ci/install-python.sh $(BINDINGS_VENV) bindings/python/requirements.txt

bindings-test: bindings-venv ## Test the libraries for Python and C, with xtls on the other side (not in CI: minutes of compiling)
	@deploy/ci/install-peers.sh cc openssl prosody pkg-config valgrind
	@# With a test among the targets the programs are those of `make test`: nothing is built twice.
	cargo build --locked --workspace --bins --test programs
	$(BINDINGS) deploy/ci/bindings-test.sh $(BINDINGS_VENV) target/debug

bindings-bench: bindings-venv ## Measure a stream of each library; writes docs/BENCHMARKS.md: make bindings-bench ROUNDS=5
	@deploy/ci/install-peers.sh cc openssl prosody pkg-config
	cargo build --release --locked --bins --package fingerpost --package fingerpost-xtls
	$(BINDINGS) deploy/ci/bindings-bench.sh $(BINDINGS_VENV) target/release $(ROUNDS)

bindings-lint: bindings/Cargo.lock ## Check format and lints of the libraries for Python and C
	cd bindings && cargo fmt --all --check
	cd bindings && $(BINDINGS) cargo clippy --locked --workspace --all-targets -- -D warnings

bindings-header: bindings/Cargo.lock ## Write the C header from the code
	cd bindings && $(BINDINGS) FINGERPOST_WRITE_HEADER=1 cargo test --locked -p fingerpost-c --test header

wheel: bindings-venv ## Build the Python wheel in target/wheels
	$(BINDINGS) $(BINDINGS_VENV)/bin/maturin build --release --locked -m bindings/python/Cargo.toml --out target/wheels

# Where `make c-library` installs; DESTDIR is put before it.
PREFIX ?= /usr/local

c-library: bindings/Cargo.lock ## Build the C library and install it: make c-library PREFIX=/usr/local
	@deploy/ci/install-peers.sh cc
	cd bindings && $(BINDINGS) cargo build --release --locked -p fingerpost-c
	bindings/c/install.sh target/release $(PREFIX)

deb: ## Build the Debian package in target/debian
	@deploy/ci/install-peers.sh cc debhelper
	deploy/deb/build.sh $(PROFILE) 1 target/debian

deb-test: deb ## Install, use, upgrade and purge it on a new machine, in a container (not in CI: minutes of images)
	deploy/deb/build.sh $(PROFILE) 2 target/debian-newer
	timeout 900 deploy/deb/test.sh target/debian/fingerpost_*.deb target/debian-newer/fingerpost_*.deb

# The fingerprint of the OpenPGP key that signs, or throwaway: a rehearsal with a key that is deleted afterwards.
KEY ?= throwaway
RELEASE ?= target/publish

release: ## Build a release of the last commit in target/publish (as root): make release KEY=FINGERPRINT
	@deploy/ci/install-peers.sh cc debhelper debootstrap python release
	deploy/release/release.sh $(RELEASE) $(KEY)

release-test: ## Verify, run and install what `make release` has built, in containers (as root)
	timeout 900 deploy/release/test.sh $(RELEASE)

compose-test: programs ## Two servers, two Fingerposts and their failures, in containers (not in CI: minutes of images)
	timeout 1200 deploy/compose/test.sh target/$(PROFILE)

compose-up: programs ## Start that environment and leave it running
	deploy/compose/test.sh target/$(PROFILE) --keep

compose-down: ## Take it down
	. deploy/engine.sh && find_compose && compose_down

fmt: ## Format the code
	cargo fmt --all

lint: ## Check format and lints; a warning is an error
	@deploy/ci/install-peers.sh cc
	xtask/prose-check
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p fingerpost-secure -p fingerpost-endpoint --no-default-features -- -D warnings

doc: ## Build the documentation; a warning is an error
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

deny: bindings/Cargo.lock ## Check licences, bans and sources, and advisories where their database can be fetched
	@deploy/ci/deny.sh

clean: ## Remove everything that was built
	cargo clean

peers:
	@deploy/ci/install-peers.sh cc chromium openssl tmux gnupg sequoia gnutls prosody ejabberd postgresql python nbxmpp qxmpp relays dns nat64 lan
	@deploy/ci/install-python.sh $(VENV)

trixie:
	@deploy/ci/trixie.sh

nextest:
	@cargo nextest --version >/dev/null 2>&1 || cargo install cargo-nextest --version $(NEXTEST_VERSION) --locked
