#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# xdp_ct as a user meets it: attach, replace, detach, statistics, a stranger's
# program, iproute2 alone; and real traffic through it, also while rules, devices
# and programs go.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

program_of()
{
	on router ip -d link show dev "$1" | sed -n 's/.*prog\/xdp id \([0-9]*\).*/\1/p'
}

LEAST=$((PATIENCE == 1 ? 99 : 95))

# iperf NAME ARGS...: must arrive whole, by XDP to 99 of 100; 95 where it is less
iperf()
{
	local name=$1 before_xdp before_all xdp all out

	shift
	before_xdp=$(redirected rc rs)
	on router conntrack -F 2> /dev/null
	before_all=$(accounted)
	out=$(on client timeout "$MINUTE" iperf3 -J -c 203.0.113.2 "$@" 2>&1)
	result $? "$name: iperf3 ends well" "$out"
	xdp=$(($(redirected rc rs) - before_xdp))
	all=$(($(accounted) - before_all))
	[ "$xdp" -ge "$(few 500)" ] && [ $((100 * xdp)) -ge $((LEAST * all)) ] && [ "$xdp" -le "$all" ]
	result $? "$name: $LEAST of 100 packets by XDP, all accounted" \
		"expected: $LEAST of 100 packets, $(few 500) at least
got:      $xdp by XDP of $all"
	echo "# $name: $xdp of $all packets by XDP"
}

hosts
ruleset
on server iperf3 -s -D > /dev/null
wait_until on server sh -c 'ss -ltn | grep -q :5201'

# Attach and detach
refused "attach: a device that there is not" "no such device" on router xdp_ct attach rc nowhere
equal "attach: all or nothing" "" "$(program_of rc)"
refused "attach: no device" "which device" on router xdp_ct attach
refused "attach: loopback has no Ethernet frames" "not an Ethernet device" on router xdp_ct attach lo
on router ip link add dummy type dummy
refused "attach: a device without native XDP" "--mode skb" on router xdp_ct attach dummy
succeeds "attach: which takes --mode skb" on router xdp_ct attach --mode skb dummy
refused "attach: the other mode" "xdp_ct detach dummy" on router xdp_ct attach dummy
on router xdp_ct detach dummy
refused "attach: two devices, and the second fails" "--mode skb" on router xdp_ct attach rc dummy
equal "attach: then the first has nothing" "" "$(program_of rc)"
on router xdp_ct attach rc
first=$(program_of rc)
refused "attach: again, and the second fails" "--mode skb" \
	on router xdp_ct attach --pin /sys/fs/bpf/pin rc dummy
equal "attach: then the first has what it had, and no pin is left" "$first " \
	"$(program_of rc) $(find /sys/fs/bpf -mindepth 1)"
mkdir /sys/fs/bpf/own
refused "attach: and with a directory that was there" "--mode skb" \
	on router xdp_ct attach --pin /sys/fs/bpf/own rc dummy
succeeds "attach: then it is there still, and empty" rmdir /sys/fs/bpf/own
succeeds "attach --pin" on router xdp_ct attach --pin /sys/fs/bpf/pin rc
equal "attach --pin: it is the flowmap of the device" \
	"$(on router xdp_ct status --json | jq '.devices[0].flowmap_id')" \
	"$(bpftool -j map show pinned /sys/fs/bpf/pin/flowmap | jq .id)"
refused "attach --pin: not a bpffs" "needs a bpffs" on router xdp_ct attach --pin /tmp/pin rc
on router xdp_ct detach rc
matches "detach: what is pinned stays" "name flowmap" "$(bpftool map show name flowmap)"
on router xdp_ct attach rc
refused "attach --pin: beside another flowmap" "is another map" \
	on router xdp_ct attach --pin /sys/fs/bpf/pin rc
mkdir /tmp/pin
touch /tmp/pin/flowmap
refused "detach --pin: what is there is not a map" "no pinned flowmap" \
	on router xdp_ct detach --pin /tmp/pin
equal "detach --pin: then all is as it was" "/tmp/pin/flowmap $(program_of rc)" \
	"$(echo /tmp/pin/*) $(on router xdp_ct status --json rc | jq '.devices[0].prog_id')"
refused "detach --pin: another namespace's" "no pinned flowmap" \
	on client xdp_ct detach --pin /sys/fs/bpf/pin
