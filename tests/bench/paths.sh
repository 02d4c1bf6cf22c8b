#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# paths.sh RUNS PACKETS SEED {{4|6}-{udp|tcp}-{nat|plain}-{untagged|vlan}:FLOWS[,FLOWS]...|control|slow}...
#
# In the guest: what a packet costs on each path through a router (r) between a
# client (c) and a server (s), all namespaces joined by veth. Prints a line
# 'row KEY=VALUE... samples=A,B,...' for each path and number of flows. Flows are
# opened once, by packets of both directions, and all paths of the flowtable
# run on the same. That a path is what it is called is proven for each row: by
# the router's count of redirected XDP frames and of packets that it routed.
# On the unpatched kernel (VM_KERNEL=stock) without the rows of XDP and the map; on
# several processors only how xdp_ct scales. control: what flows cost that come and go,
# and slow: the slow path alone, both best in a guest of their own.

R="nsenter --net=/run/netns/r"
if [ "$1" = way ]; then
	# frames that the router's device has redirected, and packets that it has routed
	$R ethtool -S r0 | awk '/xdp_redirect/ { n += $2 } END { printf "way %d ", n }'
	$R cat /proc/net/snmp /proc/net/snmp6 |
		awk '/^Ip:/ && $7 ~ /^[0-9]/ { n += $7 }
		     /^Ip6OutForwDatagrams/ { n += $2 } END { print n }'
	exit
