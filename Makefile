# `make` alone lists the verbs. PROFILE=release tests what is shipped instead of the debug build.
PROFILE ?= dev
PREFIX ?= /usr/local
IMAGE ?= loden:0.1.0
CARGO ?= cargo

TARGET := $(or $(CARGO_TARGET_DIR),target)
BUILD = $(TARGET)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))

# Networks are built by root, or by anyone to whom the kernel gives a user namespace and /dev/net/tun; others need sudo.
SUDO = $(shell [ "$$(id -u)" = 0 ] || { unshare -Urn true && [ -w /dev/net/tun ]; } 2>/dev/null || command -v sudo)
# What programs of the lab need to know; sudo lets nothing through by itself.
LAB_ENV = FLANNELD_BIN=$(abspath $(BUILD)/flanneld) XDG_CACHE_HOME=$(or $(XDG_CACHE_HOME),$(HOME)/.cache) \
  $(foreach name,KUBEBUILDER_ASSETS LODEN_ETCD34 DEMO_SOURCE BACKEND SOAK_MINUTES,$(if $($(name)),$(name)=$($(name))))
# Tests end tasks of the real flanneld on purpose. A release build refuses that, and is tested to have no way for it.
FAULTS = $(if $(filter dev,$(PROFILE)),--features loden/fault-points)
# Tests and the flanneld that they start are built alike, so that cargo does not build the crate twice.
WITH = --profile $(PROFILE) --workspace $(FAULTS)
AS_ROOT = $(if $(SUDO),--config 'target."cfg(all())".runner = "$(SUDO) env $(LAB_ENV)"')

.DEFAULT_GOAL := help
.PHONY: help setup machinery suites demo scale cluster-machinery cluster-check cluster cluster-down e2e conformance faults test unit integration fuzz-replay check fmt lint bench bench-kernel bench-net soak cover image image-repro install cleanup clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what demo and test need and this machine lacks
	@integration/setup.sh

machinery: setup ## kube-apiserver and etcd for tests and demo: minutes the first time, then cached in ~/.cache/loden
	@$(MAKE) --no-print-directory -C integration/machinery $(PARTS)

demo: PROFILE = release
demo: setup $(if $(filter kube,$(DEMO_SOURCE)),machinery) ## three nodes, a real flanneld in each, and a table of what held; BACKEND=udp|vxlan|host-gw; DEMO_SOURCE=kube has them on an API server
	$(CARGO) build --release -p loden --bin flanneld -p integration --bin demo
	@$(SUDO) env $(LAB_ENV) $(BUILD)/demo

# Cgroups and mounts need real root.
ROOT = $(shell [ "$$(id -u)" = 0 ] || command -v sudo)
CLUSTER = $(ROOT) env $(LAB_ENV) $(foreach name,LODEN_CLUSTER_DIR,$(if $($(name)),$(name)=$($(name)))) $(BUILD)/cluster

cluster-machinery: setup ## kubelet, containerd, CoreDNS and the rest of a cluster: some 20 minutes of CPU the first time, then cached
	@$(MAKE) --no-print-directory -C integration/machinery cluster

cluster-check: ## can this machine have a cluster? builds none of its parts; takes UP like cluster
	$(CARGO) build --profile $(PROFILE) --workspace --bin flanneld --bin flannel --bin cluster
	@$(CLUSTER) check $(UP)

cluster: cluster-machinery ## a real Kubernetes cluster on this machine; UP='--nodes 3 --backend udp --proxy nftables --dual --daemonset'
	$(CARGO) build --profile $(PROFILE) --workspace --bin flanneld --bin flannel --bin cluster
	@$(CLUSTER) up $(UP)
	@echo 'now: $(CLUSTER) kubectl get pods -A; … exec-node n1 ip route; make cluster-down'

cluster-down: ## remove the cluster, whatever state it is in
	$(CARGO) build --profile $(PROFILE) -p integration --bin cluster
	@$(CLUSTER) down

e2e conformance: cluster-machinery
	$(CARGO) build --profile $(PROFILE) --workspace --bin flanneld --bin flannel --bin cluster
	@$(CLUSTER) up $(UP) && { $(CLUSTER) $@ $(ARGS); result=$$?; $(CLUSTER) down; exit $$result; }

e2e: ## start a cluster, prove row by row that its network works, remove it; takes UP like cluster, ARGS='--only DNS'
conformance: ## start a cluster, run upstream's own network conformance tests, remove it; takes UP like cluster, ARGS='--focus NoSNAT'

faults: cluster-machinery ## clusters killed half way, started twice, without space: nothing is left of them
	$(CARGO) build --profile $(PROFILE) --workspace --bin flanneld --bin flannel --bin cluster
	@$(CLUSTER) faults

scale: PROFILE = release
scale: machinery ## five thousand Nodes on a real API server and what one daemon needs for them; SCALE_NODES, SCALE_SECONDS
	$(CARGO) build --release -p loden --bin flanneld -p integration --bin scale
	@$(SUDO) env $(LAB_ENV) SCALE_OUT=$(abspath $(TARGET))/scale $(foreach name,SCALE_NODES SCALE_SECONDS,$(if $($(name)),$(name)=$($(name)))) $(BUILD)/scale

