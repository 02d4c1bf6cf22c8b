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

from lib import (COUNTERS, EXIT, IPV4, IPV6, KEY_SKB, KEY_STACK, NEEDS_STACK, NO_NEIGH, PATIENCE,
                 TEST_XDP_LIVE_FRAMES, UDP, XDP_PASS, Fields, Iterator, Lookup, MemoryCgroup, Prog,
                 check, counted, csum, expect, fails, frame, ifindex, ip_frame, ipv4, ipv6, l4,
                 make_key, movi, netns, on, parse_key, parse_value, program, raw_socket, run,
                 run_tests, sysctl, udp, wait_for, with_facts)
from flows import (CLIENT, CLIENT_MAC, IP, IP6, RC, RC_MAC, ROUTER, RS, RS_MAC, SERVER, SERVER_MAC,
                   TcpFlow, UdpFlow, conntrack, open_flow, programs, published, router_map,
                   udp_frames, value, wires)

NO_XMIT, NO_ETHER, XFRM, TUNNEL = 1 << 9, 1 << 10, 1 << 11, 1 << 12
IPS_FIXED_TIMEOUT = 1 << 10


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

    # the one flowtable of two: of devices that are not the other's
    run("ip link add s1 netns server type veth peer name rx netns router")
    on("router", "ip addr add 198.51.100.1/24 dev rx && ip link set dev rx up && nft '"
       "add flowtable inet router fx { hook ingress priority filter; devices = { rx }; }; "
       "insert rule inet router forward oifname rx ct state established flow add @fx'")
    on("server", "ip addr add 198.51.100.2/24 dev s1 && ip link set dev s1 up && "
       "ip route add 10.0.1.0/24 via 198.51.100.1")
    rx = ifindex("router", "rx")
    maps = {dev: router_map(extra=dev << 32) for dev in (RS, rx)}
    one, other = UdpFlow(), UdpFlow(ip=Fields(IP, server="198.51.100.2"))
    wait_for(other.talk)
    expect("filter: a map for a device has the flows of its flowtable, not of another",
           {RS: {(RC, one.port), (RS, one.port)}, rx: {(RC, other.port), (rx, other.port)}},
           {dev: {(k.ifindex, k.sport) for k in map(parse_key, m.keys())
                  if k.sport in (one.port, other.port)} for dev, m in maps.items()})
    on("router", "nft 'flush chain inet router forward; delete flowtable inet router fx; "
       "add rule inet router forward ct state established flow add @ft' && ip link del dev rx")


