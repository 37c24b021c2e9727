# Everything that people and CI do here is a target. `make` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := .tools
GRPCURL := github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4
HEALTH_PROBE := github.com/grpc-ecosystem/grpc-health-probe@v0.4.61
KUSTOMIZE := sigs.k8s.io/kustomize/kustomize/v5@v5.8.2
HELM := helm.sh/helm/v3/cmd/helm@v3.22.0
PROTOC_GEN_DOC := github.com/pseudomuto/protoc-gen-doc/cmd/protoc-gen-doc@v1.5.1
GO_INSTALL = GOBIN='$(CURDIR)/$(TOOLS)' GOFLAGS=-modcacherw go install
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-emit-index-url --no-emit-find-links --no-header
RESULTS ?= docs/performance/results.jsonl
SBOM ?= dist/betrace-kms.cdx.json
TESTS := $(BIN)/python -m pytest -n 2
# apt keeps its state in a folder of ours: no root, and the machine's own lists stay as they are. Debian's signatures
# are checked as always.
APT := $(TOOLS)/apt
APT_GET = apt-get -q -o Dir::State='$(CURDIR)/$(APT)' -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache='$(CURDIR)/$(APT)' \
  -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
JAVA_SDK := tests/interop/java/sdk
# Maven remembers a download that failed; -U lets it try again.
COPY_JARS := mvn -q -B -f $(JAVA_SDK) dependency:copy-dependencies -DoutputDirectory=jars
BUILD_JAVA := mvn -q -B -f examples/java compile dependency:copy-dependencies
# Unpack packages of Debian into .tools/apt/unpacked: those that the message names, or a list that is made by then.
define unpack
@command -v apt-get >/dev/null || { echo 'There is no apt-get here: install $(1) yourself'; exit 1; }
rm -rf $(APT) && mkdir -p $(APT)/lists/partial $(APT)/archives/partial
-$(APT_GET) update
cd $(APT) && $(APT_GET) download $(or $(2),$(1)) && for package in *.deb; do dpkg-deb -x "$$package" unpacked; done
endef
# What a target needs beyond printing its help.
unless-help = $(if $(filter --help,$(FLAGS)),,$(1))
# A package with what of its dependencies this machine lacks.
with_missing = $$($(APT_GET) install --reinstall --simulate --no-install-recommends $(1) | awk '/^Inst/ {print $$2}')
export PATH := $(CURDIR)/$(TOOLS):$(CURDIR)/$(BIN):$(PATH)

.PHONY: $(shell sed -n 's/^\([a-z0-9-]*\):.*/\1/p' $(firstword $(MAKEFILE_LIST)))

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/server.stamp ## run the daemon on 127.0.0.1:50051 with the local provider and ./data
	@printf '%s\n' \
	  'Starting betrace-kms. Once it says "serving", call it from another shell; Ctrl-C ends it:' \
	  '  .venv/bin/betrace-kms health' \
	  '  echo "hello" | .venv/bin/betrace-kms encrypt --tenant acme | .venv/bin/betrace-kms decrypt --tenant acme' \
	  '  grpcurl -plaintext 127.0.0.1:50051 list' ''
	@exec $(BIN)/betrace-kms serve

demo: $(VENV)/dev.stamp ## tour what it does, with AWS in an emulator, traffic and outages (DEMO_KEEP=1 keeps it up, with its page)
	@$(BIN)/python -m demo.tour

test: $(VENV)/dev.stamp ## run all tests (TESTFLAGS=... adds flags of pytest)
	$(TESTS) $(TESTFLAGS)

coverage: ## run all tests and show what they do not reach
	$(MAKE) test TESTFLAGS='--cov --cov-report=term-missing'

lint: $(VENV)/dev.stamp ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/dev.stamp ## format the code, and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/dev.stamp ## check types
	$(BIN)/mypy

imports: $(VENV)/dev.stamp ## check that imports point one way
	$(BIN)/lint-imports

