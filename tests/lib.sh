# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0
#
# What the tests share; to be sourced. A test is a script that the guest of
# tests/vm/run runs: it sets up hosts, prints KTAP results and calls finish.
#
# Hosts are network namespaces: client, router and server. Devices are named by
# where they are and, on the router, where they lead to:
#
#   client c0 10.0.1.2/24 --- 10.0.1.1/24 rc router rs 203.0.113.1/24 --- s0 203.0.113.2/24 server
#
# Commands run in one by nsenter, not by 'ip netns exec', which would hide the
# bpffs. veth leaves checksums and segmentation to the receiver, which XDP could
# not make up for: client and server do both themselves. They have GRO on because
# that is when veth takes frames from XDP.

TESTS=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
BUILD=${FLOWMAP_BUILD:-$TESTS/../build}
CLIENT_MAC=02:00:00:00:01:02
RC_MAC=02:00:00:00:01:01
RS_MAC=02:00:00:00:02:01
SERVER_MAC=02:00:00:00:02:02
export TESTS BUILD CLIENT_MAC RC_MAC RS_MAC SERVER_MAC PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH=$TESTS

results=0
failed=0
dmesg -C

# Kernels with sanitizers take their time
PATIENCE=1
[ "${VM_KERNEL:-flowmap}" = flowmap ] || PATIENCE=6
export MINUTE=$((60 * PATIENCE)) # seconds

# few N: and of what there could be any number, a tenth is enough there
few()
{
	[ $PATIENCE = 1 ] && echo "$1" || echo $(($1 / 10))
}

# Results

# result STATUS NAME [DETAIL]: DETAIL is what was expected, and what came
result()
{
	results=$((results + 1))
	if [ "$1" = 0 ]; then
		echo "ok $results - $2"
	else
		failed=$((failed + 1))
		echo "not ok $results - $2"
		[ -z "$3" ] || echo "# ${3//$'\n'/$'\n'# }"
	fi
}

skip()
{
	results=$((results + 1))
	echo "ok $results - $1 # SKIP $2"
}

# equal NAME WANT GOT
equal()
{
	[ "$2" = "$3" ]
	result $? "$1" "expected: $2
got:      $3"
}

# matches NAME PATTERN TEXT: an extended regular expression
matches()
{
	grep -qE -- "$2" <<< "$3"
	result $? "$1" "expected: $2
got:      $3"
}

# succeeds NAME COMMAND...
succeeds()
{
	local name=$1 out status

	shift
	out=$("$@" 2>&1)
	status=$?
	result $status "$name" "$* exits with $status: $out"
}

# refused NAME PATTERN COMMAND...: must fail, and say PATTERN
refused()
{
	local name=$1 pattern=$2 out

	shift 2
	if out=$("$@" 2>&1); then
		result 1 "$name" "expected: $* fails with $pattern
got:      success: $out"
	else
		matches "$name" "$pattern" "$out"
	fi
}

# cases COMMAND...: each 'ok - NAME' or 'not ok - NAME' that it prints is a result
cases()
{
	local line status=/tmp/cases.$$

	while IFS= read -r line; do
		case $line in
		"ok - "*) results=$((results + 1)); echo "ok $results - ${line#ok - }" ;;
		"not ok - "*)
			results=$((results + 1))
			failed=$((failed + 1))
			echo "not ok $results - ${line#not ok - }"
			;;
		"#"*) echo "$line" ;;
		*) echo "# $line" ;;
		esac
	done < <("$@" 2>&1; echo $? > "$status")
	# 1 is said by 'not ok' already, unless it died
	[ "$(cat "$status")" = 0 ] || [ "$failed" -gt 0 ] ||
		result 1 "$* ends" "expected: exit 0
got:      exit $(cat "$status")"
}

# leaks: what kmemleak has found, of what was there for its 5 seconds
leaks()
{
	local file=/sys/kernel/debug/kmemleak

	sleep 6
	# the second looks at what the first has found again; it may have given up
	{ echo scan && echo scan; } > $file || echo "kmemleak does not scan"
	head -60 $file
}

