#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# xdp_ct on devices of other kinds than veth, in the driver and by socket buffers,
# and flows that leave by a device that takes no frames from XDP.
#
# vm: nics

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

# Connections through the masquerade, each byte sent on by the other side
traffic()
{
	python3 - <<- 'EOT'
	import random
	from lib import tcp_pair, udp_socket
	udp = udp_socket("client", "10.0.1.2", 6000), udp_socket("server", "203.0.113.2", 6000)
	tcp = tcp_pair("client", "server", "203.0.113.2", 5000)
	for n in range(300):
	    data = random.randbytes(random.randrange(1, 1400))
	    udp[0].sendto(data, ("203.0.113.2", 6000))
	    got, peer = udp[1].recvfrom(2000)
	    assert (got, peer[0]) == (data, "203.0.113.1"), peer
	    udp[1].sendto(data, peer)
	    assert udp[0].recv(2000) == data
	    for a, b in (tcp, tcp[::-1]):
	        a.sendall(data)
	        got = b""
	        while len(got) < len(data):
	            got += b.recv(2000)
	        assert got == data
	EOT
}

# forwards DRIVER MODE: by xdp_ct on rc, whose driver it is, and rs
forwards()
{
	local name="$1, $2" all xdp dev

	hosts
	ruleset
	# a busy machine may take longer than neighbours wait
	succeeds "$name: the router answers" wait_until on client ping -qc 1 -W 2 10.0.1.1
	equal "$name: driver" "driver: $1" "$(on router ethtool -i rc | head -1)"
	succeeds "$name: attach" on router xdp_ct attach --mode "$2" --counters rc rs
	for dev in rc rs; do
		matches "$name: status: $dev" "^$dev: mode $2, program " "$(on router xdp_ct status)"
	done
	succeeds "$name: the router answers under XDP" \
		wait_until on client ping -qc 1 -W 2 10.0.1.1
	succeeds "$name: TCP and UDP arrive whole" traffic
	all=$(accounted)
	xdp=$(counted)
	[ "$xdp" -ge 1000 ] && [ $((100 * xdp)) -ge $((95 * all)) ] && [ "$xdp" -le "$all" ]
	result $? "$name: 95 of 100 packets by XDP" "$xdp of $all"
	echo "# $name: $xdp of $all packets by XDP"
	succeeds "$name: detach" on router xdp_ct detach
	cleanup
}

forwards veth native
forwards veth skb

# No way for XDP: the stack sends, and status says why
hosts
ruleset
on router xdp_ct attach --counters rc rs
on server ethtool -K s0 gro off # or rs has somebody to take XDP's frames
succeeds "veth without a receiver: TCP and UDP arrive whole" traffic
matches "veth without a receiver: status" \
	"^rs: to it by the stack: 1 flows, needs_stack=no_xmit$" "$(on router xdp_ct status)"
equal "veth without a receiver: status --json" 1 "$(on router xdp_ct status --json rs |
	jq '.devices[0].needs_stack.no_xmit')"
[ "$(on router xdp_ct stats --json | jq .rc.needs_stack.packets)" -ge 300 ]
result $? "veth without a receiver: stats: what needs the stack is counted" "$(on router xdp_ct stats)"
matches "veth without a receiver: flows" ' oif=rs .* needs_stack=no_xmit$' \
	"$(on router xdp_ct flows --needs-stack)"
on router xdp_ct detach
on router xdp_ct attach --mode skb --counters rc rs
succeeds "veth without a receiver, skb: TCP and UDP arrive whole" traffic
[ "$(counted)" -ge 1000 ]
result $? "veth without a receiver, skb: XDP needs none" "$(on router xdp_ct stats)"
equal "veth without a receiver, skb: nor do status and flows say so" " {}" \
	"$(on router xdp_ct flows --needs-stack) $(on router xdp_ct status --json rs |
		jq -c '.devices[0].needs_stack')"
on router xdp_ct detach
on router xdp_ct attach --counters rc rs
on server ethtool -K s0 gro on
on router conntrack -F 2> /dev/null
# the server behind a tunnel, which has no Ethernet frames
modprobe ipip 2> /dev/null
for end in "router 203.0.113.1 203.0.113.2 192.0.2.1" "server 203.0.113.2 203.0.113.1 192.0.2.2"; do
	read -r host local remote addr <<< "$end"
	on "$host" ip link add tun0 type ipip local "$local" remote "$remote"
	on "$host" ip addr add "$addr/30" dev tun0
	on "$host" ip link set tun0 up
done
on server ip route add 10.0.1.0/24 dev tun0
tunnelled()
{
	python3 - <<- 'EOT'
	from lib import udp_socket
	client, server = udp_socket("client", "10.0.1.2", 6000), udp_socket("server", "192.0.2.2", 6000)
	for n in range(100):
	    client.sendto(b"%d" % n, ("192.0.2.2", 6000))
	    server.sendto(*server.recvfrom(100))
	    assert client.recv(100) == b"%d" % n
	EOT
}
succeeds "tunnel: UDP arrives whole" tunnelled
matches "tunnel: status, of a device that xdp_ct is not on" \
	"^tun0: to it by the stack: 1 flows, needs_stack=no_ether$" "$(on router xdp_ct status)"
equal "tunnel: status --json" '["tun0",false,1]' "$(on router xdp_ct status --json |
	jq -c '.devices[2] | [.dev, .attached, .needs_stack.no_ether]')"
cleanup

# Two taps, whose frames a process carries over
link()
{
	python3 - "$@" <<- 'EOT' &
	import contextlib, fcntl, os, select, struct, sys
	from lib import netns

	def tap(host, dev):
	    with netns(host):
	        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
	        # TUNSETIFF, IFF_TAP | IFF_NO_PI
	        fcntl.ioctl(fd, 0x400454ca, struct.pack("16sH22x", dev.encode(), 0x1002))
	    return fd

	a, b = tap(*sys.argv[1:3]), tap(*sys.argv[3:5])
	while True:
	    for fd in select.select([a, b], [], [])[0]:
	        with contextlib.suppress(OSError): # a device that is down
	            os.write(b if fd == a else a, os.read(fd, 2000))
	EOT
	taps="$taps $!"
	wait_until on "$1" ip link show "$2" && wait_until on "$3" ip link show "$4"
}
taps=
forwards tun native
# shellcheck disable=SC2086 # two
kill $taps

# QEMU's two NICs between client and router
link()
{
	if [ "$2" = c0 ]; then
		ip link set eth0 netns "$1" name "$2" && ip link set eth1 netns "$3" name "$4"
	else
		ip link add "$2" netns "$1" type veth peer name "$4" netns "$3"
	fi
}
forwards virtio_net native
finish