succeeds "detach --pin" on router xdp_ct detach --pin /sys/fs/bpf/pin
equal "detach --pin: nothing is left" "" "$(find /sys/fs/bpf -mindepth 1)"
on router ip link del dummy
# not on the router: where packets are forwarded the stack has it off
modprobe lro
ip link set lro0 netns client
refused "attach: LRO" "ethtool -K lro0 lro off" on client xdp_ct attach --mode skb lro0
on client ethtool -K lro0 lro off
refused "attach: VLAN tags taken off" "ethtool -K lro0 rxvlan off" \
	on client xdp_ct attach --mode skb lro0
on client ethtool -K lro0 rxvlan off
succeeds "attach: LRO and VLAN, off as it was told" on client xdp_ct attach --mode skb lro0
on client xdp_ct detach
rmmod lro
refused "attach: an option of another command" "unrecognized option" on router xdp_ct attach --watch rc
for n in 0 1 4294967296; do
	refused "attach: --max-entries $n" "a number from 2 to 4294967295" \
		on router xdp_ct attach rc --max-entries $n
done
on client ip link set dev c0 mtu 9000
refused "attach: frames that are too long for native XDP" "MTU .*--mode skb" on router xdp_ct attach rc
on client ip link set dev c0 mtu 1500
on router ip link add link rc name rc.9 type vlan id 9
on router xdp_ct attach --mode skb rc.9
refused "attach: a device above has a program" "upper device already has a program" \
	on router xdp_ct attach --mode skb rc
on router ip link del rc.9
refused "attach: more entries than a flowmap may have" "above what a flowmap may have" \
	on router xdp_ct attach rc --max-entries 16777217
refused "attach: a mode that there is not" "native or skb" on router xdp_ct attach rc --mode foo
refused "no command" "Usage: xdp_ct COMMAND" xdp_ct
refused "a command that there is not" "Usage: xdp_ct COMMAND" xdp_ct attack rc
for command in "" attach detach status stats flows monitor; do
	# shellcheck disable=SC2086 # no command is one, too
	matches "help: xdp_ct $command: has examples" "^Examples:" "$(xdp_ct $command --help)"
done
refused "flows: nowhere attached" "xdp_ct attach DEV" on router xdp_ct flows
refused "stats: nowhere attached" "xdp_ct attach DEV" on router xdp_ct stats
# as it is on other kernels: nothing in /sys/kernel/bpf, nobody to load the module
sysctl -qw kernel.modprobe=/bin/false
rmmod nf_flow_table_bpf_flowmap 2> /dev/null
equal "status: no module" "module nf_flow_table_bpf_flowmap: not loaded" \
	"$(on router xdp_ct status)"
refused "attach: no module" "modprobe nf_flow_table_bpf_flowmap" on router xdp_ct attach rc
refused "attach: a kernel without modular maps" "CONFIG_BPF_MODULAR_MAPS" \
	on router unshare -m sh -c 'mount -t tmpfs none /sys/kernel/bpf && exec xdp_ct attach rc'
sysctl -qw kernel.modprobe=/sbin/modprobe
refused "attach: no capability" "root" on router setpriv --reuid 65534 --clear-groups \
	"$(command -v xdp_ct)" attach rc
succeeds "attach: one device of two" on router xdp_ct attach rs
matches "stats: no counters" '^rs: forwarded not counted \(attach --counters\) passed .* dropped 0$' \
	"$(on router xdp_ct stats)"
equal "stats --json: no counters" null "$(on router xdp_ct stats --json | jq .rs.forwarded)"
refused "stats: not attached" "rc: xdp_ct is not attached" on router xdp_ct stats rs rc
matches "status: no counters" \
	'^rs: mode native, program [0-9]+, flowmap [0-9]+ \(max_entries 65536, [0-9]+ entries\)$' \
	"$(on router xdp_ct status)"
succeeds "attach: two devices" on router xdp_ct attach rc rs --counters
first=$(program_of rc)
matches "attach: has put a program on" '^[0-9]+$' "$first"
equal "status: the module" "module nf_flow_table_bpf_flowmap: loaded" \
	"$(on router xdp_ct status | head -1)"
flowmap=$(bpftool -j map show name flowmap | jq .id)
for dev in rc rs; do
	matches "status: $dev" \
		"^$dev: mode native, program $(program_of $dev), flowmap $flowmap \(max_entries 65536, [0-9]+ entries, counters\)\$" \
		"$(on router xdp_ct status)"
