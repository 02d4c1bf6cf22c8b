#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Step 5: xdp_ct and the programs that tests use, each in a folder under build/

# shellcheck source=tests/vm/lib.sh
. "$(dirname "$0")/lib.sh"
lock "$BUILD/.lock"

log=$LOG/progs.log
step 5 "xdp_ct"
: > "$log"
for d in samples/xdp_ct tests/bench tests/bpf; do
	[ -e "$REPO/$d/Makefile" ] || continue
	make -C "$REPO/$d" O="$BUILD/${d##*/}" >> "$log" 2>&1 ||
		die "$d: $(grep -m1 -E 'error:|Error' "$log"), see $log"
done
