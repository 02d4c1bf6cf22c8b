#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# churn.sh [SECONDS [FLOWS [SEED]]]: set up and tear down connections, some through
# sockets and most by churn.bpf.c, until SECONDS (60, or CHURN_SECONDS) have passed
# or FLOWS (1000000) were offloaded, while the ruleset is reloaded each second and
# devices, neighbours, routes, namespaces, maps and the module come and go. At the
# end all counts must be what they were at the start.
#
# Each kind of disturbance is a loop of its own with random numbers of its own, by
# SEED. The module can only go while nobody has a map: a lock sees to that.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

seconds=${1:-${CHURN_SECONDS:-60}}
flows=${2:-1000000}
seed=${3:-$(od -An -N2 -tu2 < /dev/urandom | tr -d ' ')}
dir=/tmp/churn
bpf=/sys/fs/bpf/churn
mkdir "$dir"
touch "$dir/down"
echo "# seed $seed, at most $seconds s and $flows flows"

# objects CACHE: in use, those on the CPUs' slabs not counted that are free
objects()
{
	local slab=/sys/kernel/slab/$1

	[ -e "$slab" ] || return
	echo 1 > "$slab/shrink"
	cut -d' ' -f1 "$slab/objects"
}

# What must be as it was
state()
{
	local cache

	awk '/^(nf|nft|xt)_/ { print "module " $1 ", users " $3 }' /proc/modules | sort
	echo "map types $(ls /sys/kernel/bpf/modular_maps)"
	echo "maps $(python3 -c 'import lib; print(len(lib.map_ids()))')"
	echo "namespaces $(ip netns list | wc -l)"
	# but those of this namespace: lo's, and of the device that packets of removed
	# ones go to, which the kernel keeps
	echo "neighbours $((0x$(awk 'NR == 2 { print $1 }' /proc/net/stat/arp_cache) -
			    $(ip -4 neigh show nud all | wc -l)))"
	# those that its last cleanup has ended the kernel keeps until the next
	ip netns add last
	ip netns del last
	sleep 2
	for cache in net_namespace nf_conntrack rtable flowmap_flow; do
		echo "objects of $cache $(objects $cache)"
	done
}

same_state()
{
	state > "$dir/end"
	cmp -s "$dir/start" "$dir/end"
}

# hits PROBE: those that came while another probe was served, too
hits()
{
	awk -v name="$1" '$1 == name { print $2 + $3 }' /sys/kernel/tracing/kprobe_profile
}

attempt()
{
	local out

	out=$("$@" 2>&1) || echo "$*: $out" >> "$dir/trouble"
}

# Disturbances: each does one thing and is called until the end

reloading()
{
	local fast="ct state established flow add @ft"

	((RANDOM % 10)) || fast= # connections that no flow is added for, for a second
	FAST=$fast attempt ruleset
	sleep 1
}

devices()
{
	local dev

	dev=$( ((RANDOM % 2)) && echo rc || echo rs)
	case $((RANDOM % 6)) in
	0)
		echo >> "$dir/down"
		attempt on router ip link set dev "$dev" down
		sleep 0.1
		attempt on router ip link set dev "$dev" up
		;;
	1) attempt on router ip link set dev "$dev" mtu $((1400 + RANDOM % 101)) ;;
	2)
		attempt on router ip link add link "$dev" name "$dev.7" type vlan id 7
		attempt on router ip link set dev "$dev.7" up
		attempt on router ip link del dev "$dev.7"
		;;
	3)
		attempt on router ip link add d0 type dummy
		attempt on router ip link set dev d0 up
		attempt on router ip link set dev d0 netns server
		attempt on server ip link del dev d0
		;;
	4)
		attempt on router ip link add br0 type bridge
		attempt on router ip link add v0 type veth peer name v1
		attempt on router ip link set dev v0 master br0 up
		attempt on router ip link del dev br0
		attempt on router ip link del dev v0
		;;
	5) # an address of its own, and the old one back; arp_notify tells the server
		attempt on router ip link set dev rs address 02:00:00:00:02:05
		attempt on router ip link set dev rs address "$RS_MAC"
		;;
	esac
	sleep 0.5
}

neighbours()
{
	local i

	{ case $((RANDOM % 5)) in
	0) on router ip neigh flush dev rs ;;
	1)
		on router ip neigh replace 203.0.113.2 dev rs \
			lladdr "$SERVER_MAC" nud stale
		;;
	2) # a station that is not there, for a moment
		on router ip neigh replace 203.0.113.2 dev rs \
			lladdr 02:00:00:00:02:99 nud reachable
		on router ip neigh replace 203.0.113.2 dev rs \
			lladdr "$SERVER_MAC" nud reachable
		;;
	3)
		on router ip route replace 203.0.113.2/32 dev rs mtu 1400
		on router ip route del 203.0.113.2/32 dev rs
		;;
	4)
		for ((i = 3; i < 200; i++)); do
			echo "neigh replace 203.0.113.$i dev rs lladdr $SERVER_MAC"
		done > "$dir/batch"
		on router ip -batch "$dir/batch"
		on router ip neigh flush dev rs
		;;
	esac } 2> /dev/null # the device may be down
	sleep 0.5
}