done
equal "status: --json is JSON, with both devices" 2 \
	"$(on router xdp_ct status --json rc rs | jq '[.devices[] | select(.attached)] | length')"
# by volume: what ends by the clock ends with resets, and a window of data on the way
iperf "TCP" -n "$(few 20)M"
iperf "TCP back" -n "$(few 20)M" -R
iperf "UDP" -u -b 10M -l 200 -t 2
equal "stats: veth has counted the same" "$(redirected rc rs)" "$(counted)"

# numbered packets, and room for them while the guest's CPUs are with the verifier
before=$(counted)
python3 -c '
import socket, time
from lib import udp_socket
client = udp_socket("client", "10.0.1.2", 6000)
server = udp_socket("server", "203.0.113.2", 6000, 0)
server.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
sent, got, start = 0, set(), time.monotonic()
while sent < 3000 or time.monotonic() - start < 8:
    client.sendto(b"%d" % sent, ("203.0.113.2", 6000))
    sent += 1
    time.sleep(0.002)
    try:
        while True:
            data, to = server.recvfrom(100)
            got.add(int(data))
            if not sent % 100:
                server.sendto(data, to)
    except BlockingIOError:
        pass
print([n for n in range(sent) if n not in got])' > /tmp/replaced &
sleep 1
for _ in 1 2 3; do
	on router xdp_ct attach rc rs --counters || echo "# attach exits with $?"
done
# other options: maps of their own, for which the old ones go once nobody has them
on router xdp_ct attach rc rs || echo "# attach exits with $?"
on router xdp_ct attach rc rs --strict-tcp --max-entries 1000 || echo "# attach exits with $?"
equal "attach: other options take their place" "1000 true" \
	"$(on router xdp_ct status --json | jq -r '.devices[0] | "\(.max_entries) \(.strict_tcp)"')"
for options in "--max-entries 2000 --strict-tcp" "--counters"; do
	# shellcheck disable=SC2086 # words of their own
	refused "attach: one device of two, $options" "attach all at once" \
		on router xdp_ct attach rc $options
done
on router xdp_ct attach rc rs --counters || echo "# attach exits with $?"
second=$(program_of rc)
wait $!
[ "$second" != "$first" ] && [ -n "$second" ]
result $? "attach: replaces an older xdp_ct" "expected: another than $first
got:      $second"
equal "attach: no packet lost by that" "[]" "$(< /tmp/replaced)"
[ "$(counted)" -gt $((before + 1000)) ]
result $? "attach: counters go on" "expected: more than $((before + 1000))
got:      $(counted)"
succeeds "detach: one device" on router xdp_ct detach rc
equal "detach: it is off" "" "$(program_of rc)"
matches "detach: the other is not" '^[0-9]+$' "$(program_of rs)"
succeeds "detach: all that are left" on router xdp_ct detach
equal "detach: no program, no map left" "" "$(program_of rs)$(bpftool map show name flowmap)"

on router ip link property add dev rc altname lan
on router xdp_ct attach rc lan &
attached=$!
on router xdp_ct attach rs
wait $attached
equal "attach: two at once, one of them twice: both share a map" "rc rs 1" \
	"$(on router xdp_ct status --json | jq -r '.devices | "\(map(.dev) | join(" ")) \(map(.flowmap_id) | unique | length)"')"
equal "attach --json: as status" "$(on router xdp_ct status --json rs | jq 'del(.. | .prog_id?)')" \
	"$(on router xdp_ct attach --json rs | jq 'del(.. | .prog_id?)')"
equal "detach --json: a device by another name, twice" '[["rc",false]]' \
	"$(on router xdp_ct detach --json lan rc | jq -c '.devices | map([.dev, .attached])')"
equal "detach --json: all that are left" '[["rs",false]]' \
	"$(on router xdp_ct detach --json | jq -c '.devices | map([.dev, .attached])')"

on router xdp_ct attach rc rs --strict-tcp
iperf "TCP, strict" -n "$(few 20)M"
iperf "TCP back, strict" -n "$(few 20)M" -R
equal "TCP, strict: all was in the windows" null "$(on router xdp_ct stats --json | jq '.rc.tcp_window')"
on router xdp_ct detach

# What is seen of flows. A connection to another port is there, too.
flow_lines()
{
	on router xdp_ct flows "$@" | wc -l
}

