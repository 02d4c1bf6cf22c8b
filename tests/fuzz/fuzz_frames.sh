#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# tests/fuzz/fuzz_frames.sh [INPUTS [SEED]]: xdp_ct's packet path under libFuzzer
# and AddressSanitizer, on the host (fuzz_frames.c). Prints KTAP.

# shellcheck source=tests/vm/lib.sh
. "$(dirname "$0")/../vm/lib.sh"

inputs=${1:-1000000}
seed=${2:-1}
dir=$BUILD/fuzz
log=$LOG/fuzz_frames.log
mkdir -p "$dir"
clang -g -O2 -Wall -Wextra -Wno-unused-parameter -Wno-ignored-attributes \
	-fsanitize=fuzzer,address -idirafter "$REPO/include/uapi" \
	-I "$REPO/samples/xdp_ct" -o "$dir/fuzz_frames" "$REPO/tests/fuzz/fuzz_frames.c" \
	> "$log" 2>&1 || die "fuzz_frames.c does not build: $(grep -m1 error "$log"), see $log"

if ! "$dir/fuzz_frames" -runs="$inputs" -seed="$seed" -max_len=512 -artifact_prefix="$dir/" \
	-print_final_stats=1 > "$log" 2>&1; then
	sed 's/^/# /' < <(grep -vE '^(#|INFO|\s*NEW)' "$log" | head -150)
	echo "not ok 1 - frames: seed $seed: log $log, input in $dir"
	echo 1..1
	exit 1
fi
read -r _ frames _ forwarded _ outside < <(grep '^frames ' "$log")
echo "ok 1 - frames: $frames with seed $seed, of which $forwarded forwarded and $outside" \
	"outside TCP's windows, all as the model says"
# else it would have tested little
[ "$forwarded" -ge $((inputs / 20)) ] && [ "$outside" -ge $((inputs / 1000)) ]
status=$?
[ $status = 0 ] || printf 'not '
echo "ok 2 - frames: one in twenty is forwarded, one in a thousand is outside TCP's windows"
echo 1..2
exit $status