# covered: how often each line of our files ran, for make coverage
covered()
{
	local to=$VM_OUT/gcov/${0##*/}

	mkdir -p "$to"
	find /sys/kernel/debug/gcov \( -path '*/kernel/bpf/modular_maps/*' -o -name 'nf_flow_table_*' \) \
		-name '*.gcda' -exec cp -t "$to" {} +
}

# The last results: the kernel has not complained since the test began, and has
# lost no memory, where it is built to know
finish()
{
	local log

	[ ! -e /sys/kernel/debug/kmemleak ] || equal "no memory lost" "" "$(leaks)"
	[ ! -e /sys/kernel/debug/gcov ] || covered
	log=$(dmesg | awk -f "$TESTS/vm/kcsan.awk" | grep -E -A4 'WARNING|BUG|Oops|KASAN|UBSAN|refcount_t|unregister_netdevice: waiting|stall|INFO: (task|possible)' | head -20)
	equal "no complaint in the kernel's log" "" "$log"
	echo "1..$results"
	exit $((failed > 0))
}

# on HOST COMMAND...
on()
{
	local host=$1

	shift
	nsenter --net="/run/netns/$host" "$@"
}

# wait_until COMMAND...: for 20 seconds, with patience
wait_until()
{
	local end=$((SECONDS + 20 * PATIENCE))

	until "$@" > /dev/null 2>&1; do
		[ "$SECONDS" -lt "$end" ] || return 1
		sleep 0.1
	done
}

# Hosts

# end HOST DEV ADDRESS MAC: one end, up
end()
{
	on "$1" ip addr add "$3" dev "$2"
	on "$1" ip link set dev "$2" address "$4" up
}

# link HOST DEV HOST DEV: what joins hosts; a test may have another
link()
{
	ip link add "$2" netns "$1" type veth peer name "$4" netns "$3"
}

# shellcheck disable=SC2120 # the argument is optional
# hosts [SUFFIX]: client, router and server (with SUFFIX in the name: twins with
# the same devices and addresses)
hosts()
{
	local s=$1 host state

	for host in client router server; do
		ip netns add "$host$s" || exit 1
		on "$host$s" sysctl -qw net.ipv6.conf.all.disable_ipv6=1 \
			net.ipv6.conf.default.disable_ipv6=1
		on "$host$s" ip link set dev lo up
	done
	link "client$s" c0 "router$s" rc || exit 1
	link "server$s" s0 "router$s" rs || exit 1
	end "client$s" c0 10.0.1.2/24 $CLIENT_MAC
	end "router$s" rc 10.0.1.1/24 $RC_MAC
	end "router$s" rs 203.0.113.1/24 $RS_MAC
	end "server$s" s0 203.0.113.2/24 $SERVER_MAC
	on "client$s" ethtool -K c0 tx off tso off gso off gro on > /dev/null
	on "server$s" ethtool -K s0 tx off tso off gso off gro on > /dev/null
	on "client$s" ip route add default via 10.0.1.1
	on "router$s" sysctl -qw net.ipv4.ip_forward=1
	# conntrack's own settings come with its module
	modprobe -a nf_conntrack nft_flow_offload nft_masq nf_conntrack_netlink || exit 1
	# a slow guest needs more than the 30 seconds that an idle flow has; at a
	# flow's end conntrack leaves the connection the difference to its own
	on "router$s" sysctl -qw net.netfilter.nf_conntrack_acct=1 \
		net.netfilter.nf_flowtable_udp_timeout=300 net.netfilter.nf_flowtable_tcp_timeout=300 \
		net.netfilter.nf_conntrack_udp_timeout_stream=600
	# and nothing at all to one that closes, if it has less
	for state in fin_wait close_wait last_ack time_wait close; do
		on "router$s" sysctl -qw "net.netfilter.nf_conntrack_tcp_timeout_$state=600"
	done
}

# The same hosts by IPv6, fd00:1::/64 and fd00:2::/64
hosts6()
{
	local host

	for host in client router server; do
		on $host sysctl -qw net.ipv6.conf.all.disable_ipv6=0
	done
	on router sysctl -qw net.ipv6.conf.all.forwarding=1
	on client ip addr add fd00:1::2/64 dev c0 nodad
	on router ip addr add fd00:1::1/64 dev rc nodad
	on router ip addr add fd00:2::1/64 dev rs nodad
	on server ip addr add fd00:2::2/64 dev s0 nodad
	on client ip route add default via fd00:1::1
}

# shellcheck disable=SC2120
# ruleset [HOST]: what many routers have: masquerade, a port forward (8080 to
# the client's 80), and flow add. FAST="" leaves flow add away.
ruleset()
{
	on "${1:-router}" nft -f - <<- EOT
	flush ruleset
	table inet router {
		flowtable ft {
			hook ingress priority filter
			devices = { rc, rs }
		}
		chain forward {
			type filter hook forward priority filter
			${FAST-ct state established flow add @ft}
		}
		chain prerouting {
			type nat hook prerouting priority dstnat
			iifname rs ip daddr 203.0.113.1 tcp dport 8080 dnat ip to 10.0.1.2:80
			iifname rs ip daddr 203.0.113.1 udp dport 8080 dnat ip to 10.0.1.2:80
		}
		chain postrouting {
			type nat hook postrouting priority srcnat
			oifname rs masquerade
		}
	}
	EOT
}

# For tests that count frames: nobody asks for a neighbour among them
neighbours()
{
	on client ip neigh replace 10.0.1.1 dev c0 lladdr $RC_MAC nud permanent
	on router ip neigh replace 10.0.1.2 dev rc lladdr $CLIENT_MAC nud permanent
	on router ip neigh replace 203.0.113.2 dev rs lladdr $SERVER_MAC nud permanent
	on server ip neigh replace 203.0.113.1 dev s0 lladdr $RS_MAC nud permanent
}

# Conntrack's entries on the router, offloaded or not
conntracks()
{
	on "${1:-router}" conntrack -L 2> /dev/null | wc -l
}

# redirected DEVICE...: frames that came in by the router's devices and left by
# XDP redirect, as veth counts them
redirected()
{
	local dev total=0

	for dev; do
		total=$((total + $(on router ethtool -S "$dev" |
			awk '/rx_queue_[0-9]+_xdp_redirect/ { n += $2 } END { print n + 0 }')))
	done
	echo $total
}

# Packets that xdp_ct has forwarded, as it counts them
counted()
{
	on router xdp_ct stats --json | jq '[.[].forwarded.packets // 0] | add // 0'
}

# Packets of all connections, by conntrack's accounting
accounted()
{
	on router conntrack -L 2> /dev/null | grep -o 'packets=[0-9]*' |
		awk -F= '{ n += $2 } END { print n + 0 }'
}

cleanup()
{
	local host

	for host in $(ip netns list | cut -d' ' -f1); do
		ip netns pids "$host" | xargs -r kill -9
		ip netns del "$host"
	done
	rm -rf /sys/fs/bpf/*
}
