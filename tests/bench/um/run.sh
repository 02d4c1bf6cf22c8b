#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# run.sh: build a kernel that is a program (ARCH=um) with flowmap_kunit.c in it,
# run it, and print its rows (see report.py)

# shellcheck source=tests/vm/lib.sh
. "$(dirname "$0")/../../vm/lib.sh"

here=$REPO/tests/bench/um
ksrc=$SRC/flowmap.um # links to the files of flowmap, and ours
obj=$BUILD/kernel/um
log=$LOG/um.log
test=net/netfilter/flowmap_kunit

kmake()
{
	make -C "$ksrc" O="$obj" ARCH=um CC='ccache gcc' HOSTCC='ccache gcc' "$@"
}

mkdir -p "$obj"
{
	cp -alfT "$SRC/flowmap" "$ksrc" && rm -f "$ksrc/net/netfilter/Makefile" "$ksrc/$test.c" &&
	{ cat "$SRC/flowmap/net/netfilter/Makefile" && echo "obj-y += ${test##*/}.o"; } \
		> "$ksrc/net/netfilter/Makefile" &&
	cp -p "$here/flowmap_kunit.c" "$ksrc/$test.c" &&
	if [ "$here/kernel.config" -nt "$obj/.config" ]; then
		kmake tinyconfig && "$ksrc/scripts/kconfig/merge_config.sh" -m -O "$obj" \
			"$obj/.config" "$here/kernel.config" && kmake olddefconfig
	fi && kmake -j"$(nproc)" vmlinux
} > "$log" 2>&1 || die "user-mode Linux does not build: $(grep -m1 -E 'error:|Error' "$log"), see $log"

timeout 600 "$obj/vmlinux" mem=3G dummy.numdummies=2 kunit_shutdown=halt > "$log" 2>&1 < /dev/null
grep -q '^ok 1 flowmap_lookups' "$log" ||
	die "user-mode Linux: $(grep -m1 -E 'not ok|# |anic' "$log" || tail -1 "$log"), see $log"
sed -n 's,^row kind=native,&,p' "$log"