fi
runs=$1 packets=$2 seed=$3
if [ $# != 4 ]; then
	for config in "${@:4}"; do
		"$0" "$runs" "$packets" "$seed" "$config" || exit 1
	done
	exit
fi
config=${4/#control/4-udp-nat-untagged:20000}
config=${config/#slow/4-udp-nat-untagged:1,1000}
IFS=-:, read -r family proto nat tag flow_list <<< "$config"
IFS=, read -ra all_flows <<< "$flow_list"
kind=path
[ "$4" != slow ] || kind=slow
# the map alone, once
more=0
[[ $4 != 4-udp-nat-untagged:*,* ]] || more=1
bench=$FLOWMAP_BUILD/bench/bench
kernel=${VM_KERNEL:-flowmap}
in=r0 opts=()
if [ "$family" = 6 ]; then
	opts+=(-6)
	client=fd00:1::2 masq=fd00:2::1
else
	client=10.0.1.2 masq=10.0.2.1
fi
[ "$nat" = nat ] || masq=$client
[ "$proto" = udp ] || opts+=(-t)
plain=("${opts[@]}")
if [ "$tag" = vlan ]; then
	in=r0.10
	opts+=(-v 10)
fi

die()
{
	echo "error: $*" >&2
	exit 1
}

# link NS DEV INDEX MAC ADDRESSES...
link()
{
	ip -n "$1" link set "$2" address "02:00:00:00:00:0$3" up
	ip netns exec "$1" ethtool -K "$2" gro on > /dev/null
	ip netns exec "$1" sysctl -qw "net.ipv6.conf.$2.accept_dad=0"
}

topology()
{
	local -A len=([10.0.1.]=24 [10.0.2.]=24 [fd00:1::]=64 [fd00:2::]=64)
	local n a

	for n in c r s; do
		ip netns add "$n" || die "no namespaces"
		ip -n "$n" link set lo up
	done
	# numbers and addresses that direct() in bench.bpf.c and bench.c know
	ip link add c0 netns c index 10 type veth peer name r0 netns r index 11
	ip link add r1 netns r index 12 type veth peer name s0 netns s index 13
	link c c0 1
	link r r0 2
	link r r1 3
	link s s0 4
	if [ "$tag" = vlan ]; then
		ip -n c link add link c0 name c0.10 up type vlan id 10
		ip -n r link add link r0 name r0.10 up type vlan id 10
	fi
	for a in 10.0.1. fd00:1::; do
		ip -n c addr add "${a}2/${len[$a]}" dev "c${in#r}"
		ip -n r addr add "${a}1/${len[$a]}" dev "$in"
	done
	for a in 10.0.2. fd00:2::; do
		ip -n s addr add "${a}2/${len[$a]}" dev s0
		ip -n r addr add "${a}1/${len[$a]}" dev r1
	done
	ip -n c route add default via 10.0.1.1
	ip -n c route add default via fd00:1::1
	ip -n s route add default via 10.0.2.1
	ip -n s route add default via fd00:2::1
	neighbours
	$R sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
}

neighbours()
{
	local a

	for a in 10.0.1.2 fd00:1::2; do
		ip -n r neigh replace "$a" dev "$in" lladdr 02:00:00:00:00:01 nud permanent
	done
	for a in 10.0.2.2 fd00:2::2; do
		ip -n r neigh replace "$a" dev r1 lladdr 02:00:00:00:00:04 nud permanent
	done
}

ruleset()
{
	local max=$((all_flows[-1] > 20000 ? all_flows[-1] : 20000)) bucket

	modprobe -a nf_conntrack nft_ct nf_nat nft_masq nft_flow_offload nf_flow_table_inet
	bucket=$((max * 2 > 65536 ? max * 2 : 65536))
	sysctl -qw net.netfilter.nf_conntrack_buckets=$bucket net.netfilter.nf_conntrack_max=$((bucket * 2))
	$R sysctl -qw net.netfilter.nf_conntrack_udp_timeout{,_stream}=864000 \
		net.netfilter.nf_conntrack_tcp_timeout_established=864000 \
		net.netfilter.nf_conntrack_tcp_timeout_unacknowledged=864000 \
		net.netfilter.nf_conntrack_tcp_timeout_max_retrans=864000 \
		net.netfilter.nf_conntrack_tcp_be_liberal=1 \
		net.netfilter.nf_flowtable_{tcp,udp}_timeout=86400
	$R nft -f - <<-EOF || die "the ruleset does not load"
	table inet fw {
		$1
		chain forward {
			type filter hook forward priority filter
			ct state established meta l4proto { tcp, udp } $2
		}
		chain post {
			type nat hook postrouting priority srcnat
			$([ "$nat" != nat ] || echo "oifname r1 masquerade")
		}
	}
	EOF
}

# row PATH FLOWS SOURCE REDIRECTED ROUTED [OPTION...]: the two before the
# options are 1 if all packets are
row()
{
	local all=$((2 * runs * (packets + 512))) # see WARM in bench.c, and -i
	local out path=$1 flows=$2 xdp routed

	[ "$6" != -i ] || ((all /= 2))
	out=$("$bench" "${opts[@]}" -s "$3" -f "$flows" -n "$packets" -r "$runs" -S "$seed" \
		"${@:6}" -w "$0 way" run) || exit 1
	read -r xdp routed < <(awk '$1 == "way" { a = $2 - a; b = $3 - b } END { print a, b }' <<< "$out")
	# a few of the namespaces' own (neighbour discovery) may be among them
	((xdp -= all * $4, routed -= all * $5, 1))
	((xdp >= 0 && xdp < 16 && routed >= 0 && routed < 16)) ||
		die "$path, $flows flows, $all packets: $xdp more than that by XDP, $routed by the stack"
	echo "row kernel=$kernel kind=$kind family=ipv$family proto=$proto nat=$nat tag=$tag path=$path flows=$flows" \
		"samples=$(grep -v way <<< "$out" | paste -sd,)"
}

# max ENTRIES: for that many flows
max()
{
	echo "--max-entries $(($1 * 2 > 65536 ? $1 * 2 : 65536))"
}

# xdp_paths FLOWS: by XDP, and the map alone
xdp_paths()
{
	local f=$1 counters

	if [ "$tag" != vlan ]; then
		$R xdp-forward load -f flowtable r0 r1 &> /dev/null || exit 1
		row xdp-forward "$f" "$masq" 1 0
		$R xdp-forward unload r0 r1 &> /dev/null || exit 1
	fi
	for counters in "" --counters; do
		# shellcheck disable=SC2046
		$R xdp_ct attach $(max "$f") $counters r0 r1 || exit 1
		row "xdp_ct${counters:++counters}" "$f" "$masq" 1 0
		[ -n "$counters" ] || ((f < packets)) || row xdp_ct+refresh "$f" "$masq" 1 0 -i
		$R xdp_ct detach
	done
	# while the server has its program: a change there ends flows
	[ $more = 0 ] || "$bench" "${opts[@]}" -s "$masq" -f "$f" -n "$packets" -r 0 -S "$seed" \
		-w "$R $FLOWMAP_BUILD/bench/maps $f $packets $runs $seed" run || exit 1
}

# column N LINES: of all lines, with commas between
column()
{
	awk -v n="$1" 'NF { printf "%s%s", c, $n; c = "," }' <<< "$2"
}

# what it takes to open a flow, two packets on the slow path, to end it and to hold it
control()
{
	local maps i out line n=${all_flows[0]}

	# before RCU's threads: else what flows have held is freed while the next end, or not
	pgrep kworker/0: | xargs -n 1 chrt -f -p 1
	for maps in 0 1 4; do
		[ "$maps.$kernel" != 1.stock ] || break
		out=
		for ((i = -1; i < runs; i++)); do # the first is not like the others
			ruleset "$flowtable" "flow add @ft"
			line=$("$bench" -s "$masq" -f "$n" -m $maps control) || exit 1
			((i < 0)) || out+=$line$'\n'
			ip -n r link set r0 up
			neighbours
			$R nft delete table inet fw
			$R conntrack -F 2> /dev/null
			sleep 2
		done
		echo "row kernel=$kernel kind=control path=open,$maps-maps flows=$n samples=$(column 1 "$out")"
		echo "row kernel=$kernel kind=control path=end,$maps-maps flows=$n samples=$(column 2 "$out")"
		[ $maps != 1 ] || echo "row kind=memory path=flowmap flows=$n samples=$(column 3 "$out")"
	done
}

# what all processors forward by xdp_ct, each flows of its own, against one
scale()
{
	local f=${all_flows[0]} n out
	n=$(nproc)

	for dev in c:c0 r:r0 r:r1 s:s0; do
		ip netns exec "${dev%:*}" ethtool -L "${dev#*:}" rx "$n" tx "$n" || exit 1
	done
	ruleset "$flowtable" "flow add @ft"
	"$bench" "${opts[@]}" -s "$masq" -f "$f" setup > /dev/null || exit 1
	# shellcheck disable=SC2046
	$R xdp_ct attach $(max "$f") r0 r1 || exit 1
	out=$("$bench" "${opts[@]}" -s "$masq" -f "$f" -n "$packets" -r "$runs" scale) || exit 1
	echo "row kind=scaling path=xdp_ct,$n-processors flows=$f samples=$(column 1 "$out")"
	$R xdp_ct detach
}

# the bench's threads wait for nobody
trap 'ip -all netns del' EXIT
[ "$(sysctl -n kernel.sched_rt_runtime_us)" = -1 ] || sysctl -qw kernel.sched_rt_runtime_us=-1 ||
	die "threads of real time may be held up"
for f in /sys/kernel/debug/sched/fair_server/cpu*/runtime; do
	echo 0 > "$f"
done
topology
ulimit -l unlimited
flowtable="flowtable ft { hook ingress priority filter; devices = { r0, r1 }; }"
if [ "$(nproc)" -gt 1 ]; then
	scale
	exit
fi
echo "info kernel=$(uname -r) nft=$(nft -v | cut -d' ' -f2) xdp-tools=$(xdp-forward load --version 2>&1 | awk '{ print $3; exit }') seed=$seed clock=$(chrt -f 50 "$bench" clock)"

if [ "$4" = control ]; then
	control
	exit
fi

if [ $kind = slow ]; then
	row forward 1 "$client" 0 1
	ruleset "" accept
	for f in "${all_flows[@]}"; do
		"$bench" "${opts[@]}" -s "$masq" -f "$f" setup > /dev/null || exit 1
		row conntrack "$f" "$masq" 0 1
	done
	exit
fi

# without a tag: to take it off is work that is not the floor's
with=("${opts[@]}") opts=("${plain[@]}")
$R ip link set dev r0 xdp obj "$FLOWMAP_BUILD/bench/bench.bpf.o" program direct || exit 1
row floor 1 "$client" 1 0
$R ip link set dev r0 xdp off
if [ "$tag.$kernel" = untagged.flowmap ]; then
	$R xdp-forward load -f fib r0 r1 &> /dev/null || exit 1
	row xdp-forward-fib 1 "$client" 1 0
	$R xdp-forward unload r0 r1 &> /dev/null || exit 1
fi
opts=("${with[@]}")
row forward 1 "$client" 0 1

ruleset "$flowtable" "flow add @ft"
for f in "${all_flows[@]}"; do
	"$bench" "${opts[@]}" -s "$masq" -f "$f" setup > /dev/null || exit 1
	row flowtable "$f" "$masq" 0 0
	[ "$kernel" = stock ] || xdp_paths "$f"
done

$R nft delete table inet fw
ruleset "" accept
for f in "${all_flows[@]}"; do
	row conntrack "$f" "$masq" 0 1
done

