#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What the steps in this folder share. A step builds under a temporary name
# and renames when whole, then notes a checksum of what it was made from
# (fresh, stamp), so an interrupted run goes on where it was and nothing half
# built is taken for whole.

REPO=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
BUILD=$REPO/build
LOG=$BUILD/log
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/flowmap
SRC=$BUILD/src
OVERLAY_DIRS="Documentation include kernel net"
PATCHES=$REPO/patches/6.12
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin # bpftool, for who is not root
export CCACHE_DIR=$CACHE/ccache CCACHE_BASEDIR=$REPO CCACHE_NOHASHDIR=1 CCACHE_DEPEND=1
export CCACHE_MAXSIZE=3G

die()
{
	echo "error: $*" >&2
	exit 1
}

# step NUMBER TEXT: what the user sees; all else goes to a log
step()
{
	echo "[$1/5] $2"
}

mkdir -p "$LOG" "$SRC" "$CACHE" ||
	die "cannot write to $BUILD or $CACHE: make room or set XDG_CACHE_HOME"

# lock FILE: one builder at a time
lock()
{
	exec 9> "$1"
	flock -n 9 || { echo "      waiting for another build"; flock 9; }
}

# room MEGABYTES DIR
room()
{
	local free

	free=$(df -Pm "$2" | awk 'NR == 2 { print $4 }')
	[ "$free" -ge "$1" ] || die "$2 has $free MB free, $1 MB are needed: make room"
}

# sum FILE...: one checksum of names and contents
sum()
{
	sha256sum "$@" | sed "s, $REPO/, ," | sha256sum | cut -d' ' -f1
}

# fresh STAMP SUM: was this made from the same?
fresh()
{
	[ -e "$1" ] && [ "$(cat "$1")" = "$2" ]
}

stamp()
{
	echo "$2" > "$1.tmp" && mv "$1.tmp" "$1"
}

# words FILE: a list, one a line, without its comments
words()
{
	sed 's/#.*//' "$1" | xargs
}

# install_changed FROM TO: copy, but leave a file of the same content its time
install_changed()
{
	cmp -s "$1" "$2" && return
	mkdir -p "$(dirname "$2")" && cp "$1" "$2.flowmap-tmp" && mv "$2.flowmap-tmp" "$2"
}

# overlay_files: the kernel's new files, relative to the top
overlay_files()
{
	local d

	for d in $OVERLAY_DIRS; do
		[ ! -d "$REPO/$d" ] || (cd "$REPO" && find "$d" -type f ! -name '.*' ! -name '*~')
	done | sort
}

patches()
{
	find "$PATCHES" -name '*.patch' 2>/dev/null | sort
}

# stage KSRC DIR: make in DIR all the files that differ from the tree KSRC, by
# overlay and patches; dies with file and hunk if a patch does not fit
stage()
{
	local ksrc=$1 dir=$2 f p out

	rm -rf "$dir" && mkdir -p "$dir" || exit 1
	for p in $(patches); do
		sed -n 's,^\(---\|+++\) [ab]/\([^\t]*\).*,\2,p' "$p"
	done | sort -u | while read -r f; do
		[ ! -e "$ksrc/$f" ] || (cd "$ksrc" && cp --parents "$f" "$dir") || exit 1
	done || exit 1
	for p in $(patches); do
		out=$(patch -d "$dir" -p1 -F0 -N -r - --no-backup-if-mismatch < "$p" 2>&1) && continue
		die "$(awk -v p="${p#"$REPO"/}" '
			/^(patching|checking) file/ { f = $3 }
			/FAILED|can.t find|previously applied|malformed/ && !n++ {
				print p " does not fit " f ": " $0
			}' <<< "$out" | grep . || echo "${p#"$REPO"/}: $out" | head -1)"
	done
	overlay_files | while read -r f; do
		[ ! -e "$ksrc/$f" ] || [ -n "$STAGE_REPLACE" ] ||
			cmp -s "$ksrc/$f" "$REPO/$f" ||
			die "$ksrc has another $f already"
		(cd "$REPO" && cp --parents "$f" "$dir") || exit 1
	done || exit 1
}
