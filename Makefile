# SPDX-License-Identifier: MIT
# A thin front for meson: each target names the commands it runs.  Variables: BUILD (build
# directory), MESON_ARGS (options for its first configure), PREFIX and DESTDIR (install), JOBS.

BUILD ?= build
MESON_ARGS ?=
PREFIX ?= /usr/local
JOBS ?= $(shell nproc)

.PHONY: help all build configure demo check check-all bench install format clean

help:
	@echo 'make all        build the library, the tools, the tests and the benchmarks in $(BUILD)/'
	@echo 'make demo       install what is missing, build, and run timed I/O on a file for 5 s'
	@echo 'make check      install what is missing, build and test: plain, ASan+UBSan, TSan'
	@echo 'make check-all  the full matrix: compilers, sanitizers, monitors; takes long'
	@echo 'make bench      run the benchmarks; results in $(BUILD)/bench/results.jsonl'
	@echo 'make install    install to PREFIX ($(PREFIX)), below DESTDIR when that is set'
	@echo 'make format     format the sources with clang-format'
	@echo 'make clean      remove the build directories'

all build: configure
	ninja -C $(BUILD) -j $(JOBS)

configure:
	@test -f $(BUILD)/build.ninja || meson setup $(BUILD) $(MESON_ARGS)

demo:
	@scripts/install-deps
	@$(MAKE) --no-print-directory configure
	ninja -C $(BUILD) -j $(JOBS) tools/aioctx-blk
	@scripts/demo $(BUILD)

check:
	@scripts/install-deps --check
	@scripts/check -j $(JOBS)

check-all:
	@scripts/install-deps --check --bench
	@scripts/check-all -j $(JOBS)

bench:
	@scripts/install-deps --bench
	@$(MAKE) --no-print-directory build
	@scripts/bench $(BUILD)

install: build
	meson configure $(BUILD) --prefix $(abspath $(PREFIX))
	meson install -C $(BUILD) $(if $(DESTDIR),--destdir $(abspath $(DESTDIR)))

format:
	scripts/format

clean:
	rm -rf build build-*
