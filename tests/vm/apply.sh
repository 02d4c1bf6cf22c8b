#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# make apply KSRC=dir: lay overlay and patches over somebody's own kernel tree.
# All is made aside first: where a hunk does not fit, the tree stays as it is.

# shellcheck source=tests/vm/lib.sh
. "$(dirname "$0")/lib.sh"

ksrc=$1
[ -n "$ksrc" ] || die "which kernel tree? make apply KSRC=dir"
[ -e "$ksrc/Kconfig" ] || die "$ksrc is no kernel tree: it has no Kconfig"
[ -w "$ksrc/Kconfig" ] || die "$ksrc cannot be written to"

tmp=$(mktemp -d) || die "cannot write to ${TMPDIR:-/tmp}: make room"
trap 'rm -rf "$tmp"' EXIT
stage "$ksrc" "$tmp/staged"
# the tree may be one of hard links to another
cp -r --remove-destination "$tmp/staged/." "$ksrc" || die "$ksrc: not all files could be written: make room"
echo "$(patches | wc -l) patches and $(overlay_files | wc -l) new files are in $ksrc: now"
echo "set CONFIG_BPF_MODULAR_MAPS=y and CONFIG_NF_FLOW_TABLE_BPF_FLOWMAP=m"
