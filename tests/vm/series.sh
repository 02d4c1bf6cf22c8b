#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# make series: overlay and patches as one series of mails for git am, in
# build/series/. New files come before the patch that builds them, with the
# message of the commit that added them here. A scratch repository with no
# more than the files that are touched is enough to make the series; that it
# makes of the pristine source what the guest runs is checked at the end.

# shellcheck source=tests/vm/lib.sh
. "$(dirname "$0")/lib.sh"

out=$BUILD/series
tmp=$(mktemp -d) || die "cannot write to ${TMPDIR:-/tmp}: make room"
trap 'rm -rf "$tmp"' EXIT
export GIT_CONFIG_GLOBAL=/dev/null
me=(-c user.name='flowmap maintainers' -c user.email=flowmap@example.org)

git_in()
{
	git -C "$tmp/$1" "${me[@]}" "${@:2}"
}

# base NAME: a repository of the stock files that patches touch
base()
{
	mkdir "$tmp/$1" && git_in "$1" init -q || exit 1
	for p in $(patches); do
		sed -n 's,^--- a/\([^\t]*\).*,\1,p' "$p"
	done | sort -u | (cd "$SRC/stock" && xargs cp --parents -t "$tmp/$1")
	git_in "$1" add -Af . && git_in "$1" commit -qm base
}

# add SUBJECT FILE...: a patch of new files
add()
{
	local subject=$1 body

	shift
	(cd "$REPO" && cp --parents "$@" "$tmp/work") || exit 1
	git_in work add -Af .
	body=$(git -C "$REPO" log --diff-filter=A --format=%b -- "$1" | sed '/^$/N;/^\n$/D')
	git_in work commit -qsm "$subject" ${body:+-m "$body"} || die "cannot commit $*"
}

patch_in()
{
	git_in work am -q "$PATCHES/$1"-*.patch || die "$PATCHES/$1 does not fit"
}

base work
git_in work tag base
cd "$REPO" || exit 1
add "bpf: modular maps: registration of map types" kernel/bpf/modular_maps/* \
	include/linux/bpf_modular_maps.h include/uapi/linux/bpf_modular_maps.h \
	Documentation/bpf/modular_maps.rst
patch_in 0001
patch_in 0004
add "netfilter: flowtable: tell snoopers of flows" net/netfilter/nf_flow_table_snoop.c \
	include/linux/netfilter/nf_flow_table_snoop.h \
	Documentation/networking/nf_flowtable_snoop.rst
patch_in 0002
patch_in 0005
add "netfilter: flowmap: the flow table as a BPF map" \
	net/netfilter/nf_flow_table_bpf_flowmap.c include/uapi/linux/bpf_flowmap.h \
	Documentation/bpf/map_flowmap.rst
patch_in 0003
mapfile -t rest < <(overlay_files | while read -r f; do
	[ -e "$tmp/work/$f" ] || echo "$f"
done)
[ ${#rest[@]} = 0 ] || add "Documentation: bpf: flowmap" "${rest[@]}"
mkdir "$tmp/work/samples"
add "samples: xdp_ct: forward by the flowmap, in XDP" samples/xdp_ct/*

rm -rf "$out"
git_in work format-patch -q -o "$out" --zero-commit --no-signature base ||
	die "cannot write $out: make room"

base check
git_in check am -q "$out"/*.patch || die "git am does not take the series"
(cd "$SRC/staged" && find . -type f) | while read -r f; do
	cmp -s "$SRC/staged/$f" "$tmp/check/$f" || { echo "$f"; break; }
done | grep . && die "the series gives another file than the tree that is tested"
echo "$(find "$out" -name '*.patch' | wc -l) patches in $out: git am takes them"
