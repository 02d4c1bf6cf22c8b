# SPDX-License-Identifier: GPL-2.0
"""Cases of life.sh; the hosts and the ruleset are up"""
import collections
import errno
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time
import traceback

from lib import (COUNTERS, KEY_SKB, KEY_STACK, NEEDS_STACK, UDP, Fields, Lookup, check, end, expect,
                 fails, frame, ipv4, make_key, netns, not_ok, on, parse_key, parse_value,
                 raw_socket, sysctl, udp, wait_for, with_facts)
from flows import (CLIENT, RC, ROUTER, RS, SERVER, TcpFlow, UdpFlow, conntrack, published,
                   router_map, value)

IPV4, IPV6 = 2, 4
NO_XMIT, XFRM = 1 << 9, 1 << 11
CLIENT_MAC, RC_MAC, RS_MAC, SERVER_MAC = (os.environ[n] for n in
                                          ("CLIENT_MAC", "RC_MAC", "RS_MAC", "SERVER_MAC"))
wires = [raw_socket("client", "c0"), raw_socket("server", "s0")]


def open_flow(sport, dport=53):
    """A connection, opened and answered by two frames"""
    wires[0].send(frame(RC_MAC, CLIENT_MAC, ipv4(CLIENT, SERVER, UDP, udp(
        CLIENT, SERVER, sport, dport))))
    wires[1].send(frame(RS_MAC, SERVER_MAC, ipv4(SERVER, ROUTER, UDP, udp(
        SERVER, ROUTER, dport, sport))))


def test_filters():
    flow = UdpFlow()
    for name, extra, want in (("IPv4", IPV4, True), ("IPv6", IPV6, False),
                              ("either family", IPV4 | IPV6, True),
                              ("the device that it comes in by", RC << 32, True),
                              ("the device that it leaves by", RS << 32, True),
                              ("another device", 1 << 32, False)):
        m = router_map(extra=extra)
        late = UdpFlow()
        expect(f"filter: a map for {name}", (want, want), (published(m, flow), published(m, late)))
        m.close()
    fails("filter: a device that is not there is refused", errno.ENODEV, router_map,
          extra=9999 << 32)


def test_flags():
    """Flows that XDP cannot do say why; programs get them if they ask"""
    m = router_map()
    find = Lookup(m)

    def reason(flow):
        """The reason that user space and an asking program see; a plain look-up must miss"""
        wait_for(lambda: value(m, flow.key))
        plain, got, v = find(flow.key), find(with_facts(flow.key, flags=KEY_STACK)), \
            value(m, flow.key)
        return (bool(plain), got and parse_value(got).flags & NEEDS_STACK,
                v and v.flags & NEEDS_STACK)

    on("server", "ethtool -K s0 gro off")
    flow = UdpFlow()
    expect("needs the stack: a device that cannot transmit XDP frames", (False, NO_XMIT, NO_XMIT),
           reason(flow))
    check("needs the stack: not for a program on socket buffers",
          find(with_facts(flow.key, flags=KEY_SKB)))
    on("server", "ethtool -K s0 gro on")
    check("needs the stack: not any more when the device can",
          wait_for(lambda: flow.talk() and find(flow.key)))

    on("router", "nft flush chain inet router forward && nft add rule inet router forward "
       "iifname rc ct state established flow add @ft")
    on("router", "ip xfrm state add src 203.0.113.1 dst 203.0.113.2 proto esp spi 1 mode tunnel "
       "enc 'cbc(aes)' 0x00112233445566778899aabbccddeeff auth 'hmac(sha1)' 0x0011223344 && "
       "ip xfrm policy add src 10.0.1.2 dst 203.0.113.2 dir out tmpl src 203.0.113.1 "
       "dst 203.0.113.2 proto esp mode tunnel")
    # what goes out is ESP, which the server does not know; it answers all the same
    for _ in range(3):
        open_flow(5000)
    flow = Fields(key=make_key(RC, UDP, CLIENT, 5000, SERVER, 53))
    expect("needs the stack: an IPsec policy", (False, XFRM, XFRM), reason(flow))
    on("router", "ip xfrm policy flush && ip xfrm state flush && nft flush chain inet router "
       "forward && nft add rule inet router forward ct state established flow add @ft && "
       "conntrack -F 2>/dev/null")


