#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# twins.sh [FRAMES [SEED]]: the same frames in the same order through two routers
# that differ in one thing: one has xdp_ct. What leaves must be the same bytes on
# the same device.
#
# Both have the same addresses, so that frames are equal to the bit. With xdp_ct
# the flowtable is in snoop mode and without there is none, so what is compared
# is XDP with the slow path, told to let TCP windows and checksums be, as the
# flowtable does. Hosts answer nothing but what the test has them send.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

mute()
{
	on "$1" nft "add table netdev mute; add chain netdev mute in {
		type filter hook ingress device $2 priority 0; policy drop; }"
}

for twin in "" 2; do
	hosts "$twin"
	FAST="" ruleset "router$twin"
	on "router$twin" sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv4.icmp_msgs_per_sec=1000000 \
		net.ipv4.icmp_msgs_burst=1000000 net.netfilter.nf_conntrack_tcp_be_liberal=1 net.netfilter.nf_conntrack_checksum=0
	on "router$twin" ip neigh replace 10.0.1.2 dev rc lladdr "$CLIENT_MAC" nud permanent
	on "router$twin" ip neigh replace 203.0.113.2 dev rs lladdr "$SERVER_MAC" nud permanent
	on "router$twin" ip link set dev rs mtu 1400
	mute "client$twin" c0
	mute "server$twin" s0
done
python3 -c 'import lib; lib.snoop("router")'
succeeds "xdp_ct on one of them" on router xdp_ct attach rc rs --counters
# nobody may join segments on the way; a program is what lets veth take frames from XDP then
python3 -c '
from lib import EXIT, Prog, movi
Prog([movi(0, 2), EXIT]).pin("/sys/fs/bpf/pass")'
for twin in "" 2; do
	on "client$twin" ip link set dev c0 xdp pinned /sys/fs/bpf/pass
	on "server$twin" ip link set dev s0 xdp pinned /sys/fs/bpf/pass
	on "client$twin" ethtool -K c0 gro off
	on "server$twin" ethtool -K s0 gro off
	on "router$twin" ethtool -K rc gro off
	on "router$twin" ethtool -K rs gro off
done
cases python3 "$TESTS/twins.py" "$@"
on router xdp_ct stats
cleanup
finish
