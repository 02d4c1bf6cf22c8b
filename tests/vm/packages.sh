#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Step 1: install the Debian packages of packages.list that miss; the only
# step that needs root

# shellcheck source=tests/vm/lib.sh
. "$(dirname "$0")/lib.sh"

missing()
{
	# shellcheck disable=SC2046
	words "$REPO/tests/vm/packages.list" | tr ' ' '\n' | sort |
		comm -23 - <(dpkg-query -W -f '${db:Status-Status} ${Package}\n' 2>/dev/null |
			sed -n 's/^installed //p' | sort)
}

command -v dpkg-query > /dev/null || die "this is not Debian: use Debian 12 or 13"
todo=$(missing | xargs)
if [ -z "$todo" ]; then
	step 1 "packages: all there"
	exit 0
fi

step 1 "packages: installing $todo"
sudo=
if [ "$(id -u)" != 0 ]; then
	command -v sudo > /dev/null || die "not root and no sudo: as root, apt-get install $todo"
	sudo=sudo
fi
log=$LOG/packages.log
{
	# -n only where nobody could answer
	[ -z "$sudo" ] || [ -t 0 ] || sudo="sudo -n"
	$sudo apt-get update
	# shellcheck disable=SC2086
	$sudo env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y --no-install-recommends $todo
} > "$log" 2>&1 < /dev/null ||
	die "apt-get failed: $(grep -E '^(E|Err|sudo):' "$log" | tail -1) (network, sudo? see $log)"
[ -z "$(missing)" ] || die "still missing: $(missing | xargs), see $log"