def test_flags():
    """Flows that XDP cannot do say why; programs get them if they ask"""
    m = router_map(extra=COUNTERS)
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
    asked = value(m, flow.key).packets
    check("needs the stack: not for a program on socket buffers",
          find(with_facts(flow.key, flags=KEY_SKB)))
    find(with_facts(flow.key, flags=KEY_SKB | KEY_STACK, len=1501))
    expect("needs the stack: only this one is counted, not who asks", (0, 1),
           (asked, value(m, flow.key).packets))
    on("server", "ethtool -K s0 gro on")
    check("needs the stack: not any more when the device can",
          wait_for(lambda: flow.talk() and find(flow.key)))

    on("server", "ip link set dev s0 arp off")
    on("router", "ip neigh del 203.0.113.2 dev rs")
    flow.client.settimeout(0.1 * PATIENCE)
    flow.server.settimeout(0.1 * PATIENCE)
    m.delete(flow.key)

    def unanswered():
        flow.talk()
        seen = reason(flow)
        return seen[1] and seen  # gone again if the kernel has given the neighbour up
    expect("needs the stack: a neighbour that does not answer", (False, NO_NEIGH, NO_NEIGH),
           wait_for(unanswered))
    on("server", "ip link set dev s0 arp on")
    check("needs the stack: not any more when it does",
          wait_for(lambda: flow.talk() and find(flow.key)))

    on("router", "ip route add 203.0.113.2 encap ip id 1 dst 203.0.113.2 dev rs && "
       "xdp_ct attach rc rs")
    flow = UdpFlow()
    expect("needs the stack: a route with an encapsulation", (False, TUNNEL, TUNNEL), reason(flow))
    check("needs the stack: the reply's does not", find(flow.reply))
    text = on("router", f"xdp_ct flows --needs-stack --dport {flow.port}")
    check("needs the stack: xdp_ct flows says why",
          re.fullmatch("udp original iif=rc .* needs_stack=tunnel.*\n", text), text)
    on("router", "ip route del 203.0.113.2 && xdp_ct detach")
    check("needs the stack: not any more without",
          wait_for(lambda: flow.talk() and find(flow.key)))

    run("ip netns add lower && ip link add x9 netns lower type veth peer name s9 netns server")
    on("lower", "ip link set dev x9 up && ip link add link x9 name x9.7 type vlan id 7 && "
       "ip link set dev x9.7 netns router")
    on("router", "ip addr add 198.51.100.1/24 dev x9.7 && ip link set dev x9.7 up")
    on("server", "ethtool -K s9 gro on && ip link set dev s9 up && "
       "ip link add link s9 name s9.7 type vlan id 7 && ip link set dev s9.7 up && "
       "ip addr add 198.51.100.2/24 dev s9.7 && ip route add 10.0.1.0/24 via 198.51.100.1")
    flow = UdpFlow(ip=Fields(IP, server="198.51.100.2"))
    expect("needs the stack: a VLAN of a device in another namespace", (False, NO_ETHER, NO_ETHER),
           reason(flow))
    check("needs the stack: which has a number of its own",
          value(m, flow.key).ifindex == ifindex("router", "x9.7"))
    on("lower", "ip link set dev x9 netns router")
    on("router", "ip link set dev x9 up && ip link set dev x9.7 up")
    check("needs the stack: not any more when it is in the same",
          wait_for(lambda: flow.talk() and find(flow.key)))
    on("router", "ip link del dev x9")
    run("ip netns del lower")

    on("router", "nft flush chain inet router forward")
    on("server", "ip route add 10.0.1.0/24 via 203.0.113.1")
    for dev in ("rc", "rs"):
        on("router", f"tc qdisc add dev {dev} clsact && tc filter add dev {dev} ingress "
           "protocol ip flower action ct")
    flow = UdpFlow()  # without NAT, which comes too late for it
    wait_for(lambda: flow.talk() and flow.port in [parse_key(k).sport for k in m.keys()])
    expect("needs the stack: a flow of act_ct, which knows no way out", (True, {(0, TUNNEL)}, None),
           (flow.talk(), {(k.ifindex, parse_value(v).flags & NEEDS_STACK)
                          for k, v in ((parse_key(k), v) for k, v in m.batch(1024))
                          if k.sport == flow.port}, find(flow.key)))
    for dev in ("rc", "rs"):
        on("router", f"tc qdisc del dev {dev} clsact")
    on("server", "ip route del 10.0.1.0/24")

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


def test_age():
    """How old what the value says of conntrack may be"""
    m, flow = router_map(), TcpFlow()
    find = Lookup(m)
    status = parse_value(find(flow.key)).ct_status
    change = f"conntrack -U -p tcp --orig-port-src {flow.port} 2>/dev/null"
    on("router", change + " --mark 9")
    expect("age: the mark is conntrack's at once", 9, parse_value(find(flow.key)).ct_mark)
    on("router", change + " --status FIXED_TIMEOUT")
    expect("age: so is the status", (0, status | IPS_FIXED_TIMEOUT),
           (status & IPS_FIXED_TIMEOUT, parse_value(find(flow.key)).ct_status))
    on("router", change + " --state CLOSE_WAIT")
    expect("age: and the TCP state for user space", 5, value(m, flow.key).tcp_state)
    on("router", change + " --state LAST_ACK")
    time.sleep(1.1)
    expect("age: programs have it a second later", 6, parse_value(find(flow.key)).tcp_state)


