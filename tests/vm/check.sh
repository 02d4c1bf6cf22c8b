#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# check.sh [--kernel VARIANT] [TEST...] [--also VARIANT TEST...]
#
# make check: lint and fuzz_frames on the host, and each test in a guest of its own
# (or those named), as many at once as there are cores (JOBS), as one stream of
# KTAP with numbers of its own. What a test prints beside its results is shown with
# its name, as it comes. A test that breaks off, runs fewer cases than it planned
# or exits non-zero without saying 'not ok' is a failure, too. With another kernel
# than the usual one there is nothing on the host. --also: and then these, with that
# kernel.

# shellcheck source=tests/vm/lib.sh
. "$(dirname "$0")/lib.sh"

# tagged NAME COMMAND...: its lines, and at the end how it ended, behind NAME
tagged()
{
	local name=$1 start=$SECONDS

	shift
	{ "$@" 2>&1; echo "exit $? $((SECONDS - start))"; } |
		gawk -v name="$name" '{ sub(/\r$/, ""); print name "\t" $0; fflush() }'
}

# Many streams of tagged lines into one
merge()
{
	gawk -F '\t' '
	function result(ok, text) {
		if (ok && text ~ /# *SKIP/) skip++
		else if (ok) pass++
		else { fail++; bad[name]++ }
		printf "%sok %d - %s: %s\n", ok ? "" : "not ", pass + fail + skip, name, text
	}
	{ name = $1; text = substr($0, length(name) + 2) }
	text ~ /^(not )?ok( |$)/ {
		ok = text ~ /^ok/
		sub(/^(not )?ok *[0-9]* *(- *)?/, "", text)
		seen[name]++
		result(ok, text)
		fflush()
		next
	}
	text ~ /^1\.\.0 / { sub(/^1\.\.0 */, "", text); result(1, text); plan[name] = 0; next }
	text ~ /^1\.\.[0-9]+/ { plan[name] = substr(text, 4); next }
	text ~ /^(K?TAP version|# Totals:)/ { next }
	text ~ /^exit [0-9]+ [0-9]+$/ {
		split(text, e, " ")
		if (name in plan && plan[name] != seen[name] + 0)
			result(0, "planned " plan[name] " results, gave " seen[name] + 0)
		else if (!seen[name] && !(name in plan))
			result(0, "gave no result")
		if (e[2] && !bad[name])
			result(0, "exited with " e[2])
		print "# " name ": " e[3] " s"
		fflush()
		next
	}
	{ sub(/^# ?/, "", text); print "# " name ": " text; fflush() }
	END {
		printf "1..%d\n", pass + fail + skip
		printf "%d passed, %d failed%s\n", pass, fail, skip ? ", " skip " skipped" : ""
		exit fail || !pass
	}'
}

variant=flowmap
if [ "$1" = --kernel ]; then
	variant=$2
	shift 2
fi
tests=()
while [ $# -gt 0 ] && [ "$1" != --also ]; do
	tests+=("$1")
	shift
done
host=
if [ ${#tests[@]} = 0 ]; then
	[ "$variant" != flowmap ] || host=1
	for t in "$REPO"/tests/*.sh; do
		[ -x "$t" ] && [ "${t##*/}" != demo.sh ] && tests+=("$t")
	done
fi

rm -rf "$BUILD/out/gcov"

# place: wait for one
place()
{
	while [ "$(jobs -rp | wc -l)" -ge "${JOBS:-$(nproc)}" ]; do
		wait -n
	done
}

# guests VARIANT SUFFIX TEST...: a guest for each
guests()
{
	local t variant=$1 suffix=$2

	shift 2
	for t; do
		place
		tagged "$(basename "$t" .sh)$suffix" "$REPO/tests/vm/run" --kernel "$variant" "$t" &
	done
}

echo "KTAP version 1"
set -o pipefail
{
	if [ -n "$host" ]; then
		tagged lint "$REPO/tests/vm/lint.sh" &
		place
		tagged fuzz_frames "$REPO/tests/fuzz/fuzz_frames.sh" &
	fi
	guests "$variant" "" "${tests[@]}"
	[ $# = 0 ] || guests "$2" " ($2)" "${@:3}"
	wait
} | merge
