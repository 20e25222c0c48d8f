# relayd. `make` lists the targets.
SHELL := /bin/bash
GOTOOL := go tool -modfile=tools/go.mod
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X relayd/internal/app.Version=$(VERSION)
FUZZTIME ?= 10s
.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

.PHONY: build
build: ## bin/relayd and bin/relayctl, static
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/relayd ./cmd/relayctl

.PHONY: test
test: ## every test that needs nothing but Go
	go test ./...

.PHONY: race
race: ## the same under the race detector, but for e2e, whose binaries are processes of their own, and long tests of one goroutine
	go test -race -short $$(go list ./... | grep -v '/e2e$$')

.PHONY: e2e
e2e: build ## end-to-end tests of the real binaries with other people's clients and verifiers
	RELAYD_E2E=full go test -count=1 -timeout 30m ./e2e/...

.PHONY: crash
crash: ## 200 kills of a relay under load, and kills at every named point
	RELAYD_E2E=full RELAYD_E2E_KILLS=$${KILLS:-200} RELAYD_E2E_POINTS=12 go test -count=1 -timeout 30m -v -run 'Kill' ./e2e

.PHONY: powerloss
powerloss: ## 50 power losses of a relay under load; needs root and loop devices
	RELAYD_E2E=full RELAYD_E2E_POWERLOSSES=$${LOSSES:-50} go test -count=1 -timeout 30m -v -run PowerLoss ./e2e

.PHONY: faults
faults: ## injected faults of the storage, full disks, damaged files, a million queued; needs root, strace and loop devices
	RELAYD_E2E=full RELAYD_E2E_FAULTS=20 RELAYD_E2E_BACKLOG=1000000 go test -count=1 -timeout 30m -v -run 'Fault|Disk|Damage|Descriptor|Memory' ./e2e

.PHONY: tlsscan
tlsscan: ## testssl.sh against the listeners; takes minutes, on a busy machine an hour; needs Debian's testssl.sh
	RELAYD_E2E_TLSSCAN=1 go test -count=1 -timeout 2h -v -run TLSScan ./e2e

.PHONY: campaign
campaign: ## exact campaigns under 100 pauses and 50 kills with 10,000 recipients, and the speed of a million (SIZE)
	RELAYD_E2E=full RELAYD_E2E_PAUSES=100 RELAYD_E2E_CAMPAIGN_KILLS=50 RELAYD_E2E_SLOW=500 go test -count=1 -timeout 30m -v -run 'TestCampaignIsExact|TestCampaignToASlow' ./e2e
	RELAYD_E2E=full RELAYD_E2E_CAMPAIGN=$${SIZE:-1000000} go test -count=1 -timeout 30m -v -run TestCampaignSpeed ./e2e

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (10s)
	@bin=$$(mktemp -d) && trap 'rm -rf "$$bin"' EXIT && cache=$$(go env GOCACHE)/fuzz && set -o pipefail && \
	grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do \
	go test -c -fuzz=. -o "$$bin/test" "$$dir" && cd "$$dir" || exit 1; \
	for target in $$("$$bin/test" -test.list '^Fuzz'); do echo "$$dir $$target"; \
		corpus=testdata/fuzz/$$target; had=$$(ls "$$corpus" 2>/dev/null | wc -l); \
		out=$$("$$bin/test" -test.run '^$$' -test.fuzz "^$$target$$" -test.fuzztime $(FUZZTIME) -test.fuzzminimizetime 1x \
			-test.fuzzcachedir "$$cache/relayd/$$dir" 2>&1) && { echo "$$out" | tail -n 2; continue; }; \
		echo "$$out"; \
		[ "$$(ls "$$corpus" 2>/dev/null | wc -l)" = "$$had" ] || { echo "failing input in $$corpus"; exit 1; }; \
		case "$$out" in *"Failing input"*|*panic*) exit 1;; *"context deadline exceeded"*) ;; *) exit 1;; esac; \
	done; cd "$(CURDIR)"; done
# Go may take the end of the time for an error, "context deadline exceeded" (internal/fuzz: its context ends before that of its
# workers): no finding. One that it was minimising then it writes to the corpus and does not name.

.PHONY: bench
bench: ## benchmarks, each with its limit measured in the same run
	go test -run '^$$' -bench . -benchtime $${BENCHTIME:-1s} -timeout 30m ./...

.PHONY: simulate
simulate: ## a day of virtual time against personas of providers, with a table of what each takes and what it got
	RELAYD_SIMULATE=$${HOURS:-24} go test -count=1 -timeout 60m -v -run '^TestSimulation$$' ./delivery

.PHONY: lint
lint: ## golangci-lint with .golangci.yml
	$(GOTOOL) golangci-lint run ./...

.PHONY: fmt
fmt: ## format the source
	$(GOTOOL) gofumpt -w $$(git ls-files '*.go')

.PHONY: generate
generate: ## regenerate what is generated from the code
	go generate ./...

.PHONY: check
check: ## format, vet, lint, floors, race
	@out=$$($(GOTOOL) gofumpt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "gofumpt wants to change:"; echo "$$out"; exit 1; fi
	go vet ./...
	$(GOTOOL) golangci-lint run ./...
	go test -count=1 ./internal/archtest
	$(MAKE) --no-print-directory race

.PHONY: demo
demo: build ## a whole relay on loopback: one campaign from customers to inbox
	./bin/relayd demo $(DEMOFLAGS)

.PHONY: install
install: build ## /usr/local/bin/relayd and relayctl
	install -m 0755 bin/relayd bin/relayctl $(DESTDIR)/usr/local/bin/

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
