#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# xdp_ct as a user meets it: attach, replace, detach, statistics, a stranger's
# program, iproute2 alone; and real traffic through it, also while rules, devices
# and programs go.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

# forwarded DEVICE...: packets that left by XDP redirect, as veth counts them
forwarded()
{
	local dev total=0

	for dev; do
		total=$((total + $(on router ethtool -S "$dev" |
			awk '/rx_queue_[0-9]+_xdp_redirect/ { n += $2 } END { print n + 0 }')))
	done
	echo $total
}

# as xdp_ct itself counts them
counted()
{
	on router xdp_ct stats --json | jq '[.[].forwarded.packets // 0] | add'
}

# packets of all connections, by conntrack's accounting
accounted()
{
	on router conntrack -L 2> /dev/null | grep -o 'packets=[0-9]*' |
		awk -F= '{ n += $2 } END { print n + 0 }'
}

program_of()
{
	on router ip -d link show dev "$1" | sed -n 's/.*prog\/xdp id \([0-9]*\).*/\1/p'
}

# iperf NAME ARGS...: must arrive whole, by XDP to 99 of 100
iperf()
{
	local name=$1 before_xdp before_all xdp all out

	shift
	before_xdp=$(forwarded rc rs)
	on router conntrack -F 2> /dev/null
	before_all=$(accounted)
	out=$(on client timeout 60 iperf3 -J -c 203.0.113.2 "$@" 2>&1)
	result $? "$name: iperf3 ends well" "$out"
	xdp=$(($(forwarded rc rs) - before_xdp))
	all=$(($(accounted) - before_all))
	[ "$xdp" -ge 500 ] && [ $((100 * xdp)) -ge $((99 * all)) ] && [ "$xdp" -le "$all" ]
	result $? "$name: 99 of 100 packets by XDP, all accounted" \
		"expected: 99 of 100 packets, 500 at least
got:      $xdp by XDP of $all"
}

hosts
ruleset
on server iperf3 -s -D > /dev/null
wait_until on server sh -c 'ss -ltn | grep -q :5201'

# Attach and detach
refused "attach: a device that there is not" "no such device" on router xdp_ct attach rc nowhere
equal "attach: all or nothing" "" "$(program_of rc)"
refused "attach: no device" "which device" on router xdp_ct attach
refused "attach: no capability" "root" on router setpriv --reuid 65534 --clear-groups \
	"$(command -v xdp_ct)" attach rc
succeeds "attach: two devices" on router xdp_ct attach rc rs --counters
first=$(program_of rc)
matches "attach: has put a program on" '^[0-9]+$' "$first"
matches "status: tells the devices" '^rc.*' "$(on router xdp_ct status)"
equal "status: --json is JSON, with both devices" 2 \
	"$(on router xdp_ct status --json rc rs | jq '[.devices[] | select(.attached)] | length')"
iperf "TCP" -t 2
iperf "TCP back" -t 2 -R
iperf "UDP" -u -b 10M -l 200 -t 2
equal "stats: veth has counted the same" "$(forwarded rc rs)" "$(counted)"

before=$(counted)
on client sh -c 'iperf3 -c 203.0.113.2 -u -b 2M -l 200 -t 4 -J > /tmp/replaced' &
sleep 1
for _ in 1 2 3; do
	on router xdp_ct attach rc rs --counters || echo "# attach exits with $?"
done
second=$(program_of rc)
wait $!
[ "$second" != "$first" ] && [ -n "$second" ]
result $? "attach: replaces an older xdp_ct" "expected: another than $first
got:      $second"
equal "attach: no packet lost by that" 0 "$(jq .end.sum.lost_packets /tmp/replaced)"
[ "$(counted)" -gt $((before + 1000)) ]
result $? "attach: counters go on" "expected: more than $((before + 1000))
got:      $(counted)"
succeeds "detach: one device" on router xdp_ct detach rc
equal "detach: it is off" "" "$(program_of rc)"
matches "detach: the other is not" '^[0-9]+$' "$(program_of rs)"
succeeds "detach: all that are left" on router xdp_ct detach
equal "detach: no program, no map left" "" "$(program_of rs)$(bpftool map show name flowmap)"

python3 -c '
from lib import EXIT, Prog, movi
Prog([movi(0, 2), EXIT]).pin("/sys/fs/bpf/stranger")'
on router ip link set dev rs xdp pinned /sys/fs/bpf/stranger
stranger=$(program_of rs)
refused "stranger: attach does not replace it" "has XDP program" on router xdp_ct attach rc rs
refused "stranger: detach does not take it off" "not attached" on router xdp_ct detach rs
equal "stranger: it is there, and rc is as it was" "$stranger " "$(program_of rs) $(program_of rc)"
on router ip link set dev rs xdp off

# Long connections outlive the flowtable's time-outs
on router sysctl -qw net.netfilter.nf_flowtable_udp_timeout=2 net.netfilter.nf_flowtable_tcp_timeout=2
on router xdp_ct attach rc rs --counters
iperf "TCP, thrice the time-out" -t 6
iperf "UDP, thrice the time-out" -u -b 1M -l 200 -t 6
on router sysctl -qw net.netfilter.nf_flowtable_udp_timeout=30 \
	net.netfilter.nf_flowtable_tcp_timeout=30
on router xdp_ct detach

# iproute2 alone: each device has a map of its own
for dev in rc rs; do
	succeeds "ip link: the object on $dev" on router ip link set dev $dev xdp \
		obj "$BUILD/xdp_ct/xdp_ct.bpf.o" sec xdp
done
iperf "ip link" -u -b 5M -l 200 -t 2
for dev in rc rs; do
	on router ip link set dev $dev xdp off
done

# Things go while traffic runs; what can, comes back
on router xdp_ct attach rc rs --counters
python3 -c '
from lib import udp_socket
client = udp_socket("client", "10.0.1.2", 6000, 0.05)
server = udp_socket("server", "203.0.113.2", 6000, 0.05)
while True:
    try:
        client.sendto(bytes(200), ("203.0.113.2", 6000))
        server.sendto(*server.recvfrom(300))
        client.recv(300)
    except OSError:
        pass' &
traffic=$!
wait_until sh -c 'nsenter --net=/run/netns/router conntrack -L -p udp --dport 6000 | grep -q OFFLOAD'
sleep 1
on router nft flush ruleset
sleep 0.5
before=$(counted)
sleep 0.5
after=$(counted)
equal "while traffic runs: no ruleset, no XDP" "$before" "$after"
ruleset
sleep 1
before=$(counted)
sleep 0.5
[ "$(counted)" -gt "$before" ]
result $? "while traffic runs: with the ruleset it comes back" "expected: more than $before"
for _ in 1 2 3 4 5; do
	on router xdp_ct detach
	on router xdp_ct attach rc rs --counters || break
	ruleset
	on router ip link set dev rs down
	on router ip link set dev rs up
done
sleep 2
before=$(counted)
sleep 0.5
[ "$(counted)" -gt "$before" ]
result $? "while traffic runs: and after links and programs went" "expected: more than $before"
on router ip link del dev rs
ip netns del router
kill $traffic
wait $traffic 2> /dev/null
cleanup
wait_until rmmod nf_flow_table_bpf_flowmap
equal "while traffic runs: with the namespace gone the module unloads" "" "$(lsmod | grep flowmap)"
finish