protos: $(VENV)/dev.stamp ## regenerate the stubs from protos/
	cd protos && ../$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --mypy_out=quiet:. betrace/kms/v1/*.proto
	cd protos && ../$(BIN)/python -m grpc_tools.protoc -I . --grpc_python_out=. --mypy_grpc_out=quiet:. \
	  betrace/kms/v1/admin.proto betrace/kms/v1/key_management.proto

test-keyring: $(VENV)/dev.stamp ## exchange 500 messages with the official hierarchical keyrings of Python and Java both ways
	KEYRING_COMBINATIONS=500 $(BIN)/python -m pytest -v tests/interop/test_hierarchical_keyring.py

test-upgrade: $(VENV)/dev.stamp ## upgrade stores of each earlier version and go back, and run two versions on one table (needs git's whole history)
	$(BIN)/python -m pytest -v tests/upgrade

test-install: ## install the pins and the declared ranges into empty environments of each Python that is here, and run the daemon
	'$(PYTHON)' -m tests.install pins

image-check: sbom ## carry out the Dockerfile without an engine, and run the daemon as the image does (needs root, Linux and make tools)
	'$(PYTHON)' -m tests.image.check

test-ranges: ## let pip choose what pyproject.toml allows today, and run the daemon
	'$(PYTHON)' -m tests.install ranges 3.11

protos-check: protos $(VENV)/tools.stamp ## check that the stubs are what protos/ says, its style, and that clients of the last release can still call
	$(BIN)/buf lint
	$(BIN)/buf breaking --against protos/released.txtpb
	@test -z "$$(git status --porcelain -- protos)" || { git status --short -- protos; git diff --stat -- protos; echo 'protos/ differs from its stubs: commit what make protos wrote'; exit 1; }

tools: ## build grpcurl and grpc_health_probe into .tools (needs Go)
	$(GO_INSTALL) $(GRPCURL)
	$(GO_INSTALL) $(HEALTH_PROBE)
	mv -f $(TOOLS)/grpc-health-probe $(TOOLS)/grpc_health_probe

kubernetes-tools: ## build helm, kustomize, and kubecheck of tests/kubernetes, into .tools (needs Go)
	$(GO_INSTALL) $(HELM)
	$(GO_INSTALL) $(KUSTOMIZE)
	cd tests/kubernetes/kubecheck && $(GO_INSTALL) -buildvcs=false .

chart: ## package the Helm chart into dist (needs helm)
	helm package deploy/helm/betrace-kms --destination dist

prometheus-rule: ## write the alerts of deploy/prometheus as a PrometheusRule of deploy/kubernetes
	{ printf '%s\n' '# Written by `make prometheus-rule` from deploy/prometheus/betrace-kms*.rules.yaml.' 'apiVersion: monitoring.coreos.com/v1' \
	  'kind: PrometheusRule' 'metadata:' '  name: betrace-kms' 'spec:'; \
	  echo '  groups:'; for file in deploy/prometheus/betrace-kms*.rules.yaml; do sed '1,/^groups:/d; s/^./  &/' "$$file"; done; } > deploy/kubernetes/prometheus-rule/prometheus-rule.yaml

prometheus: $(TOOLS)/prometheus ## unpack Debian's prometheus and promtool into .tools (needs apt-get, not root)

$(TOOLS)/prometheus:
	$(call unpack,prometheus)
	mv -f $(APT)/unpacked/usr/bin/promtool $(APT)/unpacked/usr/bin/prometheus $(TOOLS)/
	rm -rf $(APT)

page-picture: $(VENV)/dev.stamp chromium ## take docs/images/page.png from a daemon with traffic, in seven minutes; not as root, which the page warns of
	$(BIN)/python -m demo.picture docs/images/page.png

h2load: $(TOOLS)/h2load ## unpack Debian's h2load, the load generator of `make bench`, into .tools (needs apt-get, not root)

# It comes with two libraries that a slim machine lacks, so a script stands before it.
$(TOOLS)/h2load:
	$(call unpack,nghttp2-client libev4 libjemalloc2)
	rm -rf $(TOOLS)/nghttp2 && mkdir -p $(TOOLS)/nghttp2
	mv $(APT)/unpacked/usr/bin/h2load $(APT)/unpacked/usr/lib/*/*.so* $(TOOLS)/nghttp2/
	printf '%s\n' '#!/bin/sh' 'here=$$(dirname "$$(readlink -f "$$0")")/nghttp2' 'LD_LIBRARY_PATH=$$here exec "$$here/h2load" "$$@"' > $@
	chmod 755 $@
	rm -rf $(APT)

