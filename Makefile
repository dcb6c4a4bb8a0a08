# Headwater. `make help` lists the targets.

GO ?= go
TOOL := $(GO) tool -modfile=tools/go.mod
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
# Static binaries: no cgo, no paths of the machine that built them.
LDFLAGS := -s -w -X $(shell $(GO) list -m)/internal/cli.linked=$(VERSION)
FUZZTIME ?= 60s
PYTHON ?= python3
VENV := .cache/python
# Without the checkout's path in what is compiled, all checkouts of a machine share the cache of builds.
export GOFLAGS += -trimpath -buildvcs=false

.DEFAULT_GOAL := help
.PHONY: help build demo demo-model check map test unit lint format proto generate breaking fuzz bench bench-plots figures-kernels figures-job figures-sessions figures-learn figures-model figures-observe figures-ops figures-faults simulate soak explore walk \
	fixtures image licences packages test-alerts test-amx test-avx512 test-browser test-traces test-arm64 test-k8s test-packages test-python test-model pytest wheel wheels clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build static binaries: bin/coord and bin/worker
	CGO_ENABLED=0 $(GO) build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

demo: build ## run a job of a real model on a local cluster, and show what comes out
	@bash test/demo/demo.sh

# What check runs: format, vet, the rules of the house, and the tests of all packages that need neither processes nor minutes.
QUICK = $(shell $(GO) list ./... | grep -vE '/(test/e2e|k8s|client|proto|figures)(/|$$)')
check: ## check format, code and the quick tests, in less than a minute once built
	@files=$$($(TOOL) gofumpt -l .); test -z "$$files" || { printf 'not formatted (make format):\n%s\n' "$$files" >&2; exit 1; }
	@$(GO) vet ./...
	@cd tools && $(GO) test ./house
	@$(GO) test -short $(QUICK)

map: ## draw the map of packages in CONTRIBUTING.md anew, from their imports
	@cd tools && HEADWATER_MAP=write $(GO) test -count=1 -run 'TestHouse/map' ./house

test: lint build $(VENV)/ready unit pytest chaos-minute $(if $(filter 0,$(HEADWATER_TEST_MODEL)),,test-model) ## run the linters and all tests, with the race detector (HEADWATER_TEST_MODEL=0: without models)
test: ALSO = $(WITH_PYTHON)

# Tests of these packages start no goroutines, or run one at a time: the race detector would find nothing, and make them up to twenty
# times as slow.
ALONE = attention/reference internal/figures/kernels internal/heatmap internal/snapshot k8s test/explore
# Tests over processes and networks wait more than they compute: they come first, and other packages run beside them.
WAITING = test/network test/e2e internal/cli
unit: ## run all tests, with the race detector if a test has several goroutines
	$(ALSO) $(GO) test -race -p 3 -parallel 4 -timeout 20m $(WAITING:%=./%) \
		$(filter-out $(addprefix $(shell $(GO) list -m)/,$(ALONE) $(WAITING)),$(shell $(GO) list ./...))
	$(GO) test -timeout 20m ./attention $(ALONE:%=./%)

# The Python client's tests, in a virtual environment of their own.
$(VENV)/ready: clients/python/requirements-test.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo 'Python 3.10 or newer is needed; name it by make PYTHON=...' >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { echo 'Python has no ensurepip: install python3-venv (Debian, Ubuntu), or name another by make PYTHON=...' >&2; exit 1; }
	$(VENV)/bin/pip install -q --disable-pip-version-check -r $<
	@touch $@

# What lets Go tests drive the Python client beside their own.
WITH_PYTHON = HEADWATER_PYTHON=$(CURDIR)/$(VENV)/bin/python HEADWATER_COORD=$(CURDIR)/bin/coord PYTHONPATH=$(CURDIR)/clients/python/src
test-python: pytest ## check the types of the Python client and run its tests against a local cluster
	$(WITH_PYTHON) $(GO) test -count=1 -run 'TestScriptsInPython|TestOneEventOneError' ./test/session ./test/e2e

pytest: build $(VENV)/ready
	cd clients/python && ../../$(VENV)/bin/mypy && ../../$(VENV)/bin/python -m pytest