def test_cpus():
    m, flow = router_map(extra=COUNTERS), UdpFlow()
    find = Lookup(m)
    before = int(conntrack("udp", flow.port).original["packets"])
    key, times = with_facts(flow.key, len=60), 20000

    def look(cpu):
        os.sched_setaffinity(0, {cpu})
        find.prog.test(key + bytes(m.value_size), repeat=times)

    cpus = sorted(os.sched_getaffinity(0))
    threads = [threading.Thread(target=look, args=(c,)) for c in cpus]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    v = value(m, flow.key)
    expect(f"accounting: {len(cpus)} CPUs at once lose no packet and no byte",
           (times * len(cpus), 60 * times * len(cpus)), (v.packets, v.bytes))
    expect("accounting: nor does conntrack's", times * len(cpus),
           int(conntrack("udp", flow.port).original["packets"]) - before)


def test_off():
    sysctl("router", "net.netfilter.nf_conntrack_acct", 0)
    m, flow = router_map(), UdpFlow()
    hit = Lookup(m)(flow.key)
    check("accounting off: a hit, and nothing is counted anywhere",
          hit and parse_value(hit).packets == 0 and
          "packets" not in conntrack("udp", flow.port).original, conntrack("udp", flow.port))
    sysctl("router", "net.netfilter.nf_conntrack_acct", 1)


def test_zones():
    on("router", "nft add chain inet router raw '{ type filter hook prerouting priority raw; }' && "
       "nft add rule inet router raw ct zone set 7")
    m = router_map()
    find = Lookup(m)
    flow = UdpFlow()
    got = find(flow.key)
    expect("zone: it is in the value", 7, got and parse_value(got).ct_zone)
    on("router", "conntrack -D -w 7 2>/dev/null")
    expect("zone: gone, the next packet goes to the stack", None, find(flow.key))
    on("router", "nft delete chain inet router raw")


def test_many():
    """Iteration, and the announcement to a new map, while flows come and go"""
    on("router", "conntrack -F 2>/dev/null")
    sysctl("router", "net.netfilter.nf_flowtable_udp_timeout", 600)
    steady = range(1000, 2200)
    m = router_map(max_entries=16384)
    for port in steady:
        open_flow(port)
    wait_for(lambda: sum(1 for _ in m.keys()) >= 2 * len(steady))
    stop = threading.Event()

    def churn():
        port = 10000
        while not stop.is_set():
            port = 10000 + (port + 1) % 10000
            open_flow(port)
            if port % 50 == 0:
                on("router", "conntrack -D -p udp --orig-port-dst 53 --orig-port-src "
                   f"{port - 20} 2>/dev/null || true")

    def seen(other):
        """How often each steady flow's original direction is there"""
        keys = collections.Counter(k.sport for k in map(parse_key, other.keys())
                                   if k.ifindex == RC and k.sport in steady)
        return collections.Counter(keys[port] for port in steady)

    thread = threading.Thread(target=churn)
    thread.start()
    want = {1: len(steady)}
    expect("iteration: under churn each steady flow is seen exactly once", [want] * 3,
           [dict(seen(m)) for _ in range(3)])
    late = [router_map(max_entries=65536) for _ in range(3)]
    expect("announce: each steady flow is in every new map, once", [want] * 3,
           [dict(seen(other)) for other in late])
    stop.set()
    thread.join()
    for other in late:
        other.close()
    sysctl("router", "net.netfilter.nf_flowtable_udp_timeout", 30)
    on("router", "conntrack -F 2>/dev/null")
    check("iteration: and the map empties", wait_for(lambda: not list(m.keys())))


