#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# make lint: shellcheck on shell, the kernel's own checkpatch --strict on C and
# patches, sparse with endian checks on the kernel's files; and that the bench's
# report refuses what it should, and that counting is atomic. A finding fails. Prints KTAP.

# shellcheck source=tests/vm/lib.sh
. "$(dirname "$0")/lib.sh"

tree=$SRC/flowmap
n=0
bad=0
cd "$REPO" || exit 1
shopt -s lastpipe # result counts in this shell

# result NAME: by standard input, which is what was found
result()
{
	local found

	found=$(cat)
	n=$((n + 1))
	if [ -z "$found" ]; then
		echo "ok $n - $1"
	else
		printf '%s\n' "$found" | head -60 | sed 's/^/# /'
		echo "not ok $n - $1"
		bad=1
	fi
}

# files GLOB...: of ours, whether or not git knows them yet
files()
{
	git ls-files -co --exclude-standard -- "$@" | sort -u
}

checkpatch()
{
	"$tree/scripts/checkpatch.pl" --root="$tree" --strict --terse --no-summary \
		--show-types "$@" 2>&1
}

# 2317, 2119: functions that are called by name, or with arguments by some only;
# 2319: the status of a condition is what is meant
files '*.sh' .ci/run tests/vm/run tests/vm/guest-init '*.bash-completion' |
	xargs shellcheck -x -e SC2317,SC2119,SC2319 --format=gcc 2>&1 | result "shellcheck"

# by standard input: a patch that git knows is checked as if it were source
files 'patches/*.patch' | while read -r f; do checkpatch < "$f" | sed "s,^-,$f,"; done |
	result "checkpatch --strict: patches"

files 'kernel/*.[ch]' 'net/*.[ch]' 'include/*.h' | while read -r f; do
	checkpatch --no-tree -f "$f"
done | result "checkpatch --strict: kernel files"

# Not in kernel code, but here: constants that libbpf's loader sets are volatile,
# BPF has no __aligned(), help texts are longer than a line, libFuzzer has names.
files 'samples/*.[ch]' 'tests/*.[ch]' | while read -r f; do
	checkpatch --no-tree -f "$f" \
		--ignore VOLATILE,PREFER_DEFINED_ATTRIBUTE_MACRO,SPLIT_STRING,CAMELCASE
done | result "checkpatch --strict: samples and tests"
rm -f .checkpatch-camelcase.*

make -C "$tree" O="$BUILD/kernel/flowmap" CC='ccache gcc' C=2 CHECK=sparse \
	CF=-D__CHECK_ENDIAN__ kernel/bpf/modular_maps/ net/netfilter/nf_flow_table_snoop.o \
	net/netfilter/nf_flow_table_bpf_flowmap.o net/netfilter/nf_flow_table_core.o \
	> "$LOG/sparse.log" 2>&1 || echo "sparse did not run: $LOG/sparse.log" |
	result "sparse runs"
grep -c '^  CHECK' "$LOG/sparse.log" | grep -qx '[4-9]' ||
	echo "sparse has seen too few files: $LOG/sparse.log" >> "$LOG/sparse.log"
grep -E '(error|warning):|too few' "$LOG/sparse.log" | result "sparse, with endian checks"

# QEMU's CPUs take turns, so that no test sees an addition that is torn
objdump -d --disassemble=flowmap_count \
	"$BUILD/kernel/flowmap/net/netfilter/nf_flow_table_bpf_flowmap.ko" |
	grep -c 'lock add' | grep -vx 4 | sed 's/$/ of 4 are locked/' |
	result "flowmap_count() adds packets and bytes, its own and conntrack's, by locked instructions"

# report SAMPLES [CLOCK]: the bench's report of one row, from a guest with this clock
report()
{
	printf '%s\n' "info clock=${2:-1}" "row kind=map path=flowmap-hit flows=1 samples=$1" \
		"info clock=1" | tests/bench/report.py /dev/null 2>&1
}

{
	report 1000,1004,1008 > /dev/null || echo "runs that differ by 0.8 % are refused"
	report 1000,1010,1020 | grep -q 'differ by 2.0%, over 1%' ||
		echo "runs that differ by 2 % are not refused"
	! report 1000,1010,1020 > /dev/null || echo "and it exits with 0"
	! report 1000,1004,1008 2.02 > /dev/null || echo "a clock of 2 ns is not refused"
} | result "the bench refuses rows whose runs differ, and times that are no instructions"

echo "1..$n"
exit "$bad"