# What needs torch, in another one, and the small model that it is tried with.
NO_TORCH = { echo 'torch and what models need can not be installed, as pip says above; without them: make test HEADWATER_TEST_MODEL=0' >&2; exit 1; }
VENV_MODEL := .cache/model
SMOLLM2 := .cache/smollm2
$(VENV_MODEL)/ready: clients/python/model/requirements.txt clients/python/model/torch.txt clients/python/model/slim.py
	@$(PYTHON) -m venv --clear $(VENV_MODEL)
	@echo 'installing torch and transformers into $(VENV_MODEL), once: 1.8 GB'
	@$(VENV_MODEL)/bin/pip install -q --disable-pip-version-check --no-deps -r clients/python/model/torch.txt || $(NO_TORCH)
	@$(VENV_MODEL)/bin/pip install -q --disable-pip-version-check --no-warn-conflicts -r clients/python/model/requirements.txt || $(NO_TORCH)
	$(VENV_MODEL)/bin/python clients/python/model/slim.py
	$(VENV_MODEL)/bin/python -c 'import torch, transformers'
	@touch $@

$(SMOLLM2)/ready: $(VENV_MODEL)/ready clients/python/model/smollm2.py
	$(VENV_MODEL)/bin/python clients/python/model/smollm2.py $(SMOLLM2) 2>.cache/smollm2.log || { cat .cache/smollm2.log >&2; exit 1; }
	@touch $@

test-model: build $(VENV_MODEL)/ready $(SMOLLM2)/ready ## run models of transformers on a local cluster (installs torch; a part of test unless HEADWATER_TEST_MODEL=0)
	cd clients/python && HEADWATER_SMOLLM2=$(CURDIR)/$(SMOLLM2) ../../$(VENV_MODEL)/bin/python -m pytest tests/model

demo-model: build $(VENV_MODEL)/ready $(SMOLLM2)/ready ## have a language model answer a question on a local cluster (installs torch)
	@HEADWATER_COORD=$(CURDIR)/bin/coord PYTHONPATH=$(CURDIR)/clients/python/src $(VENV_MODEL)/bin/python test/demo/model.py $(SMOLLM2)

PACK = PYTHON=$(CURDIR)/$(VENV)/bin/python PROGRAMS=bin LDFLAGS='$(LDFLAGS)' clients/python/wheels.sh
wheel: build $(VENV)/ready ## build the wheel of the Python client for this machine, with the programs inside, into out/
	@rm -f out/headwater-*.whl
	$(PACK) out $(shell $(GO) env GOOS)/$(shell $(GO) env GOARCH)