def test_pmtu():
    """A route learns a path MTU, and then a lower one, in its place"""
    m = router_map(extra=COUNTERS)
    find, wire = Lookup(m), raw_socket("server", "s0", receive=False)
    sysctl("router", "net.ipv4.ip_forward_use_pmtu", 1)

    def fits(flow, size):
        return bool(find(with_facts(flow.key, len=size)))

    def too_big(ip, mtu):
        """As if it were about an echo request of the router's, of IPv4 about a reply"""
        if ip is IP6:
            proto, echo = socket.IPPROTO_ICMPV6, struct.pack("!BBHI", 128, 0, 0, 0)
            body = struct.pack("!BBHI", 2, 0, 0, mtu) + ipv6(ip.router, ip.server, proto, echo)
            return proto, l4(ip.server, ip.router, proto, body, 2)
        proto, echo = socket.IPPROTO_ICMP, bytes(8)
        inner = ipv4(ip.router, ip.server, proto, echo)
        head = struct.pack("!BBHHH", 3, 4, 0, 0, mtu)
        return proto, head[:2] + struct.pack("!H", 0xffff ^ csum(head + inner)) + head[4:] + inner

    for ip in (IP, IP6):
        flow = UdpFlow(ip=ip)
        for mtu in (1400, 1300):
            wire.send(ip_frame(RS_MAC, SERVER_MAC, ip.server, ip.router, *too_big(ip, mtu)))
            check(f"path MTU of {mtu}{ip.over}: longer packets are the stack's, others not",
                  wait_for(lambda f=flow, n=mtu: f.talk() and not fits(f, n + 1) and fits(f, n)))
        packets = []
        for _ in range(5):
            time.sleep(0.5)
            packets.append(fits(flow, 100) and value(m, flow.key).packets)
        check(f"path MTU{ip.over}: and the flow stays", all(packets) and
              packets == sorted(set(packets)), packets)
    sysctl("router", "net.ipv6.conf.rs.mtu", 1290)
    check("path MTU: nor longer ones than IPv6's own on the device",
          wait_for(lambda: flow.talk() and not fits(flow, 1291) and fits(flow, 1290)))
    sysctl("router", "net.ipv6.conf.rs.mtu", 1500)
    on("router", "ip route flush cache; ip -6 route flush cache")
    sysctl("router", "net.ipv4.ip_forward_use_pmtu", 0)


def test_memory():
    """Flows that others' packets put into a map are charged to its creator's cgroup"""
    count = 4000
    on("router", "conntrack -F 2>/dev/null")
    sysctl("router", "net.netfilter.nf_flowtable_udp_timeout", 600)
    with MemoryCgroup("flowmap") as cgroup:
        m = cgroup.create(router_map, max_entries=2 * count)
        start, empty = cgroup.charged(), m.memlock()
        for port in range(10000, 10000 + count):
            open_flow(port)
        expect("memory: the flows are there", 2 * count,
               wait_for(lambda: (n := sum(1 for _ in m.keys())) == 2 * count and n))
        held, grown = m.memlock() - empty, cgroup.charged() - start
        # each CPU has up to 256 KB charged in advance, or not yet given back; checks
        # of the allocator's make objects larger, and keep those that were freed
        check("memory: the creator pays for them", 0.6 < grown / held < 1.4 * PATIENCE,
              f"{grown} of {held}")
        check("memory: at most 384 bytes a flow, all included", m.memlock() < 384 * count,
              f"{m.memlock()} of {count}")
        if PATIENCE == 1:  # without the sanitizers' additions
            order, each = (int(n) for n in run(
                "cd /sys/kernel/slab/flowmap_flow && cat order objs_per_slab").split())
            check("memory: nor with what the slabs leave unused",
                  (4096 << order) / each + 8 <= 384, (order, each))
        on("router", "conntrack -F 2>/dev/null")
        check("memory: and not any more when they have ended",
              wait_for(lambda: cgroup.charged() - start < 0.4 * held * min(PATIENCE, 2)),
              cgroup.charged() - start)
        m.close()
    sysctl("router", "net.netfilter.nf_flowtable_udp_timeout", 300)