chromium: $(TOOLS)/chromium-headless-shell ## unpack Debian's headless Chromium into .tools, to test the page (needs apt-get, not root)

# It comes with the libraries that this machine lacks, so a script stands before it.
$(TOOLS)/chromium-headless-shell:
	$(call unpack,chromium-headless-shell,$(call with_missing,chromium-headless-shell))
	rm -rf $(TOOLS)/chromium && mv $(APT)/unpacked/usr/lib/chromium $(TOOLS)/chromium
	find $(APT)/unpacked/usr/lib -name '*.so*' -exec mv {} $(TOOLS)/chromium/ \;
	printf '%s\n' '#!/bin/sh' 'here=$$(dirname "$$(readlink -f "$$0")")/chromium' 'LD_LIBRARY_PATH=$$here exec "$$here/chromium-headless-shell" "$$@"' > $@
	chmod 755 $@
	rm -rf $(APT)

softhsm: $(TOOLS)/softhsm/libsofthsm2.so ## unpack Debian's SoftHSM and pkcs11-tool, for the tests of provider pkcs11, into .tools (needs apt-get, not root)

# They come with the libraries that this machine lacks, so scripts stand before the programs.
$(TOOLS)/softhsm/libsofthsm2.so:
	$(call unpack,softhsm2 and opensc,$(call with_missing,softhsm2 opensc))
	rm -rf $(TOOLS)/softhsm && mkdir -p $(TOOLS)/softhsm
	find $(APT)/unpacked/usr/lib -name '*.so*' -type f -exec mv {} $(TOOLS)/softhsm/ \;
	cd $(TOOLS)/softhsm && for library in *.so.*.*.*; do [ ! -e "$$library" ] || ln -sf "$$library" "$${library%.*.*}"; done
	for program in softhsm2-util pkcs11-tool; do \
	  mv $(APT)/unpacked/usr/bin/$$program $(TOOLS)/softhsm/ && printf '%s\n' '#!/bin/sh' \
	    'here=$$(dirname "$$(readlink -f "$$0")")/softhsm' \
	    "LD_LIBRARY_PATH=\$$here exec \"\$$here/$$program\" \"\$$@\"" > $(TOOLS)/$$program && chmod 755 $(TOOLS)/$$program || exit 1; done
	rm -rf $(APT)

node-modules: ## install the AWS Encryption SDK for JavaScript for tests/interop (needs Node.js and npm)
	npm install --no-package-lock --no-audit --no-fund --ignore-scripts --prefix tests/interop/node

peers: $(VENV)/peers.stamp ## install OpenBao's own server for the tests of provider vault and for bench-peer

postgresql: $(TOOLS)/postgresql/.unpacked ## unpack Debian's PostgreSQL server into .tools, where there is none (needs apt-get, not root)

$(TOOLS)/postgresql/.unpacked:
	@if ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then mkdir -p $(@D) && touch $@; else $(MAKE) unpack-postgresql; fi