class Events:
    """conntrack -E of the router's TCP connections"""
    def __enter__(self):
        with netns("router"):
            self.process = subprocess.Popen(["conntrack", "-E", "-p", "tcp"], text=True,
                                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        time.sleep(0.5)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        out = self.process.communicate()[0]
        # [NEW] tcp 6 120 SYN_SENT src=...; a DESTROY has no state
        self.states = [(e, s) for e, s in
                       re.findall(r"\[(\w+)\] tcp +6 +(?:\d+ )?([A-Z_]*)", out)]


def lingers(line):
    """Established, and for longer than conntrack leaves an entry after a RST
    whose number it cannot judge (nf_conntrack_tcp_timeout_unacknowledged)"""
    return "ESTABLISHED" in line and int(line.split()[2]) > 300


def live(name):
    """A connection's whole life. Return: what conntrack said of it"""
    with Events() as events:
        flow = TcpFlow()
        for _ in range(20):
            flow.talk()
        if name == "idle":
            time.sleep(3.5)
            flow.talk()
        if name == "RST":
            flow.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        flow.server.close()
        if name != "RST":
            time.sleep(0.2)
        flow.client.close()
        time.sleep(0.5)
        entry = conntrack("tcp", flow.port)
        on("router", f"conntrack -D -p tcp --orig-port-src {flow.port} 2>/dev/null || true")
        time.sleep(0.3)
    return events.states, bool(entry and (entry.offload or lingers(entry.line)))


def test_events():
    """As many packets as may be by XDP, or none"""
    sysctl("router", "net.netfilter.nf_flowtable_tcp_timeout", 2)
    rule = on("router", "nft -a list chain inet router forward")
    handle = re.search(r"flow add.*handle (\d+)", rule)[1]
    on("router", f"nft delete rule inet router forward handle {handle}")
    usual = {name: live(name) for name in ("FIN", "idle")}
    on("router", "nft add rule inet router forward ct state established flow add @ft")
    # not by its number, of which conntrack has seen no more than the flowtable let it
    usual["RST"] = live("RST")
    on("router", "xdp_ct attach rc rs --counters")
    for name, want in usual.items():
        check(f"events: {name}: conntrack says something", len(want[0]) >= 4, want)
        got = live(name)
        expect(f"events: {name}: conntrack says the same with XDP as without", want[0], got[0])
        check(f"events: {name}: no entry stays established or offloaded", not got[1])
    forwarded = on("router", "xdp_ct stats")
    check("events: and the packets went by XDP", "forwarded" in forwarded, forwarded)
    on("router", "xdp_ct detach")
    sysctl("router", "net.netfilter.nf_flowtable_tcp_timeout", 30)


def test_mix():
    """conntrack -L has each packet that was sent, whichever way it went"""
    on("router", "xdp_ct attach rc rs --counters")
    on("router", "conntrack -F 2>/dev/null")
    sent = size = 0
    for n in range(300):
        options = bytes([1, 1, 1, 1]) if n % 7 == 3 else b""  # the stack's
        packet = ipv4(CLIENT, SERVER, UDP, udp(CLIENT, SERVER, 4000, 4000, bytes(n)),
                      options=options)
        wires[0].send(frame(RC_MAC, CLIENT_MAC, packet))
        sent, size = sent + 1, size + len(packet)
        if n % 50 == 0:
            wires[1].send(frame(RS_MAC, SERVER_MAC, ipv4(SERVER, ROUTER, UDP, udp(
                SERVER, ROUTER, 4000, 4000, b"reply"))))
        if n == 150:  # as a flow's end in the midst
            on("router", "nft flush chain inet router forward && "
               "nft add rule inet router forward ct state established flow add @ft")
    time.sleep(0.3)
    ct = conntrack("udp", 4000)
    text = on("router", "xdp_ct stats")
    expect("accounting: XDP and slow path mixed: packets and bytes are those sent", (sent, size),
           (int(ct.original["packets"]), int(ct.original["bytes"])))
    check("accounting: both ways had some", re.search(r"forwarded [1-9]\d{2} packets", text), text)
    on("router", "xdp_ct detach")


for test in (test_filters, test_flags, test_cpus, test_off, test_zones, test_many, test_events, test_mix):
    try:
        test()
    except (OSError, RuntimeError, AttributeError, TypeError):
        not_ok(f"{test.__name__} ends", traceback.format_exc())
end()