def test_sender():
    """Nor, if the creator is in no memory cgroup, to whoever sent the packet"""
    count = 400  # conntrack waits for an answer for 30 seconds
    on("router", "conntrack -F 2>/dev/null")
    m, passing = router_map(max_entries=2 * count), Prog(program(movi(0, XDP_PASS), EXIT))
    for port in range(10000, 10000 + count):
        wires()[0].send(udp_frames(port)[0])

    def answer():
        with netns("router"):
            for port in range(10000, 10000 + count):
                # in this task, not in a soft interrupt as from a device
                passing.test(udp_frames(port)[1], ifindex=RS, flags=TEST_XDP_LIVE_FRAMES)
    with MemoryCgroup("sender") as cgroup:
        cgroup.run(answer)
        expect("memory: the flows of a sender's packets are there", 2 * count,
               wait_for(lambda: (n := sum(1 for _ in m.keys())) == 2 * count and n))
        check("memory: the sender pays nothing for them", cgroup.slabs() < 100 * count,
              cgroup.slabs())
        on("router", "conntrack -F 2>/dev/null")
        m.close()


def test_many():
    """Iteration, and the announcement to a new map, while flows come and go"""
    on("router", "conntrack -F 2>/dev/null")
    sysctl("router", "net.netfilter.nf_flowtable_udp_timeout", 600 * PATIENCE)
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

    def batches(count):
        """The keys of batches, each from where the last has ended"""
        keys, last = [], None
        while last is None or len(last) == count:
            last = [k for k, _ in m.batch(count, after=last and m.last)]
            keys += last
        return keys

    def seen(keys):
        """How often each steady flow's original direction is there"""
        found = collections.Counter(k.sport for k in map(parse_key, keys)
                                    if k.ifindex == RC and k.sport in steady)
        return dict(collections.Counter(found[port] for port in steady))

    thread = threading.Thread(target=churn)
    thread.start()
    want = {1: len(steady)}
    for name, keys in (("next key", m.keys), ("a batch", lambda: batches(16384)),
                       ("batches of 100", lambda: batches(100)),
                       ("an iterator program", lambda: [k for k, _ in Iterator(m)])):
        expect(f"iteration: under churn each steady flow is seen exactly once: {name}", [want] * 3,
               [seen(keys()) for _ in range(3)])
    count = programs(m)[0]
    expect("iteration: under churn each steady flow is seen exactly once: for_each", {1: 100},
           dict(collections.Counter(count(make_key(RC, UDP, CLIENT, port, SERVER, 53))
                                    for port in steady[::12])))
    late = [router_map(max_entries=65536) for _ in range(3)]
    expect("announce: each steady flow is in every new map, once", [want] * 3,
           [seen(other.keys()) for other in late])
    stop.set()
    thread.join()
    for other in late:
        other.close()
    sysctl("router", "net.netfilter.nf_flowtable_udp_timeout", 300)
    on("router", "conntrack -F 2>/dev/null")
    check("iteration: and the map empties", wait_for(lambda: not list(m.keys())))


