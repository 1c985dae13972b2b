# Every target installs what it needs first (scripts/install_dependencies.sh; nothing once all is there).
SHELL := /bin/bash
JOBS ?= $(shell nproc)
# CUDA=1 builds for GPUs as well; the program also runs without one.
PRESET ?= $(if $(CUDA),cuda,release)
BUILD_DEPS := build $(if $(CUDA),cuda)
IMAGE ?= ddl-server
INSTALL_DEPS := scripts/install_dependencies.sh

.DEFAULT_GOAL := help
.PHONY: help demo serve build test test-long cuda-check gpu-bundle bench lint format format-check flags-reference image kubernetes-rules install-deps clean

help: ## Show this list
	@awk -F ':.*## ' '/^##@ / { printf "\n%s\n", substr($$0, 5) } /^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Use it

demo: ## Build, start the server on the bundled model, generate and embed over gRPC, stop it
	@$(INSTALL_DEPS) build client
	@scripts/build.sh $(PRESET) ddl_server
	@scripts/demo.sh

serve: ## Serve the bundled model on 127.0.0.1:8500 until Ctrl-C (MODEL=folder serves another one)
	@$(INSTALL_DEPS) build
	@scripts/build.sh release ddl_server
	@scripts/serve.sh

build: ## Build build/release/bin/ddl_server (CUDA=1: build/cuda/bin/ddl_server, for GPUs as well)
	@$(INSTALL_DEPS) $(BUILD_DEPS)
	@scripts/build.sh $(PRESET) ddl_server

##@ Test and measure

test: ## Build everything, run the test suite, then what is quick of make lint
	@$(INSTALL_DEPS) build client test lint
	@scripts/build.sh release
	@scripts/run_tests.sh release
	@scripts/lint.sh --quick

test-long: ## Run the long tests too, and the suite under AddressSanitizer
	@$(INSTALL_DEPS) build client test tokenizers
	@scripts/test_long.sh

cuda-check: ## Run the GPU's tests and compute-sanitizer; needs a GPU (PREBUILT=folder: those of an unpacked bundle)
	@$(if $(PREBUILT),scripts/gpu_check.sh $(PREBUILT),scripts/cuda_check.sh)

gpu-bundle: ## Build the GPU's tests and benchmarks into one archive for a machine with a GPU
	@$(INSTALL_DEPS) build
	@scripts/gpu_bundle.sh

bench: ## Compare speeds; takes a while (PEERS=folder adds peers, BENCH_FLAGS=more; docs/performance.md)
	@$(INSTALL_DEPS) build client bench
	@scripts/build.sh release ddl_server ddl_bench engine_benchmark kernels_benchmark
	@.venv/bin/python bench/compare.py $(if $(PEERS),--peers $(PEERS)) $(BENCH_FLAGS)

##@ Change it

lint: ## Check formatting, scripts, Python, the contract, prose, and changed C++ files with clang-tidy (LINT_BASE=commit)
	@$(INSTALL_DEPS) build lint tidy
	@scripts/lint.sh

flags-reference: ## Write docs/flags.md from the flags' own texts
	@$(INSTALL_DEPS) build
	@scripts/build.sh release flags_reference
	@build/release/tests/flags_reference >docs/flags.md

format: ## Format all C++ files in place
	@$(INSTALL_DEPS) format
	@scripts/format.sh

format-check: ## Fail if a C++ file is not formatted
	@$(INSTALL_DEPS) format
	@scripts/format.sh --check

##@ Deploy

image: ## Build the container image with Docker (IMAGE=name, ddl-server otherwise; CUDA=1: for GPUs as well)
	docker build $(if $(CUDA),--target cuda) --build-arg REVISION=$$(git rev-parse --short=12 HEAD) --tag $(IMAGE) .

kubernetes-rules: ## Copy the alert rules of deploy/prometheus into the manifests of deploy/kubernetes
	@scripts/kubernetes_rules.sh

##@ Housekeeping

install-deps: ## Only install what is needed
	@$(INSTALL_DEPS) build client test

clean: ## Remove what was built (not .venv)
	rm -rf build