wheels: build $(VENV)/ready ## build its wheels for Linux on x86-64 and arm64 and macOS on arm64, and its sdist, into out/wheels/
	@rm -rf out/wheels
	$(PACK) out/wheels linux/amd64 linux/arm64 darwin/arm64 sdist
	$(VENV)/bin/twine check --strict out/wheels/*

lint: ## check format, code, protocol and known vulnerabilities
	@bash .ci/lint

format: ## format the code
	$(TOOL) gofumpt -w .
	$(TOOL) buf format -w

proto: $(VENV)/ready ## generate the protocol's code, for Go and Python, and docs/api.md
	$(TOOL) buf generate
	cd tools && $(GO) run ./apidoc
	PYTHON=$(CURDIR)/$(VENV)/bin/python clients/python/generate.sh

generate: ## generate the assembly of the attention kernels, conversions and codecs
	$(GO) generate ./attention ./tensor ./internal/contextframe

# promtool is a module of its own, because it needs hundreds of others: the first build takes minutes. Its results are cached.
test-alerts: ## test the alert rules and the metrics' names with promtool, which is built for it
	cd tools/promtool && GOFLAGS='$(GOFLAGS) -mod=readonly' $(GO) build -tags remove_all_sd -o ../../.cache/promtool github.com/prometheus/prometheus/cmd/promtool
	cd docs/monitoring && ../../.cache/promtool check rules alerts.yaml && ../../.cache/promtool test rules alerts.test.yaml
	HEADWATER_PROMTOOL=$(CURDIR)/.cache/promtool $(GO) test -count=1 -run TestPromtool ./internal/observe

# The OpenTelemetry Collector is a module of its own as well.
test-traces: ## send a step's trace through an OpenTelemetry Collector, which is built for it
	cd tools/collector && GOFLAGS='$(GOFLAGS) -mod=readonly' $(GO) build -o ../../.cache/collector .
	HEADWATER_COLLECTOR=$(CURDIR)/.cache/collector $(GO) test -count=1 -run TestAStepIsOneTrace ./test/e2e

# The browser is Debian's, the checker of accessibility npm's; where one is missing the tests that need it are skipped by name.
AXE := .cache/browser/node_modules/axe-core/axe.min.js
$(AXE): tools/browser/package.json tools/browser/package-lock.json
	@mkdir -p .cache/browser && cp $^ .cache/browser/
	@command -v npm >/dev/null || { echo 'npm is missing, which fetches axe-core' >&2; exit 1; }
	cd .cache/browser && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

.cache/chromium:
	@mkdir -p .cache
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || test -n "$$HEADWATER_CHROMIUM" || \
		{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; } || \
		{ echo 'no Chromium is installed (Debian: apt-get install chromium), and only root can install it' >&2; exit 1; }
	@touch $@

BROWSER = HEADWATER_COORD=$(CURDIR)/bin/coord HEADWATER_AXE=$(CURDIR)/$(AXE)
test-browser: build ## look at the dashboard in a headless Chromium (installs Debian's for root, and axe-core by npm)
	-@$(MAKE) -s .cache/chromium $(AXE)
	cd tools/browser && $(BROWSER) HEADWATER_SHOTS=$(CURDIR)/out/browser $(GO) test -count=1 -timeout 20m .

breaking: ## check the protocol against the main branch for breaking changes
	$(TOOL) buf breaking --against '.git#branch=main'

fuzz: ## send raw messages to all services, and fuzz every parser of outside bytes for FUZZTIME each (default 60s)
	@bash .ci/fuzz $(FUZZTIME)

bench: ## measure the attention kernels against the machine's limits; prints a table to paste
	$(GO) run ./internal/figures/kernels -bench -samples figures/bench.json

bench-plots: ## draw the roofline of the last figures-kernels into docs/images
	@test -e figures/kernels.json || $(MAKE) figures-kernels
	$(GO) run ./internal/figures/kernels -samples figures/kernels.json -plot docs/images/roofline.png

figures-kernels: build ## measure the kernels against the machine's limits, steps, and a job; prints `figure NAME VALUE`
	@$(GO) run ./internal/figures/kernels -samples figures/kernels.json
	@$(GO) run ./internal/figures/sessions -bin bin -run step_share -samples figures/steps.json
	@$(GO) run ./internal/figures/kernels -job -bin bin -samples figures/job_32k.json

figures-job: build ## measure memory and error of whole jobs; prints `figure NAME VALUE`
	$(GO) run ./internal/figures/job -bin bin -samples figures/job.json

figures-sessions: build $(VENV)/ready ## measure sessions on local clusters; prints `figure NAME VALUE`
	@$(GO) run ./internal/figures/sessions -bin bin -samples figures/sessions.json

figures-model: build $(VENV)/ready $(VENV_MODEL)/ready $(SMOLLM2)/ready ## measure what a model in Python sees of the cluster; prints `figure NAME VALUE`
	@$(GO) run ./internal/figures/sessions -bin bin -run '^py_overhead_us$$' -samples figures/py_overhead.json
	@HEADWATER_COORD=$(CURDIR)/bin/coord PYTHONPATH=clients/python/src $(VENV_MODEL)/bin/python clients/python/bench/model.py $(SMOLLM2) --samples figures/model.json

figures-observe: build ## measure what metrics, traces and viewers cost a step, and how the dashboard is seen; prints `figure NAME VALUE`
	@$(GO) run ./internal/figures/sessions -bin bin -run 'metrics_cost|viewers_cost' -samples figures/observe.json
	-@$(MAKE) -s .cache/chromium $(AXE) >&2
	@cd tools/browser && $(BROWSER) $(GO) run ./figures

figures-ops: image ## measure what TLS costs a step, the size of the images, and with HEADWATER_KUBE how sessions bear the loss of pods; prints `figure NAME VALUE`
	@$(GO) run ./internal/figures/sessions -bin bin -run '^mtls_' -samples figures/ops.json
	@wc -c < out/images.tar | awk '{printf "figure image_mb %.1f\n", $$1 / 1e6}'
	@test -z "$$HEADWATER_KUBE" || k8s/test.sh figures

figures-learn: build $(VENV_MODEL)/ready ## measure gradients; prints `figure NAME VALUE` (installs torch)
	@$(GO) run ./internal/figures/learn -bin bin -python $(VENV_MODEL)/bin/python -samples figures/learn.json

figures-faults: build ## measure how the programs bear bad luck and bad company; prints `figure NAME VALUE`
	@$(GO) run ./internal/figures/faults -bin bin

.PHONY: figures-survive
figures-survive: build ## measure what users see of failures; prints `figure NAME VALUE` (FLAGS='-kills 5 -run kill' for a quick look)
	@$(GO) run ./internal/figures/survive -bin bin $(FLAGS)

explore: ## explore the protocol of sessions in all orders of a small case; prints `figure explored_states N`
	@HEADWATER_EXPLORE=1 $(GO) test -count=1 -timeout 90m -v -run 'TestSmallCase$$' ./test/explore

simulate: ## simulate where sessions lie on clusters of up to 1,000 workers; prints `figure NAME VALUE`, draws docs/images/spread.png
	@$(GO) run ./internal/figures/simulate -samples figures/simulate.json -plot docs/images/spread.png

WALK ?= 5m
walk: ## have several clients drive the same sessions in bad company, WALK=5m for each cluster, with the race detector
	HEADWATER_WALK=$(WALK) $(GO) test -race -count=1 -timeout 24h -v ./internal/testkit/drivers

.PHONY: chaos
chaos: build ## cut processes off the network, kill and stop them for 10 minutes while clients drive their sessions; prints `figure NAME VALUE`
	@$(GO) run ./internal/figures/chaos -bin bin $(FLAGS)

.PHONY: chaos-minute
chaos-minute: build ## the same for one minute, as a part of test
	@$(GO) run ./internal/figures/chaos -bin bin -time 1m -log .cache/chaos.log $(FLAGS)

soak: build ## load a worker for 10 minutes with clients that fill it, of which some never read; prints `figure NAME VALUE`
	@$(GO) run ./internal/figures/faults -bin bin -run '^soak_' -soak 10m

fixtures: ## make test/data/smollm2 anew from the model (needs Python 3 and PyPI)
	bash test/data/fixtures/make.sh

# The commit's time and name, so that two builds of a commit are the same bytes.
MADE = $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
REVISION = $(shell git rev-parse HEAD 2>/dev/null)
image: build out/LICENSES.txt ## pack the binaries into out/images.tar, without a container engine, and say beside it in SPDX what they are made of
	$(GO) run ./internal/image/cmd -out out/images.tar -version $(VERSION) -also local -made $(MADE) -revision '$(REVISION)' -bills out -add out/LICENSES.txt=/LICENSES.txt bin/coord bin/worker

.PHONY: out/LICENSES.txt
out/LICENSES.txt:
	@mkdir -p out
	cd tools && $(GO) run ./licences -texts ../$@ -platform linux/$(shell $(GO) env GOARCH)

licences: ## write docs/licences.md, the licences of what is linked into the programs, and refuse those that are not allowed
	cd tools && $(GO) run ./licences

# nfpm is a module of its own, pinned to the last version all of whose modules can be had.
packages: ## build Debian packages and tarballs for Linux on x86-64 and arm64 into out/packages/
	cd tools/nfpm && GOFLAGS='$(GOFLAGS) -mod=readonly' $(GO) build -o ../../.cache/nfpm github.com/goreleaser/nfpm/v2/cmd/nfpm
	NFPM=.cache/nfpm LDFLAGS='$(LDFLAGS)' packaging/packages.sh $(VERSION) $(MADE)

test-packages: ## build the packages twice, in other folders and under other settings, and compare their bytes
	packaging/twice.sh

test-avx512: ## run the tests of the AVX-512 kernels on an emulated processor (.ci/avx512 says what it needs)
	@bash .ci/avx512

test-amx: ## run the tests of the AMX routines, on an emulated processor where this one has none
	$(GO) test -count=1 ./internal/processor ./internal/emulator/amx ./attention/internal/amx
	$(GO) test -count=1 -run 'Tile|Golden|MatrixUnit|Collections|VectorAnyShape' ./attention
	$(GO) test -count=1 -run WithAMX ./test/e2e

test-arm64: ## run the tests of the NEON kernels on an emulated processor (.ci/arm64 says what it needs)
	@bash .ci/arm64

test-k8s: ## run on a real one-node Kubernetes, made by the scripts in HEADWATER_KUBE (needs root)
	k8s/test.sh

clean: ## remove what was built
	rm -rf bin out figures .cache
