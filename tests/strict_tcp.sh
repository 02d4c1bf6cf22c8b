#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# strict_tcp.sh [PACKETS [SEED]]: xdp_ct attach --strict-tcp, packet by packet. The
# test makes both ends' packets itself, handshakes included; the hosts' own TCP
# hears nothing of it. The same over IPv4, IPv6 and, on the client's side, a VLAN.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

hosts
ruleset
for end in "client c0" "server s0"; do
	read -r host dev <<< "$end"
	on "$host" nft "add table netdev mute; add chain netdev mute in {
		type filter hook ingress device $dev priority 0; policy drop; }"
done
on router ip link add link rc name rc.5 type vlan id 5
on router ip link set dev rc.5 up
on router ip addr add 10.0.5.1/24 dev rc.5
on router sysctl -qw net.ipv6.conf.rc.disable_ipv6=0 net.ipv6.conf.rs.disable_ipv6=0 \
	net.ipv6.conf.all.forwarding=1
on router ip addr add fd01::1/64 dev rc nodad
on router ip addr add fd02::1/64 dev rs nodad
for addr in 10.0.1.2 fd01::2; do
	on router ip neigh replace $addr dev rc lladdr "$CLIENT_MAC" nud permanent
done
on router ip neigh replace 10.0.5.2 dev rc.5 lladdr "$CLIENT_MAC" nud permanent
for addr in 203.0.113.2 fd02::2; do
	on router ip neigh replace $addr dev rs lladdr "$SERVER_MAC" nud permanent
done
succeeds "attach --strict-tcp" on router xdp_ct attach --strict-tcp rc rs
matches "status says so" 'rc: .*strict-tcp' "$(on router xdp_ct status)"
cases python3 "$TESTS/strict_tcp.py" "$@"
succeeds "attach again" on router xdp_ct attach --strict-tcp rc rs
on router xdp_ct detach
equal "detach: no map is left" "" "$(bpftool map show name tcp_windows)"
cleanup
finish
