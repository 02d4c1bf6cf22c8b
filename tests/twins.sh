#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# twins.sh [--skb] [FRAMES [SEED]]: the same frames in the same order through two routers
# that differ in one thing: one has xdp_ct. What leaves must be the same bytes on
# the same device.
#
# Both have the same addresses, so that frames are equal to the bit. With xdp_ct
# the flowtable is in snoop mode and without there is none, so what is compared
# is XDP with the slow path, told to let TCP windows and checksums be, as the
# flowtable does. Hosts are no more than their devices: they answer nothing but
# what the test has them send. Nothing of the routers may depend on the time
# that the test takes, so time-outs are long and neighbours permanent.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

MTU=3400
MODE=native
if [ "$1" = --skb ]; then
	MODE=skb
	shift
fi

[ $# -gt 0 ] || set -- "$(few 100000)"

mute()
{
	on "$1" nft "add table netdev mute; add chain netdev mute in {
		type filter hook ingress device $2 priority 0; policy drop; }"
}

modprobe -a nf_defrag_ipv6 2> /dev/null
modprobe nf_conntrack
succeeds "room for all connections" sysctl -w net.netfilter.nf_conntrack_max=1000000
for twin in "" 2; do
	hosts "$twin"
	on "router$twin" sysctl -qw net.ipv4.icmp_ratelimit=0 \
		net.ipv4.icmp_msgs_per_sec=1000000 net.ipv4.icmp_msgs_burst=1000000 \
		net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0 \
		net.ipv4.ipfrag_time=3600 net.ipv4.ipfrag_max_dist=0 \
		net.ipv4.ipfrag_high_thresh=268435456 \
		net.ipv6.ip6frag_time=3600 net.ipv6.ip6frag_high_thresh=268435456 \
		net.ipv6.icmp.ratelimit=0 net.ipv6.auto_flowlabels=0 \
		net.ipv6.conf.default.addr_gen_mode=1 net.ipv6.conf.default.disable_ipv6=0 \
		net.ipv6.conf.all.forwarding=1
	on "router$twin" nft "table inet load { chain c { type filter hook forward priority 0
		ct state new; }; }; delete table inet load"
	on "router$twin" sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=1 \
		net.netfilter.nf_conntrack_checksum=0 \
		net.netfilter.nf_conntrack_frag6_timeout=3600 \
		net.netfilter.nf_conntrack_frag6_high_thresh=268435456
	for name in udp_timeout udp_timeout_stream generic_timeout tcp_timeout_unacknowledged \
		tcp_timeout_max_retrans icmp_timeout icmpv6_timeout gre_timeout gre_timeout_stream; do
		on "router$twin" sysctl -qw "net.netfilter.nf_conntrack_$name=86400"
	done
	# less than conntrack's own: a flow that is torn down leaves the difference
	on "router$twin" sysctl -qw net.netfilter.nf_flowtable_udp_timeout=3600 \
		net.netfilter.nf_flowtable_tcp_timeout=3600
	for dev in rc rs; do
		on "router$twin" ip addr flush dev $dev
		on "router$twin" ip link set dev $dev mtu $MTU
		on "router$twin" sysctl -qw net.ipv4.conf.$dev.send_redirects=0 \
			net.ipv6.conf.$dev.addr_gen_mode=1 net.ipv6.conf.$dev.disable_ipv6=0
	done
	on "client$twin" ip link set dev c0 mtu $MTU
	on "server$twin" ip link set dev s0 mtu $MTU
	mute "client$twin" c0
	mute "server$twin" s0
done
succeeds "xdp_ct on one of them" on router xdp_ct attach rc rs --counters --mode $MODE
# Nobody may join segments on the way; a program is what lets veth take frames
# from XDP then. The other router has one as well: veth makes the buffers of what
# passes a program anew, and by how they are made, the stack fragments again what
# it has put together.
python3 -c '
from lib import EXIT, Prog, movi
Prog([movi(0, 2), EXIT]).pin("/sys/fs/bpf/pass")'
for twin in "" 2; do
	on "client$twin" ip link set dev c0 xdp pinned /sys/fs/bpf/pass
	on "server$twin" ip link set dev s0 xdp pinned /sys/fs/bpf/pass
	on "client$twin" ethtool -K c0 gro off
	on "server$twin" ethtool -K s0 gro off
	for dev in rc rs; do
		[ -z "$twin" ] || on "router$twin" ip link set dev $dev xdp pinned /sys/fs/bpf/pass
	done
	on "router$twin" ethtool -K rc gro off
	on "router$twin" ethtool -K rs gro off
done
cases python3 "$TESTS/twins.py" "$@"
on router xdp_ct stats
cleanup
finish