unpack-postgresql:
	$(call unpack,postgresql-15,$(call with_missing,postgresql-15))
	rm -rf $(TOOLS)/postgresql && mkdir -p $(TOOLS)/postgresql
	mv $(APT)/unpacked/usr/lib $(APT)/unpacked/usr/share $(TOOLS)/postgresql/
	rm -rf $(APT) && touch $(TOOLS)/postgresql/.unpacked

java-libraries: ## install the AWS Encryption SDK for Java and EventBridge's matcher for tests/interop (needs Maven, and Java 11 or newer)
	rm -rf $(JAVA_SDK)/jars
	$(COPY_JARS) || $(COPY_JARS) -U

api-docs: $(VENV)/dev.stamp ## write docs/api.md from the comments of the protos
	$(BIN)/python -m tests.documents.api

examples: examples-go examples-java examples-node examples-rust ## build the clients in examples/ for tests/interop (needs Go, Java, Maven, Node.js and Rust)

examples-go: $(BIN)/protoc ## build examples/go
	cd examples/go && ./generate.sh && go build -o example .

examples-java: ## build examples/java
	$(BUILD_JAVA) || $(BUILD_JAVA) -U

examples-node: ## install what examples/node needs
	npm ci --no-audit --no-fund --ignore-scripts --prefix examples/node

examples-rust: $(BIN)/protoc ## build examples/rust, in about a minute of CPU
	cargo build --quiet --manifest-path examples/rust/Cargo.toml

# The compiler of the pins, under its usual name.
$(BIN)/protoc: $(VENV)/dev.stamp
	printf '%s\n' '#!/bin/sh' 'exec "$(CURDIR)/$(BIN)/python" -m grpc_tools.protoc "$$@"' > $@
	chmod 755 $@