# With these two the reference CNI plugins, beside which ours are tested, are built as well.
test integration: PARTS = tests

test: machinery ## everything: unit, property, fuzz replay, networks in namespaces
	$(CARGO) build $(WITH) --bin flanneld --bin flannel
	$(LAB_ENV) $(CARGO) test $(WITH) --no-fail-fast $(AS_ROOT)

unit: setup ## tests that need no network
	$(CARGO) test --profile $(PROFILE) --workspace --exclude integration --no-fail-fast

# A suite is a file of checks in integration/tests/<group>/, and each group is one test binary.
SUITES = $(patsubst integration/tests/%,%,$(filter-out %/main.rs,$(wildcard integration/tests/*/*.rs)) \
  $(patsubst %/mod.rs,%.rs,$(wildcard integration/tests/*/*/mod.rs)))
SUITE = $(firstword $(subst ::, ,$(T)))
GROUP = $(patsubst %/,%,$(dir $(filter %/$(SUITE).rs,$(SUITES))))
ONLY = $(if $(T),--test $(or $(GROUP),$(SUITE)) $(if $(GROUP),-- '$(if $(findstring ::,$(T)),$(T),$(T)::)'))

integration: machinery ## a real flanneld in real networks; T=repair runs one suite, T=repair::mtu some of its checks, T=kernel a group
	$(CARGO) build $(WITH) --bin flanneld --bin flannel
	$(LAB_ENV) $(CARGO) test --profile $(PROFILE) -p integration --no-fail-fast $(AS_ROOT) $(or $(ONLY),--test '*')

suites: ## list the groups of integration tests and their suites
	@$(foreach group,$(sort $(dir $(SUITES))),echo '$(group:/=): $(basename $(notdir $(filter $(group)%,$(SUITES))))';)


fuzz-replay: ## every input the fuzzers ever found, once
	$(CARGO) test --profile $(PROFILE) -p encap fuzz_replay

check: ## does it compile
	$(CARGO) check --workspace --all-targets

fmt: ## format the code
	$(CARGO) fmt --all

lint: ## formatting, clippy and documentation, warnings are errors
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets --features loden/fault-points -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps

bench: setup ## nanoseconds per packet and per lookup, some two minutes once built; LONG=1 also beside hash maps, a minute more
	$(if $(LONG),LODEN_BENCH_LONG=1) $(CARGO) bench -p loden

bench-kernel: setup ## five thousand peers programmed, one change, one missing entry: a table, JSON in target/bench-kernel; LODEN_PEERS
	$(CARGO) bench -p loden --bench kernel --no-run
	@mkdir -p $(TARGET)/bench-kernel
	$(CARGO) bench -p loden --bench kernel --config 'target."cfg(all())".runner = "$(SUDO) env LODEN_BENCH_JSON=$(abspath $(TARGET))/bench-kernel/kernel.json $(if $(LODEN_PEERS),LODEN_PEERS=$(LODEN_PEERS))"'

bench-net: setup ## real daemons beside kernel VXLAN and no overlay: a table, JSON and SVG in target/bench-net; QUICK=1 takes two minutes
	$(CARGO) build --release -p loden --bin flanneld -p integration --bin bench-net
	@$(SUDO) env FLANNELD_BIN=$(abspath $(TARGET)/release/flanneld) $(TARGET)/release/bench-net $(if $(QUICK),--quick) --out $(TARGET)/bench-net $(BENCH_NET)

soak: PROFILE = release
soak: SOAK_MINUTES = $(or $(MINUTES),10)
soak: setup ## ten minutes of bulk, bursts and small packets over offloads: memory flat, counters consistent; MINUTES=1 for less
	$(CARGO) build --release -p loden --bin flanneld
	$(LAB_ENV) $(CARGO) test -p integration --test userspace $(AS_ROOT) -- 'offload::soak'

cover: setup ## line coverage of the tests that need no network, as HTML
	@$(CARGO) llvm-cov --version >/dev/null 2>&1 || { echo 'cover needs cargo-llvm-cov: cargo install cargo-llvm-cov'; exit 1; }
	$(CARGO) llvm-cov --workspace --exclude integration --html

IMAGE_TOOL = $(CARGO) run --quiet -p loden-image --bin image --
IMAGE_WANTED = --name $(IMAGE) --out $(TARGET)/image $(if $(ARCH),--arch $(ARCH))

image: setup ## the container image of this source, for amd64 and arm64, as target/image/loden.tar; ARCH=amd64, IMAGE=registry/name:tag
	@$(IMAGE_TOOL) build $(IMAGE_WANTED)

image-repro: setup ## the image of the newest commit, built twice in two folders from nothing: one hash; takes ARCH and IMAGE too
	@$(IMAGE_TOOL) repro $(IMAGE_WANTED)

install: ## flanneld into PREFIX/bin (/usr/local)
	$(CARGO) build --release -p loden --bin flanneld
	install -D -s -m 0755 $(TARGET)/release/flanneld $(DESTDIR)$(PREFIX)/bin/flanneld

cleanup: ## remove what a stopped flanneld left in this machine's kernel
	$(CARGO) build --release -p loden --bin flanneld
	$(TARGET)/release/flanneld cleanup

clean: ## remove everything that was built
	$(CARGO) clean
