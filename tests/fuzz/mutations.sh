#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# tests/fuzz/mutations.sh [INPUTS [PATTERN]]: does fuzz_frames find mistakes? Makes each
# of mutations.list (or those that PATTERN names) in a copy of the program, and has
# it fuzzed with so many inputs. By hand, as it takes minutes. Prints KTAP.

# shellcheck source=tests/vm/lib.sh
. "$(dirname "$0")/../vm/lib.sh"

inputs=${1:-1000000}
copy=$BUILD/fuzz/mutated
n=0
bad=0

while IFS=$'\t' read -r name file change; do
	rm -rf "$copy"
	mkdir -p "$copy"
	(cd "$REPO" && cp --parents -r tests/fuzz tests/vm/lib.sh samples/xdp_ct include/uapi "$copy")
	sed -i "$change" "$copy/samples/xdp_ct/$file"
	n=$((n + 1))
	if cmp -s "$REPO/samples/xdp_ct/$file" "$copy/samples/xdp_ct/$file"; then
		found="changes nothing: mend mutations.list"
	elif out=$("$copy/tests/fuzz/fuzz_frames.sh" "$inputs" 2>&1); then
		found="not found in $inputs inputs"
	elif [[ $out = error:* ]]; then
		found=$out
	else
		# what fuzz_frames.c says, or AddressSanitizer
		echo "ok $n - $name: $(grep -m1 '^# [A-Za-z]' <<< "${out//==*ERROR: /}" | cut -c 3-)"
		continue
	fi
	echo "not ok $n - $name: $found"
	bad=1
done < <(grep -v '^#' "$REPO/tests/fuzz/mutations.list" | grep -E -- "${2:-.}")
rm -rf "$copy"
echo "1..$n"
exit "$bad"
