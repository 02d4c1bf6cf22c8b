#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# run.sh [quick|demo]: make bench, make bench-quick, the end of make demo. Builds generator and sink, has
# paths.sh measure in the guest, one instruction a nanosecond, and prints the
# table; all figures go to build/bench.json.

# shellcheck source=tests/vm/lib.sh
. "$(dirname "$0")/../vm/lib.sh"

log=$LOG/bench.log
make -C "$REPO/tests/bench" O="$BUILD/bench" > "$log" 2>&1 ||
	die "tests/bench: $(grep -m1 -E 'error:|Error' "$log"), see $log"

out=$BUILD/bench.json
if [ "$1" = demo ]; then
	out=$BUILD/demo.json
	args=(3 6400 "4-udp-nat-untagged:1")
elif [ "$1" = quick ]; then
	args=(3 12800 "4-udp-nat-untagged:1,1000" 6-udp-nat-untagged:1)
else
	args=(5 20480 "4-udp-nat-untagged:1,1000,100000" "6-udp-nat-untagged:1,1000"
	      4-tcp-nat-untagged:1 6-tcp-nat-untagged:1 4-udp-plain-untagged:1
	      4-udp-nat-vlan:1 6-udp-nat-vlan:1)
fi
rm -f "$out"
VM_MEM=${VM_MEM:-4096} "$REPO/tests/vm/run" --icount "$REPO/tests/bench/paths.sh" "${args[@]}" |
	tee "$LOG/bench.rows" | "$REPO/tests/bench/report.py" "$out.tmp"
status=("${PIPESTATUS[@]}")
[ "${status[*]}" = "0 0 0" ] || exit 1
mv "$out.tmp" "$out"