on router xdp_ct attach rc rs --counters
on router conntrack -F 2> /dev/null
# not by 'on', whose shell is what 'kill' would hit
nsenter --net=/run/netns/router xdp_ct monitor > /tmp/monitor &
monitor=$!
nsenter --net=/run/netns/router xdp_ct monitor --json -p udp > /tmp/monitor.json &
monitor="$monitor $!"
python3 -c '
import time
from lib import tcp_pair, udp_socket
tcp = tcp_pair("client", "server", "203.0.113.2", 5300)
client = udp_socket("client", "10.0.1.2", 6200)
server = udp_socket("server", "203.0.113.2", 6100)
while True:
    client.sendto(b"echo", ("203.0.113.2", 6100))
    server.sendto(*server.recvfrom(100))
    client.recv(100)
    for s in tcp:
        s.sendall(b"data")
    for s in tcp:
        s.recv(100)
    time.sleep(0.1)' &
traffic=$!
wait_until sh -c 'nsenter --net=/run/netns/router xdp_ct flows | wc -l | grep -qx 4'
sleep 1
equal "flows: all connections, both directions" 4 "$(flow_lines)"
for filter in "-p tcp:2" "--proto 47:0" "-s 10.0.1.0/24:4" "-s 10.0.1.3:0" \
	"-s 10.0.1.3/31:4" "-d 203.0.113.2:4" "--dst 203.0.113.1:0" "--dport 6100:2" \
	"--sport 6200 -p udp:2" "--sport 6200 -p tcp:0" "-f ipv4:4" "--family ipv6:0" "-s ::/0:0" \
	"-i rs:4" "--dev lo:0" "-m 0:4" "-m 1:0" "-z 0:4" "-z 7:0" "--needs-stack:0"; do
	# shellcheck disable=SC2086 # words of their own
	equal "flows ${filter%:*}" "${filter##*:}" "$(flow_lines ${filter%:*})"
done
refused "flows: not an address" "not an address" on router xdp_ct flows -s nowhere
for filter in "--dport 65536" "--sport 0" "-p 0"; do
	# shellcheck disable=SC2086 # words of their own
	refused "flows: $filter" "a number from 1 to" on router xdp_ct flows $filter
done
matches "flows: as conntrack -L" '^udp original iif=rc src=10.0.1.2 dst=203.0.113.2 sport=6200 dport=6100 oif=rs src=203.0.113.1 dst=203.0.113.2 sport=6200 dport=6100 \[SNAT\] packets=[0-9]+ bytes=[0-9]+ idle=[0-9]+ mark=0 zone=0 id=[0-9]+$' \
	"$(on router xdp_ct flows -p udp)"
equal "flows --json: the same" '"udp original rc 10.0.1.2 6100 rs 203.0.113.1 true"' \
	"$(on router xdp_ct flows --json -p udp | jq '.[] | select(.direction == "original") |
		"\(.protocol) \(.direction) \(.ingress.dev) \(.ingress.src) \(.ingress.dport) \(.egress.dev) \(.egress.src) \(.snat)"')"
lines='[23]'
[ $PATIENCE = 1 ] || lines='([2-9]|1[0-3])'
matches "flows --watch --json: a line each second" "^$lines 4\$" \
	"$(on router timeout $((2 * PATIENCE)).8 xdp_ct flows --watch --json | jq -s -r '"\(length) \(.[0] | length)"')"
matches "stats --watch: rates" '^rc: forwarded [0-9]+ packets/s [0-9]+ bit/s passed/s .* dropped/s 0$' \
	"$(on router timeout 2.8 xdp_ct stats --watch)"
matches "stats: totals" '^rc: forwarded [0-9]{2,} packets [0-9]{3,} bytes passed( [a-z_]+ [0-9]+)+ dropped 0$' \
	"$(on router xdp_ct stats)"
nsenter --net=/run/netns/router xdp_ct flows --watch -p udp > /tmp/flows &
watch=$!
nsenter --net=/run/netns/router xdp_ct stats --watch --json > /tmp/stats.json &
watch="$watch $!"
wait_until sh -c 'grep -c "^$" /tmp/flows | grep -q "[^01]"'
wait_until jq -s -e 'length > 1' /tmp/stats.json
# shellcheck disable=SC2086 # two
kill $watch
matches "flows --watch: again each second, with a line between" '^([2-9]) \1 \1$' \
	"$(awk '/^udp original / { o++ } /^udp reply / { r++ } /^$/ { n++ } END { print o, r, n }' /tmp/flows)"
