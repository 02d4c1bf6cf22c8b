# SPDX-License-Identifier: GPL-2.0
#
# The ways in. Each target makes what it needs, from the packages on; the steps
# are the scripts in tests/vm/, which remember what they have done in build/.

KERNEL ?= flowmap
VM = tests/vm

help:
	@echo 'make demo              NAT real connections in XDP, in a virtual machine'
	@echo 'make check             run all tests there (TESTS="tests/a.sh ..." for some)'
	@echo 'make check-debug       the same on a kernel with KASAN, lockdep, kmemleak and faults'
	@echo '                       (make check KERNEL=kcsan: with KCSAN, data races)'
	@echo 'make check-kernel      that nothing is lost for the rest of the kernel'
	@echo 'make coverage          check-debug, and how many lines of the kernel files it ran'
	@echo 'make shell             the guest of the demo, up, with a prompt'
	@echo 'make bench             instructions a packet, path by path (bench-quick: the main ones)'
	@echo 'make lint              checkpatch, sparse and shellcheck'
	@echo 'make kernel            build what the guest boots (KERNEL=flowmap|stock|off|debug|kcsan)'
	@echo 'make apply KSRC=dir    lay overlay and patches over your kernel tree'
	@echo 'make series            write it all as patches for git am, in build/series/'
	@echo 'make clean             remove build/'
	@echo
	@echo '$(VM)/run [--smp N] [--icount] [--kernel VARIANT] [--] SCRIPT [ARG...]'
	@echo '                       run a script of yours in the guest'

packages:
	@$(VM)/packages.sh

source: packages
	@$(VM)/source.sh

kernel: source
	@$(VM)/kernel.sh $(KERNEL)

rootfs: packages
	@$(VM)/rootfs.sh

progs: packages kernel
	@$(VM)/progs.sh

setup: kernel rootfs progs

demo: setup
	@$(VM)/run --kernel $(KERNEL) tests/demo.sh
	@echo && echo '== instructions that a packet costs on each path (UDP, NAT)'
	@tests/bench/run.sh demo

shell: setup
	@$(VM)/run --kernel $(KERNEL) --shell tests/demo.sh --shell

# ALSO: another kernel, and tests that are to run there, too
check: setup
	@$(if $(ALSO),$(VM)/kernel.sh $(firstword $(ALSO)))
	@$(VM)/check.sh --kernel $(KERNEL) $(TESTS) $(if $(ALSO),--also $(ALSO))

check-debug: KERNEL = debug
check-debug: check

check-kernel: source rootfs
	@$(VM)/check-kernel.sh

coverage: KERNEL = debug
coverage: setup
	@$(VM)/check.sh --kernel debug $(TESTS); tests=$$?; $(VM)/coverage.sh && exit $$tests

bench: setup
	@tests/bench/run.sh

bench-quick: setup
	@tests/bench/run.sh quick

lint: kernel
	@$(VM)/lint.sh

apply:
	@$(VM)/apply.sh $(KSRC)

series: source
	@$(VM)/series.sh

clean:
	rm -rf build

.NOTPARALLEL:
.PHONY: help packages source kernel rootfs progs setup demo shell check check-debug check-kernel coverage bench bench-quick lint apply series clean
