#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# NFT_FLOWTABLE_SNOOP: such a flowtable publishes its flows and takes no packet.
# Which way packets go is told by a counter on the slow path.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

hosts
FAST="" ruleset
on router nft -f - << EOT
table inet count {
	counter slow { }
	chain slow {
		type filter hook prerouting priority raw
		meta l4proto udp counter name slow
	}
}
EOT
cases python3 - << 'EOT'
import errno
import re
from lib import (UDP, Map, check, end, expect, fails, ifindex, make_key, netns, new_flowtable, on,
                 parse_value, snoop, udp_socket, wait_for)

client = udp_socket("client", "10.0.1.2", 5000)
server = udp_socket("server", "203.0.113.2", 5000)
key = make_key(ifindex("router", "rc"), UDP, "10.0.1.2", 5000, "203.0.113.2", 5000)


def slow_packets():
    return int(re.search(r"packets (\d+)", on("router", "nft list counter inet count slow"))[1])


def exchange(n):
    """Packets of 2 n that went by the slow path"""
    before = slow_packets()
    for i in range(n):
        client.sendto(b"%d" % i, ("203.0.113.2", 5000))
        server.sendto(*server.recvfrom(100))
        client.recv(100)
    return slow_packets() - before


def offloaded():
    return "OFFLOAD" in on("router", "conntrack -L -p udp 2>/dev/null")


fails("snoop: another unknown flag is refused", errno.EOPNOTSUPP, new_flowtable, "router", "router",
      "other", ("rc",), 1 << 3)
exchange(2)
on("router", "nft add rule inet router forward ct state established flow add @ft")
exchange(2)
expect("a usual flowtable takes packets", 0, exchange(10))
on("router", "nft -a list chain inet router forward > /tmp/chain && "
   "nft delete rule inet router forward handle "
   "$(sed -n 's/.*flow add.*handle //p' /tmp/chain)")
with netns("router"):
    m = Map()
snoop("router")
on("router", "conntrack -F 2>/dev/null")
exchange(3)
check("snoop: the flow is offloaded", offloaded(), on("router", "conntrack -L 2>&1"))
check("snoop: and published", list(m.keys()) and parse_value(m.lookup(key)).saddr == "203.0.113.1",
      list(m.keys()))
expect("snoop: all packets go by the slow path", 20, exchange(10))
on("router", "conntrack -D -p udp 2>/dev/null")
check("snoop: conntrack -D takes the flow away", wait_for(lambda: not list(m.keys())))
exchange(3)
check("snoop: the next packets bring it back", list(m.keys()))
on("router", "nft flush ruleset")
check("snoop: flushing the ruleset takes it away", wait_for(lambda: not list(m.keys())))
end()
EOT
cleanup
finish
