#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# nft_flowtable.sh [ARG...]: the kernel's selftest of that name, as it is, without
# and with xdp_ct on the router that offloads. ARGs are the selftest's; with none
# given it runs with its own defaults, but does not go on to random ones.
#
# The selftest makes its namespaces itself, so what attaches is an nft before the
# real one in PATH: called in a namespace with a flowtable, it looks to it that
# xdp_ct is on that router's devices, and keeps what it has counted. Hosts
# must fill in checksums and tags for XDP to see whole frames, as on real links.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

DIR=$BUILD/src/flowmap/tools/testing/selftests/net/netfilter
SHIM=/tmp/shim
export COUNTED=/tmp/counted MODES=/tmp/modes
size=()
[ $PATIENCE = 1 ] || size=(-s 200000) # it waits for a minute
[ $# -gt 0 ] || set -- -o 9000 -l 1500 -r 2000 "${size[@]}"

mkdir -p $SHIM
cat > $SHIM/nft <<- 'EOT'
	#!/bin/bash
	/usr/sbin/nft "$@"
	status=$?
	{
		if /usr/sbin/nft list flowtables | grep -q devices; then
			for host in $(ip netns list | cut -d' ' -f1); do
				for dev in eth0 veth0 veth1; do
					nsenter --net="/run/netns/$host" ethtool -K "$dev" \
						tx off tso off gso off txvlan off gro on
				done
			done
			for dev in veth0 veth1; do
				[ -e "/sys/class/net/$dev" ] || continue
				xdp_ct status --json "$dev" | jq -e 'any(.devices[]; .attached)' ||
					xdp_ct attach --counters "$dev" ||
					xdp_ct attach --counters --mode skb "$dev"
			done
			xdp_ct status
			xdp_ct status --json | jq -r '[.devices[].mode] | unique | join(" ")' > "$MODES"
			xdp_ct stats --json | jq '[.. | .forwarded? | .packets? // empty] | add // 0' \
				> "$COUNTED"
		fi
	} > /tmp/shim.log 2>&1
	exit $status
EOT
chmod +x $SHIM/nft

# selftest NAME ARG...: each PASS or FAIL that it prints is a result
selftest()
{
	local name=$1 line status=/tmp/status before=$results

	shift
	while IFS= read -r line; do
		case $line in
		PASS:*) result 0 "$name: ${line#PASS: }" ;;
		FAIL:* | ERROR:*) result 1 "$name: ${line#*: }" ;;
		SKIP:*) skip "$name: ${line#SKIP: }" "says the selftest" ;;
		*) echo "# $line" ;;
		esac
	done < <(cd "$DIR" && ./nft_flowtable.sh "$@" 2>&1; echo $? > "$status")
	equal "$name: exits with 0" 0 "$(cat "$status")"
	[ "$results" -gt $((before + 10)) ]
	result $? "$name: has run its cases" "$((results - before)) results"
}

# with_xdp NAME ARG...: the selftest with the shim
with_xdp()
{
	local name=$1

	rm -f $COUNTED $MODES
	PATH=$SHIM:$PATH selftest "$@"
	cat /tmp/shim.log
	[ "$(cat $COUNTED)" -gt "$(few 1000)" ]
	result $? "$name: XDP has carried some" "expected: more than $(few 1000) packets
got:      $(cat $COUNTED)"
	echo "# $(cat $COUNTED) packets by XDP, $(cat $MODES)"
}

selftest "without" "$@"
with_xdp "with xdp_ct" "$@"
with_xdp "with xdp_ct, native" -o 3400 -l 1500 -r 2000 "${size[@]}"
equal "with xdp_ct, native: on all devices" native "$(cat $MODES)"
finish
