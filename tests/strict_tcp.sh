#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# strict_tcp.sh [PACKETS [SEED]]: xdp_ct attach --strict-tcp, packet by packet. The
# test makes both ends' packets itself, handshakes included; the hosts' own TCP
# hears nothing of it.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

hosts
ruleset
for end in "client c0" "server s0"; do
	read -r host dev <<< "$end"
	on "$host" nft "add table netdev mute; add chain netdev mute in {
		type filter hook ingress device $dev priority 0; policy drop; }"
done
on router ip neigh replace 10.0.1.2 dev rc lladdr "$CLIENT_MAC" nud permanent
on router ip neigh replace 203.0.113.2 dev rs lladdr "$SERVER_MAC" nud permanent
succeeds "attach --strict-tcp" on router xdp_ct attach --strict-tcp rc rs
matches "status says so" 'rc: .*strict-tcp' "$(on router xdp_ct status)"
cases python3 "$TESTS/strict_tcp.py" "$@"
succeeds "attach again" on router xdp_ct attach --strict-tcp rc rs
on router xdp_ct detach
equal "detach: no map is left" "" "$(bpftool map show name tcp_windows)"
cleanup
finish
