# "make help" lists the targets. A bare Debian or Ubuntu needs Go, make and git; the rest is installed when root runs this.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
FUZZTIME ?= 30s
PAIRS ?= 100000
TESTFLAGS ?=
BENCHFLAGS ?=
TIMEOUT ?= 30m
STATIC ?= bin/rbd2qcow2-static

# Evaluated when used: the headers that it looks at may have to be installed first.
TAG = $(shell scripts/ceph-tag)
CLUSTER := test/cluster/ceph-cluster
GOLANGCI_VERSION := v2.15.0
GOLANGCI := bin/tools/golangci-lint-$(GOLANGCI_VERSION)
SCRIPTS = $(shell grep -rlIm1 '^\#!.*sh$$' scripts test .ci)

export CGO_ENABLED := 1

.PHONY: help deps deps-test build build-static demo test test-short lint fuzz fuzz-changes bench bench-year cover clean

help: ## list the targets
	@awk -F ': .*## ' '/^[a-z-]+:.* ## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install what the build needs (a C compiler, librbd)
	@scripts/install-deps build

deps-test: deps ## install what the tests need (Ceph, QEMU)
	@scripts/install-deps test

build: deps ## build bin/rbd2qcow2
	go build -trimpath -buildvcs=false -tags '$(TAG)' -ldflags '-X main.version=$(VERSION)' -o bin/rbd2qcow2 ./cmd/rbd2qcow2

build-static: ## build bin/rbd2qcow2-static: without Ceph, for a host that has nothing else
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -tags noceph -ldflags '-X main.version=$(VERSION)' -o '$(STATIC)' ./cmd/rbd2qcow2

demo: build deps-test ## show a backup and a restore on a throw-away cluster
	scripts/demo

test: deps-test ## run all tests on a throw-away cluster; no test may be skipped for want of a tool
	RBD2QCOW2_TEST_REQUIRE=1 $(CLUSTER) run -- go test -race -tags '$(TAG)' -timeout $(TIMEOUT) ./... $(TESTFLAGS)

test-short: deps ## run the tests that need no cluster
	env -u CEPH_CONF go test -short -tags '$(TAG)' -timeout $(TIMEOUT) ./... $(TESTFLAGS)

lint: deps $(GOLANGCI) ## check format, vet, lint rules, and shell scripts where shellcheck is installed
	@unformatted=$$(gofmt -l .); [[ -z $$unformatted ]] || { echo "not gofmt'd: $$unformatted" >&2; exit 1; }
	go vet -tags '$(TAG)' ./...
	$(GOLANGCI) run --build-tags '$(TAG)' ./...
	@if command -v shellcheck >/dev/null; then shellcheck $(SCRIPTS); else echo 'lint: no shellcheck, scripts not checked' >&2; fi

$(GOLANGCI):
	GOBIN=$(CURDIR)/bin/tools go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv bin/tools/golangci-lint $@

fuzz: deps ## run every fuzz target for FUZZTIME (30s)
	GOFLAGS='-tags=$(TAG)' scripts/fuzz $(FUZZTIME) ./qcow2/... ./internal/...

fuzz-changes: deps-test ## prove the narrowed diff by PAIRS (100000) pairs of snapshots with random histories
	RBD2QCOW2_TEST_REQUIRE=1 RBD2QCOW2_PAIRS=$(PAIRS) $(CLUSTER) run -- \
		go test -tags '$(TAG)' -timeout 24h -v -run '^TestFindFuzz' ./internal/changes

cover: deps-test ## run all tests and write the coverage to bin/cover.html
	mkdir -p bin
	RBD2QCOW2_TEST_REQUIRE=1 $(CLUSTER) run -- go test -tags '$(TAG)' -timeout $(TIMEOUT) -coverpkg=./... -coverprofile=bin/cover.out ./...
	go tool cover -html=bin/cover.out -o bin/cover.html
	go tool cover -func=bin/cover.out | tail -n 1

bench: build deps-test ## measure beside rbd and qemu-img on a throw-away cluster (docs/performance.md); BENCHFLAGS=-quick for a try
	go build -trimpath -buildvcs=false -o bin/bench ./bench
	bin/bench $(BENCHFLAGS)

bench-year: deps-test ## simulate a year of daily backups that are pruned (docs/performance.md); BENCHFLAGS='-days 60' for a try
	go build -trimpath -buildvcs=false -o bin/bench-year ./bench/year
	bin/bench-year $(BENCHFLAGS)

clean: ## remove what was built
	rm -rf bin
