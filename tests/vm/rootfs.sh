#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Step 4: the guest's root file system, Debian 13 by mmdebstrap, once for all
# clones: a squashfs in the cache folder, named by the checksum of what it is made
# by. The mirror is the one that this machine's apt uses.

# shellcheck source=tests/vm/lib.sh
. "$(dirname "$0")/lib.sh"
lock "$CACHE/.lock"

list=$REPO/tests/vm/guest-packages.list
log=$LOG/rootfs.log
img=$CACHE/rootfs-$(grep -hv '^#' "$list" "$0" | sha256sum | cut -c1-12).sqfs
ln -sfn "$img" "$BUILD/rootfs.sqfs"
if [ -e "$img" ]; then
	step 4 "root file system: up to date"
	exit 0
fi

step 4 "root file system: Debian 13 with $(words "$list" | wc -w) packages (log: ${log#"$REPO"/})"
room 1500 "$CACHE"
: > "$log"
room 1500 "${TMPDIR:-/tmp}"
# shellcheck disable=SC2016
mirror=$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' |
	sed -n 's/^Debian \(http.*\)/\1/p' | head -1)
proxy=$(apt-config shell p Acquire::http::Proxy | sed "s/^p='\(.*\)'$/\1/")
trap 'rm -f "$img.$$"' EXIT
# all else of the guest's start is tests/vm/guest-init, which the image need not know
# shellcheck disable=SC2016
init='#!/bin/sh
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro repo /mnt &&
exec /bin/bash /mnt/tests/vm/guest-init'
mmdebstrap --variant=essential --include="$(words "$list" | tr ' ' ,)" \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
	${proxy:+--aptopt="Acquire::http::Proxy \"$proxy\";"} \
	--customize-hook="printf '%s\n' '$init' > \"\$1/usr/sbin/vm-init\"; chmod 755 \"\$1/usr/sbin/vm-init\"" \
	--format=tar trixie - ${mirror:+"$mirror"} 2>> "$log" |
	sqfstar -comp lz4 -quiet -no-progress "$img.$$" >> "$log" 2>&1
[ "${PIPESTATUS[*]}" = "0 0" ] ||
	die "mmdebstrap failed: $(grep -E '^E:|cannot|ERROR' "$log" | head -1) (network? see $log)"
mv "$img.$$" "$img"
find "$CACHE" -name 'rootfs-*.sqfs' ! -path "$img" -mtime +7 -delete
