#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# xdp_ct beside xdp-filter, both put on by Debian's xdp-loader and xdp-filter under
# libxdp's dispatcher: the filter comes first, whoever was loaded first, and drops
# one port; xdp_ct forwards the rest.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

OBJ=$BUILD/xdp_ct/xdp_ct.bpf.o

# echoes PORT NUMBER: so many come back, of packets to PORT that are answered
echoes()
{
	python3 - "$@" <<- 'EOT'
	import sys
	from lib import udp_socket
	port, number = map(int, sys.argv[1:])
	client = udp_socket("client", "10.0.1.2", port, 1)
	server = udp_socket("server", "203.0.113.2", port, 1)
	back = 0
	try:
	    for n in range(number):
	        client.sendto(b"%d" % n, ("203.0.113.2", port))
	        server.sendto(*server.recvfrom(100))
	        back += client.recv(100) == b"%d" % n
	except TimeoutError:
	    pass
	print(back)
	EOT
}

# passed REASON: packets from the client
passed()
{
	on router xdp_ct stats --json | jq ".rc.$1.packets // 0"
}

hosts
ruleset
for dev in rc rs; do
	succeeds "xdp-loader: xdp_ct on $dev" \
		on router xdp-loader load -n xdp_ct_beside $dev "$OBJ"
done
before=$(redirected rc rs)
equal "alone: all packets to port 6001 come back" 500 "$(echoes 6001 500)"
xdp=$(($(redirected rc rs) - before))
[ $xdp -ge 990 ] && [ $xdp -le 1000 ]
result $? "alone: 99 of 100 by XDP" "$xdp of 1000"

succeeds "xdp-filter: on rc, too" on router xdp-filter load -f udp rc
equal "the filter drops nothing yet" 20 "$(echoes 6001 20)"
on router xdp-filter port -p udp -m dst 6001
matches "the filter comes first, and the next runs if it passes" \
	' 10 +xdpfilt_alw_udp .* XDP_PASS +=> +60 +xdp_ct_beside .* XDP_PASS' \
	"$(on router xdp-loader status rc | tr '\n' ' ')"
before=$(redirected rc rs)
equal "port 6001 is dropped, though xdp_ct would forward it" 0 "$(echoes 6001 1)"
matches "port 6001 is counted by the filter" '6001 +dst,udp +1$' "$(on router xdp-filter status)"
equal "port 6001 is not forwarded" "$before" "$(redirected rc rs)"
equal "the rest: all packets to port 6002 come back" 500 "$(echoes 6002 500)"
xdp=$(($(redirected rc rs) - before))
[ $xdp -ge 990 ] && [ $xdp -le 1000 ]
result $? "the rest: 99 of 100 by XDP" "$xdp of 1000"

# xdp_ct in the dispatcher, as its tool shows it
matches "status" "^rc: mode native in libxdp's dispatcher, program " "$(on router xdp_ct status rc)"
equal "flows: each once, though each device has a map" 2 \
	"$(on router xdp_ct flows --dport 6002 | wc -l)"
before=$(passed miss)
echoes 6003 1 > /dev/null
equal "stats: the first packet of a connection is counted" $((before + 1)) "$(passed miss)"
refused "attach: does not replace the dispatcher" "xdp-loader status" on router xdp_ct attach rc
refused "detach: says how" "xdp-loader unload rc -i $(on router xdp_ct status --json rc |
	jq '.devices[0].prog_id')" on router xdp_ct detach rc

# A program in the dispatcher may not change a frame's length
before=$(redirected rc rs)
resize=$(passed resize)
python3 - <<- 'EOT' > /tmp/trailer
import os
from lib import UDP, frame, ipv4, raw_socket, received, udp
sender, receiver = raw_socket("client", "c0", False), raw_socket("server", "s0")
data = frame(os.environ["RC_MAC"], os.environ["CLIENT_MAC"], ipv4(
    "10.0.1.2", "203.0.113.2", UDP, udp("10.0.1.2", "203.0.113.2", 6002, 6002, b"short")))
sender.send(data + bytes(60 - len(data)))
print(len([f for f in received(receiver) if f[36:38] == data[36:38]]))
EOT
equal "a frame with a trailer: the stack sends it" 1 "$(< /tmp/trailer)"
equal "a frame with a trailer: is passed up as resize" "$((resize + 1)) $before" \
	"$(passed resize) $(redirected rc rs)"

succeeds "xdp-filter: off" on router xdp-filter unload rc
equal "without the filter port 6001 goes on" 10 "$(echoes 6001 10)"
for dev in rc rs; do
	succeeds "xdp-loader: unload $dev" on router xdp-loader unload $dev --all
done
equal "nothing is left" "0 0 0" "$(bpftool -j prog show | jq '[.[] | select(.type == "xdp" or
	.type == "ext")] | length') $(bpftool -j map show | jq '[.[] |
	select(.name == "flowmap" or .name == "xdp_ct_stats")] | length') $(find /sys/fs/bpf -type f | wc -l)"
cleanup
finish