equal "stats --watch --json: totals each second, which grow" true \
	"$(jq -s 'map(.rc.forwarded.packets) | length > 1 and unique == .' /tmp/stats.json)"
on router conntrack -U -p udp --mark 5 > /dev/null 2>&1
wait_until grep -q " update udp reply .* mark=5 " /tmp/monitor
equal "flows -m 5: another mark" 2 "$(flow_lines -m 5)"
kill $traffic
wait $traffic 2> /dev/null
on router conntrack -D -p udp > /dev/null 2>&1
wait_until grep -q "destroy udp reply" /tmp/monitor
on router xdp_ct attach rc rs --counters --strict-tcp
wait_until grep -q "replace rs" /tmp/monitor
on router xdp_ct detach
wait_until grep -q "detach rs" /tmp/monitor
on router xdp_ct attach rs
wait_until grep -q " attach rs" /tmp/monitor
on router xdp_ct detach
# the other one, too
wait_until jq -s -e 'map(select(.event == "destroy")) | length > 1' /tmp/monitor.json
# shellcheck disable=SC2086 # two
kill $monitor
matches "monitor: a new flow" '^\[[0-9]+\.[0-9]{6}\] +new udp original iif=rc src=10.0.1.2 ' "$(< /tmp/monitor)"
matches "monitor: a change" ' update udp original iif=rc src=10.0.1.2 .* mark=5 ' "$(< /tmp/monitor)"
matches "monitor: its end" ' destroy udp reply iif=rs src=203.0.113.2 ' "$(< /tmp/monitor)"
matches "monitor: a program replaced" ' replace rc mode native strict-tcp program ' "$(< /tmp/monitor)"
matches "monitor: and put on again" ' attach rs mode native program ' "$(< /tmp/monitor)"
matches "monitor: and taken off" ' detach rs mode native strict-tcp program ' "$(< /tmp/monitor)"
equal "monitor --json, filtered: both directions, new and destroyed" "2 2" \
	"$(jq -s -r 'map(select(.flow.protocol == "udp").event) |
		"\(map(select(. == "new")) | length) \(map(select(. == "destroy")) | length)"' /tmp/monitor.json)"
equal "monitor --json, filtered: and marked" 2 \
	"$(jq -s 'map(select(.event == "update" and .flow.mark == 5)) | length' /tmp/monitor.json)"
equal "monitor --json, filtered: nothing else but devices" 0 \
	"$(jq -s 'map(select(.flow and .flow.protocol != "udp")) | length' /tmp/monitor.json)"

# full: two connections talk; does status say that there is no room for all?
full()
{
	python3 -c 'from flows import UdpFlow; UdpFlow().talk(), UdpFlow().talk()'
	on router xdp_ct status rc | grep -E ' \(max_entries 2, 2 entries, [1-9][0-9]* flows did not fit\)$'
}

on router conntrack -F 2> /dev/null
on router xdp_ct attach rc --max-entries 2
succeeds "status: more connections than the map has room for" wait_until full
equal "status --json: the same" "2 true" "$(on router xdp_ct status --json rc |
	jq -r '.devices[0] | "\(.entries) \(.full > 0)"')"
equal "flows: what comes in by rs is not on XDP" "rs not_attached" \
	"$(on router xdp_ct flows --json --needs-stack |
		jq -r '.[] | "\(.ingress.dev) \(.needs_stack | join(" "))"')"
equal "status: nor is what leaves by rc" '{"not_attached":1}' "$(on router xdp_ct status --json rc |
	jq -c '.devices[0].needs_stack')"
on router xdp_ct detach

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
on router sysctl -qw net.netfilter.nf_flowtable_udp_timeout=300 \
	net.netfilter.nf_flowtable_tcp_timeout=300
on router xdp_ct detach

# iproute2 alone: each device has a map of its own. The README's program, too.
for obj in xdp_ct/xdp_ct bpf/readme; do
	for dev in rc rs; do
		succeeds "ip link: $obj on $dev" on router ip link set dev $dev xdp \
			obj "$BUILD/$obj.bpf.o" sec xdp
	done
	iperf "ip link: $obj" -u -b 5M -l 200 -t 2
	for dev in rc rs; do
		on router ip link set dev $dev xdp off
	done
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
