#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What share of the lines of our kernel files the tests have run on the debug
# kernel (make check-debug), file by file. Each test has left its counts in
# build/out/gcov/TEST (finish in tests/lib.sh); a line counts that any has run.
# Those that none has are in build/coverage.txt. Fails if a file has less than 90 %.

# shellcheck source=tests/vm/lib.sh
. "$(dirname "$0")/lib.sh"

obj=$BUILD/kernel/debug
data=$BUILD/out/gcov
[ -d "$data" ] || die "no counts in $data: run make check-debug"
tmp=$(mktemp -d) || die "cannot write to ${TMPDIR:-/tmp}: make room"
trap 'rm -rf "$tmp"' EXIT

# lines FILE.c: "NUMBER COUNT" or "NUMBER #####" for each line that has code, by
# each test that has seen the file
lines()
{
	local test base=${1%.c}

	cp "$obj/$base.gcno" "$tmp/counts.gcno" || die "$obj/$base.gcno is missing: run make check-debug"
	for test in "$data"/*; do
		[ ! -e "$test/${base##*/}.gcda" ] || {
			cp "$test/${base##*/}.gcda" "$tmp/counts.gcda" &&
			(cd "$obj" && gcov -t -o "$tmp" "$tmp/counts.gcda" 2> /dev/null)
		}
	done | gawk -v "source=/$1" -F ' *: *' '
		$3 == "Source" { ours = substr($4, length($4) - length(source) + 1) == source }
		ours && $2 > 0 && $1 !~ /-/ { gsub(/[ *]/, "", $1); print $2, $1 }'
}

: > "$BUILD/coverage.txt"
printf '%-48s %6s %6s %7s\n' file lines run share
overlay_files | grep '\.c$' | while read -r f; do
	lines "$f" | gawk -v "file=$f" -v "missed=$BUILD/coverage.txt" '
		{ has[$1] = 1; if ($2 !~ /^[#=]/) run[$1] = 1 }
		END {
			for (n in has)
				n in run ? ran++ : never[++gaps] = n + 0
			printf "%-48s %6d %6d %6.1f%%\n", file, length(has), ran, 100 * ran / (length(has) + !length(has))
			asort(never)
			while ((getline text < file) > 0)
				source[++at] = text
			for (i = 1; i <= gaps; i++)
				print file ":" never[i] ":" source[never[i]] >> missed
		}'
done | gawk '
	{ print; total += $2; ran += $3; if (!$2 || $3 < 0.9 * $2) few++ }
	END {
		printf "%-48s %6d %6d %6.1f%%\n", "all", total, ran, 100 * ran / total
		exit few > 0
	}'
status=$?
echo "lines that no test has run: ${BUILD#"$REPO"/}/coverage.txt"
[ $status = 0 ] || die "less than 90 % of a file's lines have run"
