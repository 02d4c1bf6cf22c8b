#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Memory runs out: each allocation that is made on the way of what the flowmap does,
# or has done for it, fails once, in turn. Whatever comes of it, connections go on,
# no packet goes wrong, and nothing is left over. The cases are in faults.py.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

if [ "$VM_KERNEL" != debug ] && [ ! -e /proc/self/fail-nth ]; then
	echo "1..0 # SKIP needs the debug kernel"
	exit
fi
hosts
ruleset
# of all allocations, those that may sleep as well, and single pages; no stacks in the log
for what in failslab fail_page_alloc; do
	echo N > /sys/kernel/debug/$what/ignore-gfp-wait
	echo 0 > /sys/kernel/debug/$what/verbose
	echo 32 > /sys/kernel/debug/$what/stacktrace-depth
done
echo N > /sys/kernel/debug/fail_page_alloc/ignore-gfp-highmem
echo 0 > /sys/kernel/debug/fail_page_alloc/min-order
cases python3 "$TESTS/faults.py"
cleanup
wait_until rmmod nf_flow_table_bpf_flowmap
equal "the module unloads when all is gone" "" "$(lsmod | grep flowmap)"
finish
