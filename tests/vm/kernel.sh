#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Step 3: build the kernel VARIANT (default flowmap) in build/kernel/VARIANT and
# put what boots into build/boot/VARIANT: vmlinux without its debug information
# and a file system with the modules, those of tests/modules among them. Objects
# come from ccache where another clone has built them before.

# shellcheck source=tests/vm/lib.sh
. "$(dirname "$0")/lib.sh"
lock "$BUILD/.lock"

variant=${1:-flowmap}
ksrc=$SRC/flowmap
[ "$variant" != stock ] || ksrc=$SRC/stock
obj=$BUILD/kernel/$variant
boot=$BUILD/boot/$variant
log=$LOG/kernel-$variant.log
vm=$REPO/tests/vm
fragments="$vm/kernel.config"
[ "$variant" = flowmap ] || fragments+=" $vm/kernel.$variant.config"
for f in $fragments; do
	[ -e "$f" ] || die "no kernel variant $variant: $f is missing"
done

export KBUILD_BUILD_TIMESTAMP='2025-01-01 00:00:00' KBUILD_BUILD_USER=flowmap
export KBUILD_BUILD_HOST=flowmap KBUILD_BUILD_VERSION=1

# where the kernel can count executed lines, those of our files are
gcov=()
# shellcheck disable=SC2086
if grep -qsx CONFIG_GCOV_KERNEL=y $fragments; then
	for f in $(overlay_files | sed -n 's,^.*/\(.*\)\.c$,\1.o,p'); do
		gcov+=("GCOV_PROFILE_$f=y")
	done
fi

kmake()
{
	make -C "$ksrc" O="$obj" CC='ccache gcc' HOSTCC='ccache gcc' "${gcov[@]}" "$@"
}

# failed TEXT: die with the first line of the log that looks like an error
failed()
{
	! grep -q 'No space left' "$log" || die "no space left on the disk of $BUILD: make room"
	die "$1: $(grep -m1 -E 'error:|undefined|Error|ERROR' "$log" || tail -1 "$log"), see $log"
}

# almost all objects are the same
[ "$variant" != off ] || [ -e "$obj" ] || [ ! -e "$BUILD/kernel/flowmap/vmlinux" ] ||
	cp -a "$BUILD/kernel/flowmap" "$obj"
mkdir -p "$obj" "$boot"
: > "$log"
# shellcheck disable=SC2086
key=$(sum $fragments "$vm/kernel.sh" "$SRC/stock.stamp")
if ! fresh "$obj/.config.stamp" "$key"; then
	room 4000 "$BUILD"
	step 3 "kernel $variant: configuring"
	# shellcheck disable=SC2086
	{
		kmake tinyconfig &&
		"$ksrc/scripts/kconfig/merge_config.sh" -m -O "$obj" "$obj/.config" $fragments &&
		kmake olddefconfig
	} >> "$log" 2>&1 || failed "cannot configure the kernel"
	# the last word on each symbol
	# shellcheck disable=SC2086
	lost=$(sed -n 's/^\(# \)\?\(CONFIG_[A-Z0-9_]*\).*/\2 &/p' $fragments |
		awk '{ want[$1] = substr($0, length($1) + 2) } END { for (s in want) print want[s] }' |
		grep -v '^#' | grep -vxFf "$obj/.config")
	[ -z "$lost" ] || die "this kernel does not have what is wanted: $lost"
	stamp "$obj/.config.stamp" "$key"
fi

# the percentage is of the steps that a whole build takes
step 3 "kernel $variant: building (log: ${log#"$REPO"/})"
kmake -j"$(nproc)" vmlinux modules 2>&1 | tee -a "$log" |
	gawk -v total=1970 '
	/^  (CC|AS|AR|LD|HOSTCC)/ { p = int(100 * ++n / total) }
	p >= last + 5 && p < 100 { last = p - p % 5; printf "      %d%%\n", last; fflush() }
	/^  (LD|BTF|BTFIDS|OBJTOOL) +(\[M\] +)?(vmlinux|.tmp_vmlinux)/ { print "    " $0; fflush() }'
[ "${PIPESTATUS[0]}" = 0 ] || failed "the kernel does not build"

# modules that tests bring, built in a copy because kbuild writes beside the source
mods=$obj/tests-modules
if grep -qx CONFIG_BPF_MODULAR_MAPS=y "$obj/.config"; then
	for f in "$REPO"/tests/modules/*; do
		install_changed "$f" "$mods/${f##*/}"
	done
	# their BTF refers to vmlinux's, by number
	find "$mods" -name '*.ko' ! -newer "$obj/vmlinux" -delete
	kmake M="$mods" modules >> "$log" 2>&1 || failed "tests/modules does not build"
fi

gcc -O2 -o "$boot/../tsc" "$vm/tsc.c" >> "$log" 2>&1 || failed "tests/vm/tsc.c does not build"

# newer than what boots?
if [ "$boot/modules.sqfs" -nt "$obj/modules.order" ] &&
   [ "$boot/modules.sqfs" -nt "$obj/vmlinux" ] &&
   [ -z "$(find "$obj" -name '*.ko' -newer "$boot/modules.sqfs" -print -quit)" ]; then
	exit 0
fi
{
	rm -rf "$boot/tmp" && mkdir "$boot/tmp" &&
	objcopy --strip-debug "$obj/vmlinux" "$boot/tmp/vmlinux" &&
	kmake INSTALL_MOD_STRIP=1 INSTALL_MOD_PATH="$boot/tmp" modules_install &&
	{ [ ! -d "$mods" ] ||
	  kmake M="$mods" INSTALL_MOD_STRIP=1 INSTALL_MOD_PATH="$boot/tmp" modules_install; } &&
	rm -f "$boot"/tmp/lib/modules/*/{build,source} &&
	mksquashfs "$boot/tmp/lib/modules" "$boot/tmp/modules.sqfs" -quiet -no-progress \
		-all-root -noappend -comp lz4 &&
	mv "$boot/tmp/vmlinux" "$boot/vmlinux" &&
	mv "$boot/tmp/modules.sqfs" "$boot/modules.sqfs" &&
	rm -rf "$boot/tmp"
} >> "$log" 2>&1 || failed "cannot install the kernel"
