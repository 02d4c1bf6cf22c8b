# SPDX-License-Identifier: GPL-2.0
"""Cases of upgrade.sh; the hosts and the ruleset are up"""

from lib import (MODULE, Fields, check, counted, expect, on, run_tests, tcp_pair, udp_socket,
                 unload, wait_for)
from flows import CLIENT, SERVER, TcpFlow, UdpFlow, conntrack, ports

MAX = "/proc/sys/net/netfilter/nf_conntrack_max"


def attach():
    on("router", "xdp_ct attach rc rs --counters")


def by_xdp(*flows):
    """All of them talk, by XDP"""
    def attempt():
        before = counted("forwarded")
        return all(f.talk() for f in flows) and counted("forwarded") - before >= 2 * len(flows)
    return wait_for(attempt)


def test_reload():
    attach()
    flows = [TcpFlow(), UdpFlow()]
    check("reload: connections go by XDP", by_xdp(*flows))
    on("router", "xdp_ct detach rc rs")
    check("reload: without the program they go on", all(f.talk() for f in flows))
    check("reload: the module unloads", unload(MODULE))
    check("reload: without the module they go on", all(f.talk() for f in flows))
    attach()
    check("reload: with both they are on XDP again", by_xdp(*flows))


def test_ruleset():
    flows = [TcpFlow(), UdpFlow()]
    check("ruleset: connections go by XDP", by_xdp(*flows))
    on("router", "nft -f /tmp/ruleset")
    check("ruleset: reloaded, they go on", all(f.talk() for f in flows))
    check("ruleset: and are on XDP again", by_xdp(*flows))


def test_full():
    flows = [TcpFlow(), TcpFlow()]
    check("full: connections go by XDP", by_xdp(*flows))
    with open(MAX, encoding="ascii") as f:
        limit = f.read()
    # the limit is each namespace's: those that are there, and not one more
    count = int(on("router", "conntrack -C").split()[-1])
    try:
        with open(MAX, "w", encoding="ascii") as f:
            f.write(str(count))
        port = next(ports)
        client = udp_socket("client", CLIENT, port, timeout=0.5)
        server = udp_socket("server", SERVER, port, timeout=0.5)
        client.sendto(b"one more", (SERVER, port))
        try:
            got = server.recv(100)
        except TimeoutError:
            got = None
        expect("full: one more connection is refused", None, got)
        check("full: those that are there go on by XDP", by_xdp(*flows))
    finally:
        with open(MAX, "w", encoding="ascii") as f:
            f.write(limit)
    check("full: with room again, new ones are on XDP", by_xdp(UdpFlow()))


def test_flushed():
    flow = TcpFlow()
    check("flushed: a connection goes by XDP", by_xdp(flow))
    on("router", "conntrack -F 2> /dev/null")
    # the port forward's mapping is the ruleset's: the client's answer finds it
    # by the server's next packet, which conntrack takes up in the middle
    check("flushed: it is taken up in the middle", wait_for(flow.talk))
    check("flushed: conntrack has it again", conntrack("tcp", flow.port))
    check("flushed: and it is on XDP again", by_xdp(flow))


def test_reboot():
    """All that the router knows of connections is lost, and what it has loaded; what is
    sent meanwhile comes when it is back"""
    forward, out = TcpFlow(), tcp_pair("client", "server", SERVER, 7000, timeout=60)
    forward.client.settimeout(300)

    def talk():
        out[0].sendall(b"to")
        out[1].sendall(b"from")
        return out[1].recv(100) == b"to" and out[0].recv(100) == b"from"
    flows = [forward, UdpFlow(), Fields(talk=talk)]
    check("reboot: connections go by XDP", by_xdp(*flows))
    on("router", "ip link set dev rc down && ip link set dev rs down && xdp_ct detach rc rs && "
       "nft flush ruleset && conntrack -F 2> /dev/null && ip neigh flush all nud all")
    check("reboot: the module unloads", unload(MODULE))
    forward.server.sendall(b"down")
    out[0].sendall(b"down")
    expect("reboot: nothing is left", ["0", ""],
           [on("router", "conntrack -C").split()[-1], on("router", "nft list ruleset")])
    on("router", "nft -f /tmp/ruleset")
    attach()
    on("router", "ip link set dev rc up && ip link set dev rs up")
    expect("reboot: what was sent meanwhile arrives", [b"down"] * 2,
           [forward.client.recv(100), out[1].recv(100)])
    check("reboot: connections go on", all(wait_for(f.talk) for f in flows))
    check("reboot: and are on XDP again", by_xdp(*flows))


run_tests(test_reload, test_ruleset, test_full, test_flushed, test_reboot)
