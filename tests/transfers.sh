#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The demo's transfers as tests: iperf3, a port forward, FTP active and passive
# with its helper; each must arrive whole, 99 of 100 packets by XDP.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

least=$((PATIENCE == 1 ? 99 : 90))
out=$(DEMO_MB=$(few 24) DEMO_SECONDS=$((3 * PATIENCE)) DEMO_LEAST=$least "$TESTS/demo.sh")
status=$?
while IFS= read -r line; do
	[[ $line =~ ^\ +(.*[^\ ])\ +(whole|DAMAGED),\ ([0-9]+)\ of\ ([0-9]+)\ packets ]] || continue
	[ "${BASH_REMATCH[2]}" = whole ] && [ "${BASH_REMATCH[4]}" -gt 0 ] &&
		[ $((100 * BASH_REMATCH[3])) -ge $((least * BASH_REMATCH[4])) ]
	result $? "${BASH_REMATCH[1]}: whole, $least of 100 packets by XDP" "$line"
done <<< "$out"
equal "all seven transfers ran" 7 "$results"
[ "$failed" = 0 ] && [ "$status" = 0 ]
result $? "the demo says the same" "it exits with $status
$out"
finish