docs: $(VENV)/dev.stamp $(VENV)/tools.stamp ## write API documents of the Python packages and of the protos into dist/docs (needs Go)
	$(GO_INSTALL) $(PROTOC_GEN_DOC)
	mkdir -p dist/docs
	$(BIN)/pdoc --docformat markdown --output-directory dist/docs/python betrace_kms_client betrace_kms_envelope betrace_kms_evidence betrace_kms_server
	cd protos && ../$(BIN)/python -m grpc_tools.protoc -I . --doc_out=../dist/docs --doc_opt=html,protos.html betrace/kms/v1/*.proto

release-address:
	@! grep -n 'https://example.com/' pyproject.toml || { echo 'pyproject.toml names a placeholder: put the address of your repository there'; exit 1; }

release: release-address $(VENV)/dev.stamp $(VENV)/tools.stamp ## make release VERSION=1.2.3: set the version, close the changelog's section, commit, tag, build dist/
	@test -n '$(VERSION)' || { echo 'Say which: make release VERSION=1.2.3'; exit 1; }
	$(MAKE) lint types imports protos-check
	$(BIN)/bump-my-version bump --new-version '$(VERSION)'
	$(BIN)/hatchling build
	$(MAKE) sbom
	@echo 'Made the tag v$(VERSION) and dist/. Push both: git push origin HEAD v$(VERSION)'

bench: $(VENV)/dev.stamp ## measure every call against an empty echo, in under 10 minutes (BENCHFLAGS=--help)
	@command -v h2load >/dev/null || $(MAKE) h2load
	$(BIN)/python -m bench.run $(BENCHFLAGS)

bench-plot: $(VENV)/plot.stamp ## draw docs/performance/*.svg and *.png, and write the tables of docs/performance.md, from RESULTS=...
	$(BIN)/python -m bench.tables '$(RESULTS)' docs/performance.md
	$(BIN)/python -m bench.plot '$(RESULTS)' docs/performance

bench-envelope: $(VENV)/dev.stamp ## compare seal and open with the official AWS Encryption SDK, and files with bare AES-GCM
	$(BIN)/python -m bench.envelope
	$(BIN)/python -m bench.hierarchical_keyring
	$(BIN)/python -m bench.files

bench-branch-keys: $(VENV)/dev.stamp ## compare both modes of encryption where each message has a context of its own
	$(BIN)/python -m bench.branch_keys

bench-sign: $(VENV)/dev.stamp ## compare signing and verifying with bare Ed25519 loops
	$(BIN)/python -m bench.sign

bench-telemetry: $(VENV)/dev.stamp ## show what metrics, logs, audit trail and traces cost a warm SignSpan
	$(BIN)/python -m bench.telemetry

bench-access: $(VENV)/dev.stamp ## show what it costs to identify the caller of a warm SignSpan, and to ask a policy
	$(BIN)/python -m bench.access

bench-batch: $(VENV)/dev.stamp ## show what a payload of 64 bytes costs alone and in a batch of 100
	$(BIN)/python -m bench.batch

bench-peer: $(VENV)/dev.stamp $(call unless-help,$(VENV)/peers.stamp $(TOOLS)/h2load) ## compare each call with OpenBao's transit engine, with and without audit logs (FLAGS=--help)
	$(BIN)/python -m bench.peer $(FLAGS)

bench-coalesce: $(VENV)/dev.stamp ## show what a client that coalesces saves the daemon, with 64 callers of one tenant
	$(BIN)/python -m bench.coalesce

bench-grpcio: $(VENV)/dev.stamp $(call unless-help,$(TOOLS)/h2load) ## compare releases of grpcio by a warm SignSpan: VERSIONS="1.78.2 1.85.3" (FLAGS=--help)
	$(BIN)/python -m bench.grpcio $(or $(VERSIONS),1.78.2 1.85.3) $(FLAGS)

bench-audit: $(VENV)/dev.stamp ## show what kms.audit.required and kms.audit.durable cost a warm SignSpan
	$(BIN)/python -m bench.audit

bench-rotation: $(VENV)/dev.stamp ## show how long the rotation of 1,000 tenants takes, with AWS in an emulator
	$(BIN)/python -m bench.rotation

drill-cold: $(VENV)/dev.stamp ## show what cold and abusive tenants do to warm calls and to others
	$(BIN)/python -m tests.drills.cold

drill-overload: $(VENV)/dev.stamp ## let ten times the callers that the daemon serves best call it (needs Go)
	$(BIN)/python -m tests.drills.overload

drill-hostile: $(VENV)/dev.stamp ## show what floods, bombs, unread answers and malformed HTTP/2 do to memory and to others (FLAGS=--help)
	$(BIN)/python -m tests.drills.hostile $(FLAGS)

drill-soak: $(VENV)/dev.stamp ## call a daemon in every way for MINUTES=... (10) or 1,000,000 calls, and exit with 1 if something grows
	$(BIN)/python -m tests.drills.soak --minutes $(or $(MINUTES),10)

drill-race: $(VENV)/dev.stamp ## let four daemons race on one key store for 2,000 tenants: DynamoDB (in an emulator), PostgreSQL, SQLite
	$(BIN)/python -m tests.faults.race
	$(BIN)/python -m tests.faults.race --store postgresql
	$(BIN)/python -m tests.faults.race_branch_keys
	$(BIN)/python -m tests.faults.race_branch_keys --store postgresql --tenants 500
	$(BIN)/python -m tests.faults.race_branch_keys --store sqlite --tenants 500

drill-kill: $(VENV)/dev.stamp ## kill -9 the daemon and the command 1,000 times in whatever they write (KILLS=... for fewer)
	$(BIN)/python -m tests.faults.kill_all --kills $(or $(KILLS),1000)

drill-restart: $(VENV)/dev.stamp ## restart a daemon 50 times under the load of Python, Go and Java clients (needs Go, Java, Maven)
	$(BIN)/python -m tests.faults.restart

drill-audit: $(VENV)/dev.stamp ## kill -9 a daemon 100 times in each mode of the audit trail and look for the line of each call that was answered
	$(BIN)/python -m tests.faults.kill_audit --mode required
	$(BIN)/python -m tests.faults.kill_audit --mode durable

test-faults: $(VENV)/dev.stamp ## let KMS, credentials, DynamoDB, disks, clocks, memory and callers fail, and write docs/reliability.md (FAULT_SECONDS=... each, FAMILIES=...)
	$(BIN)/python -m tests.faults.suite --seconds $(or $(FAULT_SECONDS),5) $(FAMILIES)

fuzz: $(VENV)/fuzz.stamp ## fuzz each reader of bytes and each method, MINUTES=... each (1), guided by coverage (TARGETS=... for some)
	$(BIN)/python -m tests.fuzz.run --minutes $(or $(MINUTES),1) $(TARGETS)

mutants: $(VENV)/dev.stamp $(VENV)/tools.stamp ## mutate the core and count what its tests notice (FOLDERS=... for some of it)
	$(BIN)/python -m tests.mutants $(FOLDERS)

sbom: $(VENV)/tools.stamp ## list what the image installs, as CycloneDX JSON, in SBOM=... (dist/betrace-kms.cdx.json)
	mkdir -p '$(dir $(SBOM))'
	PYTHONWARNINGS=ignore::UserWarning $(BIN)/cyclonedx-py requirements requirements/server.txt --pyproject pyproject.toml \
	  --mc-type application --spec-version 1.6 --output-reproducible --validate --output-file '$(SBOM)'

audit-deps: $(VENV)/tools.stamp ## fail if a pin has a published advisory, or cannot be looked up (AUDITFLAGS=... of pip-audit)
	$(BIN)/pip-audit --strict --disable-pip --require-hashes --progress-spinner off $(AUDITFLAGS) $(addprefix -r ,$(wildcard requirements/*.txt))

ci: ## everything that CI runs (needs Go, Node.js, Java, Maven and Debian's apt-get)
	.ci/run

requirements: $(VENV)/dev.stamp ## pin the newest versions that pyproject.toml allows
	$(COMPILE) pyproject.toml requirements/build.in --extra server --extra azure --extra gcp --extra otel --extra pkcs11 --extra postgresql --group dev -o requirements/dev.txt
	$(COMPILE) requirements/build.in -c requirements/dev.txt -o requirements/build.txt
	$(COMPILE) pyproject.toml --extra server -c requirements/dev.txt -o requirements/server.txt
	$(COMPILE) --group fuzz -c requirements/dev.txt -o requirements/fuzz.txt
	$(COMPILE) --group plot -c requirements/dev.txt -o requirements/plot.txt
	$(COMPILE) --group tools -c requirements/dev.txt -o requirements/tools.txt
	$(COMPILE) --group peers -o requirements/peers.txt

clean: ## remove what the other targets made, but not ./data
	rm -rf $(VENV) .tools .fuzz .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist

$(BIN)/python:
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11'; exit 1; }
	'$(PYTHON)' -m venv $(VENV)

# A stamp stands for "what this requirements file pins, and the package itself, are installed". The pins are complete, so
# --no-deps leaves pip nothing to resolve: what the registry published since does not matter.
$(VENV)/fuzz.stamp $(VENV)/plot.stamp $(VENV)/tools.stamp: $(VENV)/dev.stamp

# What we are compared with has an environment of its own: it is no part of ours.
$(VENV)/peers.stamp: requirements/peers.txt | $(BIN)/python
	@echo 'Installing what requirements/peers.txt pins (71 MB) into $(VENV)/peers ...'
	'$(PYTHON)' -m venv $(VENV)/peers
	$(VENV)/peers/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes -r requirements/peers.txt
	@touch $@

$(VENV)/%.stamp: requirements/%.txt requirements/build.txt pyproject.toml | $(BIN)/python
	@echo 'Installing what requirements/$*.txt pins into $(VENV) ...'
	$(PIP) --no-deps --require-hashes -r requirements/build.txt -r requirements/$*.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@
