#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Step 2: Debian's kernel source, once as it is (build/src/stock, for
# comparisons and the series) and once with overlay and patches
# (build/src/flowmap). Unchanged files keep their times, so a changed file
# rebuilds what depends on it and no more.

# shellcheck source=tests/vm/lib.sh
. "$(dirname "$0")/lib.sh"
lock "$BUILD/.lock"

log=$LOG/source.log
name=linux-source-6.12
least=6.12.117 # the first whose flowtable the patches fit
security="have Debian's security archive among apt's sources and run apt-get update"
stock=$SRC/stock
ours=$SRC/flowmap

# newest: the newest that is there, if it is new enough
newest()
{
	local deb

	deb=$(find "$1" -name "${name}_*_all.deb" | sort -V | tail -1)
	dpkg --compare-versions "$(cut -d_ -f2 <<< "${deb##*/}")" ge "$least" && echo "$deb"
}

deb=$(newest "$CACHE")
if [ -z "$deb" ]; then
	step 2 "kernel source: downloading $name"
	room 1000 "$CACHE"
	tmp=$CACHE/tmp.$$
	trap 'rm -rf "$tmp"' EXIT
	mkdir "$tmp"
	if ! (cd "$tmp" && apt-get -o APT::Sandbox::User=root download "$name") > "$log" 2>&1; then
		grep -q 'Unable to locate\|No packages found\|has no candidate' "$log" &&
			die "apt knows no $name: $security"
		die "cannot download $name: $(grep '^[EW]:' "$log" | tail -1) (network? apt-get update?)"
	fi
	[ -n "$(newest "$tmp")" ] || die "apt has no $name of $least or newer: $security"
	mv "$tmp"/*.deb "$CACHE"
	deb=$(newest "$CACHE")
fi

key=$(basename "$deb")
if ! fresh "$SRC/stock.stamp" "$key"; then
	step 2 "kernel source: unpacking ${deb##*/}"
	room 6000 "$BUILD"
	rm -rf "$stock" "$ours" "$stock".* "$ours".* && mkdir "$stock.tmp" || exit 1
	# graphics and other machines' code is half of the source
	dpkg-deb --fsys-tarfile "$deb" | tar -xO "./usr/src/$name.tar.xz" |
		tar -xJ -C "$stock.tmp" --strip-components=1 \
		    --exclude='*/drivers/gpu/*.[ch]' --exclude='*/arch/*/boot/dts' \
		    --exclude='*/drivers/net/wireless/*.[ch]' --exclude='*/sound/*.[ch]' \
		    > "$log" 2>&1
	[ "${PIPESTATUS[*]}" = "0 0 0" ] ||
		die "cannot unpack $deb: remove it if it is damaged, or make room; see $log"
	cp -al "$stock.tmp" "$ours" && mv "$stock.tmp" "$stock" && stamp "$SRC/stock.stamp" "$key"
fi

# shellcheck disable=SC2046
key=$(sum $(patches) $(overlay_files | sed "s,^,$REPO/,"))
if fresh "$SRC/flowmap.stamp" "$key"; then
	step 2 "kernel source: up to date"
	exit 0
fi
step 2 "kernel source: $(patches | wc -l) patches, $(overlay_files | wc -l) new files"
STAGE_REPLACE='' stage "$stock" "$SRC/staged" || exit 1
rm -f "$SRC/flowmap.stamp"
touch "$SRC/flowmap.files"
(cd "$SRC/staged" && find . -type f | sort) > "$SRC/flowmap.files.new"
# what is ours no more goes back to what it was
comm -23 "$SRC/flowmap.files" "$SRC/flowmap.files.new" | while read -r f; do
	rm -f "$ours/$f"
	[ ! -e "$stock/$f" ] || cp "$stock/$f" "$ours/$f"
done
# both lists until all is copied: an interrupted copy is made good later
sort -u -o "$SRC/flowmap.files" "$SRC/flowmap.files" "$SRC/flowmap.files.new"
while read -r f; do
	install_changed "$SRC/staged/$f" "$ours/$f" || die "cannot write $ours/$f: make room"
done < "$SRC/flowmap.files.new"
mv "$SRC/flowmap.files.new" "$SRC/flowmap.files"
stamp "$SRC/flowmap.stamp" "$key"
