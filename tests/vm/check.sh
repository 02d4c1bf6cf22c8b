#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# make check: lint on the host, then each test in a guest of its own (or those
# named), as one stream of KTAP with numbers of its own. What a test prints beside
# its results is shown as it comes. A test that breaks off, runs fewer cases than
# it planned or exits non-zero without saying 'not ok' is a failure, too.

# shellcheck source=tests/vm/lib.sh
. "$(dirname "$0")/lib.sh"

counts=$(mktemp) || die "cannot write to ${TMPDIR:-/tmp}: make room"
trap 'rm -f "$counts"' EXIT
echo "0 0 0" > "$counts"

# one NAME COMMAND...: run, renumber, count
one()
{
	local name=$1 start=$SECONDS pass fail skip

	shift
	read -r pass fail skip < "$counts"
	echo "# $name"
	{ "$@" 2>&1; echo "exit $?"; } | gawk -v name="$name" -v counts="$counts" \
		-v pass="$pass" -v fail="$fail" -v skip="$skip" '
	function result(ok, text) {
		if (ok && text ~ /# *SKIP/) skip++
		else if (ok) pass++
		else { fail++; bad++ }
		printf "%sok %d - %s: %s\n", ok ? "" : "not ", pass + fail + skip, name, text
	}
	{ sub(/\r$/, "") }
	held != "" { print held; held = "" }
	/^(not )?ok( |$)/ {
		text = $0
		sub(/^(not )?ok *[0-9]* *(- *)?/, "", text)
		seen++
		result($1 == "ok", text)
		fflush()
		next
	}
	/^1\.\.0 / { sub(/^1\.\.0 */, ""); result(1, $0); planned = 1; next }
	/^1\.\.[0-9]+/ { plan = substr($1, 4); planned = 1; next }
	/^(K?TAP version|# Totals:)/ { next }
	/^exit [0-9]+$/ { held = $0; next }
	{ print; fflush() }
	END {
		split(held, e)
		if (planned && plan != seen)
			result(0, "planned " plan " results, gave " seen + 0)
		else if (!seen && !planned)
			result(0, "gave no result")
		if (e[2] && !bad)
			result(0, "exited with " e[2])
		print pass + 0, fail + 0, skip + 0 > counts
	}'
	echo "# $name: $((SECONDS - start)) s"
}

echo "KTAP version 1"
if [ $# = 0 ]; then
	one lint "$REPO/tests/vm/lint.sh"
	for t in "$REPO"/tests/*.sh; do
		[ -x "$t" ] && [ "${t##*/}" != demo.sh ] && set -- "$@" "$t"
	done
fi
for t; do
	one "$(basename "$t" .sh)" "$REPO/tests/vm/run" "$t"
done
read -r pass fail skip < "$counts"
echo "1..$((pass + fail + skip))"
skipped=
[ "$skip" = 0 ] || skipped=", $skip skipped"
echo "$pass passed, $fail failed$skipped"
[ "$fail" = 0 ] && [ "$pass" -gt 0 ]