class Events:
    """conntrack -E of the router's TCP connections"""
    def __enter__(self):
        with netns("router"):
            self.process = subprocess.Popen(["conntrack", "-E", "-p", "tcp"], text=True,
                                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        wait_for(self.listens)
        return self

    @staticmethod
    def listens():
        """Is there a netlink socket of netfilter with groups?"""
        with netns("router"), open("/proc/thread-self/net/netlink", encoding="ascii") as f:
            rows = [line.split() for line in f.readlines()[1:]]
        return any(row[1] == "12" and int(row[3], 16) for row in rows)

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
            time.sleep(0.2 * PATIENCE)
        flow.client.close()
        time.sleep(0.5 * PATIENCE)
        entry = conntrack("tcp", flow.port)
        on("router", f"conntrack -D -p tcp --orig-port-src {flow.port} 2>/dev/null || true")
        time.sleep(0.3 * PATIENCE)
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
    # 20 times data to and fro in each life
    check("events: and the packets went by XDP", (n := counted("forwarded")) >= 40 * len(usual), n)
    on("router", "xdp_ct detach")
    sysctl("router", "net.netfilter.nf_flowtable_tcp_timeout", 300)


def routed():
    """Packets that the stack has forwarded, without the flowtable"""
    with netns("router"), open("/proc/thread-self/net/snmp", encoding="ascii") as f:
        names, values = (line.split() for line in f if line.startswith("Ip:"))
    return int(values[names.index("ForwDatagrams")])


def accounted(ct):
    """Packets and bytes of both directions"""
    return tuple(int(d[n]) for d in (ct.original, ct.reply) for n in ("packets", "bytes"))


def test_mix():
    """conntrack -L has each packet that was sent, whichever way it went"""
    add = "nft add rule inet router forward ct state established flow add @ft"
    on("router", "nft 'flush chain inet router forward; delete flowtable inet router ft; "
       "add flowtable inet router ft { hook ingress priority filter; devices = { rc, rs }; "
       f"counter; }}' && {add}")
    on("router", "xdp_ct attach rc rs --counters")
    on("router", "conntrack -F 2>/dev/null")
    by_stack = routed()
    sent = size = replies = reply_size = 0
    for n in range(300):
        options = bytes([1, 1, 1, 1]) if n % 7 == 3 else b""  # the stack's
        packet = ipv4(CLIENT, SERVER, UDP, udp(CLIENT, SERVER, 4000, 4000, bytes(n)),
                      options=options)
        wires()[0].send(frame(RC_MAC, CLIENT_MAC, packet))
        sent, size = sent + 1, size + len(packet)
        if n % 50 == 0:
            packet = ipv4(SERVER, ROUTER, UDP, udp(SERVER, ROUTER, 4000, 4000, bytes(n // 2)))
            wires()[1].send(frame(RS_MAC, SERVER_MAC, packet))
            replies, reply_size = replies + 1, reply_size + len(packet)
        if n == 100:  # as a flow's end in the midst
            on("router", "nft flush chain inet router forward && " + add)
        if n == 200:  # from here on by the flowtable
            by_xdp = counted("forwarded")
            on("router", "xdp_ct detach")
    time.sleep(0.3)
    by_stack = routed() - by_stack
    ct = conntrack("udp", 4000)
    expect("accounting: XDP, flowtable, slow path mixed: packets and bytes are those sent",
           (sent, size, replies, reply_size), accounted(ct))
    ways = by_xdp, by_stack, sent + replies - by_xdp - by_stack
    check("accounting: each of the three had some", min(ways) > 20, ways)


def test_mix_tcp():
    """The same of a whole connection, whose ends count what they send"""
    for host in ("client", "server"):
        on(host, "nft 'add table inet count; add chain inet count out { type filter hook output "
           "priority 0; }; add rule inet count out meta l4proto tcp counter'")
    on("router", "xdp_ct attach rc rs --counters")
    m, by_stack, flow = router_map(), routed(), TcpFlow()

    def talk():
        for _ in range(20):
            flow.talk()
        time.sleep(0.1 * PATIENCE)  # a last ACK
    talk()
    by_xdp = counted("forwarded")
    on("router", "xdp_ct detach")
    talk()
    on("router", "nft flush chain inet router forward")
    m.delete(flow.key)
    talk()
    flow.server.close()
    flow.client.close()
    time.sleep(0.1 * PATIENCE)
    sent = sum((re.findall(r"packets (\d+) bytes (\d+)", on(host, "nft list table inet count"))
                for host in ("server", "client")), [])
    sent = tuple(int(n) for pair in sent for n in pair)
    expect("accounting: a TCP connection's packets and bytes are those sent", sent,
           accounted(conntrack("tcp", flow.port)))
    by_stack = routed() - by_stack
    ways = by_xdp, by_stack, sent[0] + sent[2] - by_xdp - by_stack
    check("accounting: each of the three had some of it", min(ways) > 20, ways)


run_tests(test_filters, test_flags, test_cpus, test_off, test_zones, test_age, test_pmtu,
          test_memory, test_sender, test_many, test_events, test_mix, test_mix_tcp)