# it may lose its device
send()
{
	on client2 python3 "$TESTS/churn.py" send "${bpf}2" 2000 2> /dev/null
}

# Has a map flows? Others make maps there, too, and delete what they find
opened()
{
	send
	on router2 cat /proc/net/nf_flowmap | awk '$2 > 0 && NR > 1 { n++ } END { exit !n }'
}

# A router with connections and a map, gone in the middle of it
namespaces()
{
	local host

	(
		flock -s 9
		hosts 2
		attempt ruleset router2
		attempt on client2 ip link set dev c0 xdp pinned "${bpf}2/drop"
		attempt on server2 ip link set dev s0 xdp pinned "${bpf}2/answer"
		attempt on router2 xdp_ct attach rc rs --max-entries 1024
		attempt wait_until opened
		send &
		sleep 0.$((RANDOM % 10))
		for host in router client server; do
			attempt ip netns del "${host}2"
		done
		wait
	) 9> "$dir/lock"
	sleep 3
}

module()
{
	sleep 3
	(
		flock -x 9
		attempt on router xdp_ct detach rc rs
		attempt wait_until rmmod nf_flow_table_bpf_flowmap
		attempt on router xdp_ct attach rc rs --counters --max-entries 65536
	) 9> "$dir/lock"
	sleep 3
}

# disturb NAME NUMBER: in the background, until the end
disturb()
{
	RANDOM=$((seed + $2))
	renice -n 10 "$BASHPID" > /dev/null
	while [ ! -e "$dir/stop" ]; do
		$1
		echo >> "$dir/times.$1"
	done
}

idle()
{
	[ -z "$(jobs -r)" ]
}

setup()
{
	hosts
	on router sysctl -qw net.ipv4.conf.all.arp_notify=1 \
		net.netfilter.nf_conntrack_checksum=0
	echo 1000000 > /proc/sys/net/netfilter/nf_conntrack_max
	ruleset
	# what is over goes soon; less than a second would be 'at once'
	on router sysctl -qw net.netfilter.nf_flowtable_udp_timeout=3 \
		net.netfilter.nf_conntrack_udp_timeout=2 \
		net.netfilter.nf_conntrack_udp_timeout_stream=5 \
		net.netfilter.nf_conntrack_tcp_timeout_close=1 \
		net.netfilter.nf_conntrack_tcp_timeout_syn_sent=2 \
		net.netfilter.nf_conntrack_tcp_timeout_syn_recv=2 \
		net.netfilter.nf_conntrack_tcp_timeout_last_ack=2 \
		net.netfilter.nf_conntrack_tcp_timeout_fin_wait=2
	for copy in $bpf ${bpf}1 ${bpf}2; do
		mkdir -p "$copy"
		attempt bpftool prog loadall "$BUILD/bpf/churn.bpf.o" "$copy" pinmaps "$copy"
	done
	attempt on client ip link set dev c0 xdp pinned "$bpf/drop"
	attempt on server ip link set dev s0 xdp pinned "$bpf/answer"
	attempt on router xdp_ct attach rc rs --counters --max-entries 65536
}

teardown()
{
	cleanup
	attempt wait_until rmmod nf_flow_table_bpf_flowmap
}

# once, for the modules and all that is there for good after the first use
setup
teardown
state > "$dir/start"
for ((i = 0; i < 20; i++)); do
	! same_state || break
	mv "$dir/end" "$dir/start"
done

setup
echo 'p:added nf_flow_table:flow_offload_add
p:published bpf_modular_map_cache_alloc
p:unpublished nf_flow_table_bpf_flowmap:flowmap_free_flow_rcu' > /sys/kernel/tracing/kprobe_events
echo 1 > /sys/kernel/tracing/events/kprobes/enable
echo 0 > /sys/kernel/tracing/tracing_on
i=0
for what in reloading devices neighbours namespaces module; do
	i=$((i + 1))
	disturb "$what" "$i" &
done
cases python3 "$TESTS/churn.py" run "$bpf" "$seconds" "$flows" "$seed" "$dir"
touch "$dir/stop" # if it died
for ((i = 0; i < 6; i++)); do
	! wait_until idle || break
done
if [ "$i" = 6 ]; then
	result 1 "all disturbances end" "$(jobs -r)"
	finish
fi
for what in reloading devices neighbours namespaces module; do
	result "$((! $(wc -l < "$dir/times.$what")))" "$what: $(wc -l < "$dir/times.$what") times"
done
teardown
equal "nothing failed that should not" "" "$(cat "$dir/trouble" 2>/dev/null)"
echo "# flows added $(hits added), published $(hits published), freed $(hits unpublished)"
echo 0 > /sys/kernel/tracing/events/kprobes/enable
echo > /sys/kernel/tracing/kprobe_events
# what maps had of flows is freed, or the kernel would have complained when the module
# went
end=$((SECONDS + 180))
until same_state || [ "$SECONDS" -ge "$end" ]; do
	sleep 1
done
echo "# settled $((180 - end + SECONDS)) s later"
equal "modules, maps, namespaces, neighbours and objects are as at the start" "" \
	"$(diff "$dir/start" "$dir/end")"
finish
