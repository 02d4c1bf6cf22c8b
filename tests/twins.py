# SPDX-License-Identifier: GPL-2.0
"""Cases of twins.sh: twins.py [FRAMES [SEED]]

Links, connections and classes of frames are in variants.py. A payload ends
with its frame's number, where there is room for it. Masked, as the kernel is
free to choose: identification (and so the checksum) of ICMP errors that the
routers make, and of IPv6 fragments, which get a new one when they have been
put together for conntrack.
"""
import collections
import ctypes
import fcntl
import itertools
import json
import os
import random
import socket
import struct
import sys
import time

from lib import (PATIENCE, TCP, UDP, XDP_PASS, XDP_REDIRECT, Wire, address, check, csum, end, expect,
                 ifindex, mac, map_by_id, map_ids, netns, not_ok, ok, on, prog_of_device,
                 snoop, wait_for)
from variants import CLASSES, GRE, PPPOE, QINQ, VLAN, Flow, Link, l3_at

FRAMES = int(sys.argv[1])
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 1
BATCH = 64
TWINS = ("", "2")

RC = (os.environ["RC_MAC"], os.environ["CLIENT_MAC"])
RS = (os.environ["RS_MAC"], os.environ["SERVER_MAC"])
INSIDE = (Link("plain", "c0", "rc", RC, 1, 3400),
          Link("VLAN", "c0", "rc.5", RC, 2, 3400, ((VLAN, 5),)),
          Link("QinQ", "c0", "rc.9.7", RC, 3, 3400, ((QINQ, 9), (VLAN, 7))))
OUTSIDE = (Link("plain", "s0", "rs", RS, 128, 3400),
           Link("VLAN", "s0", "rs.6", RS, 129, 1800, ((VLAN, 6),)),
           Link("PPPoE", "s0", "ppp0", RS, 130, 1492, ((PPPOE, 77),)),
           Link("PPPoE on VLAN", "s0", "ppp1", RS, 131, 1492, ((VLAN, 8), (PPPOE, 78))))
VIRTUAL = {4: "198.51.100.80", 6: "2001:db8:ff::80"}   # DNAT's, where a connection goes to
BORROWED = {4: "192.0.2.33", 6: "2001:db8:33::33"}     # SNAT's, where it seems to come from
FAR = 23767  # a server's port more than three bits from others: see variants.py
NEUTRAL = {4: "192.0.2.44", 6: "2001:db8:44::44"}      # the same, with no change of the sum


# The routers

def pppoe(dev, sid, peer):
    """A session without negotiation, as unit ppp0, ppp1, ...; lives as long as its files"""
    s = socket.socket(24, socket.SOCK_STREAM)  # AF_PPPOX
    where = struct.pack("=HIH6s16s", 24, 0, socket.htons(sid), mac(peer), dev.encode())
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(s.fileno(), where, len(where)):
        raise OSError(ctypes.get_errno(), "PPPoE")
    channel = struct.unpack("=i", fcntl.ioctl(s, 0x80047437, bytes(4)))[0]  # PPPIOCGCHAN
    files = [os.open("/dev/ppp", os.O_RDWR) for _ in range(2)]
    fcntl.ioctl(files[0], 0x40047438, struct.pack("=i", channel))           # PPPIOCATTCHAN
    unit = fcntl.ioctl(files[1], 0xc004743e, struct.pack("=i", -1))         # PPPIOCNEWUNIT
    fcntl.ioctl(files[0], 0x4004743a, unit)                                 # PPPIOCCONNECT
    return s, files


def links(router):
    """Devices and addresses; only what is named here is reachable"""
    on(router, """ip link add link rc name rc.5 type vlan id 5
        ip link add link rc name rc.9 type vlan proto 802.1ad id 9
        ip link add link rc.9 name rc.9.7 type vlan id 7
        ip link add link rs name rs.6 mtu 1800 type vlan id 6
        ip link add link rs name rs.8 type vlan id 8
        for dev in rc.5 rc.9 rc.9.7 rs.6 rs.8; do ip link set dev $dev up; done""")
    with netns(router):
        sessions = [pppoe("rs", 77, RS[1]), pppoe("rs.8", 78, RS[1])]
    for link in INSIDE + OUTSIDE:
        dev, ppp = link.router, link.router.startswith("ppp")
        commands = [f"ip link set dev {dev} up" + " mtu 1492" * ppp]
        for family in (4, 6):
            own, peer = link.addresses[family]
            bits = 32 if family == 4 else 128
            commands.append(f"ip -{family} addr add {own}/{bits} dev {dev}" +
                            " nodad" * (family == 6))
            commands.append(f"ip -{family} route add {peer}/{bits} dev {dev}")
            if not ppp:
                commands.append(f"ip neigh replace {peer} dev {dev} nud permanent lladdr " +
                                link.host_mac.hex(":"))
        on(router, "\n".join(commands))
    # the unreachable would be told of that, but not more often than once a second
    on(router, "ip link add null type dummy && ip link set dev null up && "
       "ip route add default dev null")
    return sessions


def elements(entries):
    return f"elements = {{ {', '.join(entries)} }}" if entries else ""


def ruleset(router, flows):
    """NAT for the flows, each for itself, and by masquerade for those to port 443"""
    tables = collections.defaultdict(list)
    for flow in flows:
        if not flow.nat:
            continue
        _, family, src, dst, sport, dport = flow.sides[flow.first]
        new_src, new_dst, new_sport, new_dport = flow.after(flow.first)
        proto = "tcp" if flow.proto == TCP else "udp"
        if (dst, dport) != (new_dst, new_dport):
            tables["d", family].append(f"{proto} . {src} . {sport} . {dst} . {dport} : "
                                       f"{new_dst} . {new_dport}")
        tuple_ = f"{proto} . {src} . {sport} . {new_dst} . {new_dport}"
        if flow.nat == "masquerade":
            tables["m", family].append(tuple_)
        elif (src, sport) != (new_src, new_sport):
            tables["s", family].append(f"{tuple_} : {new_src} . {new_sport}")

    def maps(family, addr):
        key = f"type inet_proto . {addr} . inet_service . {addr} . inet_service"
        return "".join(f"""
            {kind} {name}{family} {{ {key}{f' : {addr} . inet_service' * (kind == 'map')}
                {elements(tables[name, family])} }}"""
                       for name, kind in (("d", "map"), ("s", "map"), ("m", "set")))
    tuple4, tuple6 = (f"meta l4proto . {ip} saddr . th sport . {ip} daddr . th dport"
                      for ip in ("ip", "ip6"))
    text = f"""
    table inet router {{
        flowtable ft {{ hook ingress priority filter; devices = {{ rc, rs }}; }}
        chain forward {{ type filter hook forward priority filter; }}
        {maps(4, "ipv4_addr")}
        {maps(6, "ipv6_addr")}
        chain prerouting {{
            type nat hook prerouting priority dstnat
            dnat ip to {tuple4} map @d4
            dnat ip6 to {tuple6} map @d6
        }}
        chain postrouting {{
            type nat hook postrouting priority srcnat
            snat ip to {tuple4} map @s4
            snat ip6 to {tuple6} map @s6
            {tuple4} @m4 masquerade
            {tuple6} @m6 masquerade
            tcp sport >= 32768 tcp dport 443 masquerade
        }}
    }}
    """
    with open("/tmp/ruleset", "w", encoding="ascii") as f:
        f.write(text)
    on(router, "nft -f /tmp/ruleset")


# The connections

def sides(family, near, far, there, back):
    """there: (source, destination, ports) as near sends it; back: as far does"""
    return [(near, family, *there), (far, family, *back)]


def neutral_port(client, new, port):
    """The port that makes the address of SNAT leave no trace in the sum"""
    return (csum(address(client)) + port - csum(address(new))) % 0xffff


def connections():
    """Each kind of NAT on each pair of links, TCP and UDP, IPv4 and IPv6"""
    ports = itertools.count(10000)
    for near, far, family in itertools.product(INSIDE, OUTSIDE, (4, 6)):
        router, server = far.addresses[family]
        inside, client = near.addresses[family]
        virtual, borrowed = VIRTUAL[family], BORROWED[family]
        for proto in (TCP, UDP):
            def flow(nat, there, back, first=0):
                return Flow(proto, nat, sides(family, near, far, there, back), first)
            p = next(ports)
            yield flow("", (client, server, p, FAR), (server, client, FAR, p))
            p = next(ports)
            yield flow("", (client, server, 22, p), (server, client, p, 22), 1)
            p = next(ports)
            yield flow("masquerade", (client, server, p, 9000), (server, router, 9000, p))
            p = next(ports)
            yield flow("SNAT", (client, server, p, 9000), (server, borrowed, 9000, p))
            p = next(ports)
            yield flow("SNAT", (client, server, p, 9000), (server, borrowed, 9000, p + 10000))
            p = next(ports)
            q = neutral_port(client, NEUTRAL[family], p)
            yield flow("SNAT", (client, server, p, 9000), (server, NEUTRAL[family], 9000, q))
            p = next(ports)
            yield flow("DNAT", (client, virtual, p, 9000), (server, client, FAR, p))
            p = next(ports)
            yield flow("DNAT", (client, server, p, 80), (server, client, FAR, p))
            p = next(ports)
            yield flow("DNAT, SNAT", (client, virtual, p, 80), (server, borrowed, 8080, p + 10000))
            p = next(ports)
            yield flow("DNAT", (client, server, 80, p), (server, router, p, 8080), 1)
            p = next(ports)
            yield flow("DNAT, SNAT", (client, inside, 80, p + 10000), (server, router, p, 8080), 1)
        yield Flow(GRE, "", sides(family, near, far, (client, server, 0, 0),
                                  (server, client, 0, 0)))


short_ports = itertools.count(32768)


def short_lived():
    """A TCP connection that a frame may end"""
    near, far, family = random.choice(INSIDE), random.choice(OUTSIDE), random.choice((4, 6))
    router, server = far.addresses[family]
    _, client = near.addresses[family]
    p = next(short_ports)
    if random.randrange(2):
        return Flow(TCP, "masquerade", sides(family, near, far, (client, server, p, 443),
                                             (server, router, 443, p)))
    return Flow(TCP, "", sides(family, near, far, (client, server, 444, p),
                               (server, client, p, 444)), 1)


# Frames into both, and what comes out

def normal(data):
    """With what the kernel is free to choose set to 0"""
    if data[12:14] == b"\x08\0" and data[23:24] != b"\1":
        return data
    at = l3_at(data)
    ip = data[at:]
    # errors may have the source address that the NAT hides the router behind
    if len(ip) >= 20 and ip[0] >> 4 == 4 and ip[9] == 1 and (ip[1] >= 0xc0 or ip[12:16] in OWN):
        return data[:at + 4] + bytes(2) + data[at + 6:at + 10] + bytes(2) + data[at + 12:]
    if len(ip) >= 48 and ip[0] >> 4 == 6:
        kind, pos = ip[6], 40
        while kind in (0, 43, 60) and pos + 8 < len(ip):
            kind, pos = ip[pos], pos + 8 * (ip[pos + 1] + 1)
        if kind == 44:
            return data[:at + pos + 4] + bytes(4) + data[at + pos + 8:]
    return data


OWN = {address(link.addresses[4][0]) for link in INSIDE + OUTSIDE}


class Routers:
    def __init__(self):
        self.wires = [{"c0": Wire("client" + t, "c0"), "s0": Wire("server" + t, "s0")}
                      for t in TWINS]
        self.total = 0
        self.left = 0

    def exchange(self, frames, patience=5.0):
        """Frames [(device, bytes), ...] into both; what came of the one and not of the
        other: [(device, bytes with, bytes without), ...], either may be None"""
        self.total += len(frames)
        more = [collections.Counter(), collections.Counter()]
        for twin in self.wires:
            for dev, wire in twin.items():
                data = [f for d, f in frames if d == dev]
                if data:
                    wire.send(data)
        until = time.monotonic() + patience
        while True:
            count = 0
            for out, twin in zip(more, self.wires):
                for dev, wire in twin.items():
                    got = wire.receive()
                    count += len(got)
                    out.update((dev, normal(f)) for f in got if f[:2] != b"\x33\x33")
            if not count:
                if more[0] == more[1]:
                    self.left += more[0].total()
                    return []
                if time.monotonic() > until:
                    return self.pairs(more[0] - more[1], more[1] - more[0])
                time.sleep(0.01)

    @staticmethod
    def pairs(a, b):
        """What differs, each with its most likely counterpart"""
        a, b, found = sorted(a.elements()), sorted(b.elements()), []
        for dev, data in a:
            twin = next((x for x in b if x[0] == dev and x[1][-4:] == data[-4:]), None)
            if twin:
                b.remove(twin)
            found.append((dev, data, twin and twin[1]))
        return found + [(dev, None, data) for dev, data in b]


def show(data, other=b""):
    """Lines of 16 bytes; those that are not in other are marked"""
    if data is None:
        return ["nothing"]
    return [" ".join(f"{c:02x}" + ("*" if other and other[i + k:i + k + 1] != data[i + k:i + k + 1]
                                   else " ") for k, c in enumerate(data[i:i + 16]))
            for i in range(0, len(data), 16)]


def report(name, frames, differences):
    """The frame, its way, and what the two routers made of it, side by side"""
    print(f"class {name}, in:")
    for dev, data in frames:
        print(f"  {dev}: {data.hex(' ', -4)}")
    for dev, with_xdp, without in differences[:4]:
        left, right = show(with_xdp, without), show(without, with_xdp)
        print(f"  out {dev}: {'with xdp_ct':66}without")
        for a, b in itertools.zip_longest(left, right, fillvalue=""):
            print(f"    {a:66}{b}")


class Forwarded:
    """Packets that xdp_ct has counted as forwarded"""
    def __init__(self):
        with open("/sys/devices/system/cpu/possible", encoding="ascii") as f:
            cpus = int(f.read().strip().split("-")[-1]) + 1
        self.maps = [m for m in (map_by_id(i, key_size=4, value_size=16 * cpus)
                                 for i in map_ids()) if m.info()["name"] == "xdp_ct_stats"]

    def __call__(self):
        return sum(sum(struct.unpack(f"={m.value_size // 8}Q", m.lookup(bytes(4)))[::2])
                   for m in self.maps)


def numbered(number):
    return random.randbytes(random.randrange(4, 120)) + struct.pack("!I", number)


def batch_of(name, flows):
    """Rounds of frames, each to be sent at once"""
    if name == "TCP flags":
        # each has data after it, both ways, to see what it did
        short = [short_lived() for _ in range(BATCH // 8)]
        for frames in zip(*(flow.opening() for flow in short)):
            yield list(frames)
        for flags in range(2):
            sent_flags.update(some := list(itertools.islice(all_flags, len(short))))
            yield [flow.plain(random.randrange(2), b"flags", flags=f)
                   for flow, f in zip(short, some)]
            yield [flow.plain(flags, b"behind") for flow in short]
            yield [flow.plain(not flags, b"behind") for flow in short]
    else:
        _, fits, function = CLASSES[name]
        yield [f for i in range(BATCH) for f in
               function(random.choice(flows[fits]), random.randrange(2),
                        numbered(routers.total + i))]


all_flags = itertools.cycle(range(256))
sent_flags = set()


def differential(flows):
    """Until FRAMES have been sent or two differ; False then"""
    names = list(CLASSES) + ["TCP flags"]
    weights = [w for w, _, _ in CLASSES.values()] + [8]
    sent, by_xdp, left = (collections.Counter() for _ in range(3))
    forwarded = Forwarded()
    fitting = {fits: [f for f in flows if fits(f)] for _, fits, _ in CLASSES.values()}
    routers.total = routers.left = 0
    same = True
    while routers.total < FRAMES and same:
        name = random.choices(names, weights)[0]
        before = forwarded(), routers.left, routers.total
        for frames in batch_of(name, fitting):
            differences = routers.exchange(frames)
            if differences:
                same = False
                tails = {data[-4:] for _, *both in differences for data in both if data}
                report(name, [f for f in frames if f[1][-4:] in tails], differences)
                for one in frames:
                    xdp = forwarded()
                    again = routers.exchange([one], 0.2)
                    if again:
                        by = "XDP" if forwarded() > xdp else "the stack"
                        report(f"{name}, sent again, carried by {by}", [one], again)
                        break
                break
        sent[name] += routers.total - before[2]
        left[name] += routers.left - before[1]
        by_xdp[name] += forwarded() - before[0]
    (ok if same else not_ok)(f"{FRAMES} frames leave alike")
    print(f"{'class':24}{'frames':>8}{'by XDP':>8}{'passed':>8}{'came out':>10}")
    for name in names + ["all"]:
        n, xdp, out = ((c.total() if name == "all" else c[name]) for c in (sent, by_xdp, left))
        print(f"{name:24}{n:8}{xdp:8}{n - xdp:8}{out:10}")
    check("a third of them at least by XDP", by_xdp.total() > routers.total / 3)
    least = 99 if PATIENCE == 1 else 95  # GRE's flows have 30 seconds
    check(f"{least} of 100 that are plain by XDP", 100 * by_xdp["plain"] >= least * sent["plain"] > 0)
    if FRAMES >= 20000:
        expect("some of each class were sent", [], [name for name in names if not sent[name]])
        expect("and TCP with all flags", 256, len(sent_flags))
    return same


def untouched(flows):
    """What the program passes up is what came in: by test run, which shows the bytes"""
    fitting = {fits: [f for f in flows if fits(f)] for _, fits, _ in CLASSES.values()}
    programs = {"c0": (prog_of_device("router", "rc"), ifindex("router", "rc")),
                "s0": (prog_of_device("router", "rs"), ifindex("router", "rs"))}
    count = collections.Counter()
    with netns("router"):
        for name in list(CLASSES) + 16 * ["TCP flags"]:  # all of them
            for frames in batch_of(name, fitting):
                for dev, data in frames:
                    program, index = programs[dev]
                    verdict, got = program.test(data, index)
                    count[verdict] += 1
                    if verdict not in (XDP_PASS, XDP_REDIRECT) or \
                       (verdict == XDP_PASS and got != data):
                        not_ok("a frame that is passed up is untouched",
                               f"class {name}, verdict {verdict}\n" + "\n".join(
                                   f"{a:66}{b}" for a, b in itertools.zip_longest(
                                       show(data, got), show(got, data), fillvalue="")))
                        return
                if name == "TCP flags":
                    routers.exchange(frames)  # they open connections
    check("a frame that is passed up is untouched", count[XDP_PASS] > 500 and count[XDP_REDIRECT])
    print(f"test runs: {count[XDP_PASS]} passed, {count[XDP_REDIRECT]} forwarded")


def different(flow):
    """What the twins must not do is seen: one of them sets the DSCP"""
    on("router2", "nft 'add table inet t; add chain inet t c { type filter hook forward "
       "priority 0; }; add rule inet t c ip dscp set 1'")
    expect("a frame that differs is found", 1, len(routers.exchange([flow.plain(0, b"dscp")])))
    on("router2", "nft delete table inet t")


def published():
    """Directions of flows that XDP can do"""
    return sum(not f["needs_stack"] for f in json.loads(on("router", "xdp_ct flows --json")))


def offloaded(router):
    return sum(on(router, f"conntrack -L -f {family} 2>/dev/null").count("[OFFLOAD]")
               for family in ("ipv4", "ipv6"))


random.seed(SEED)
os.sched_setaffinity(0, {0})  # what is sent has arrived, then, when it is sent
print(f"seed {SEED}, {FRAMES} frames")
flows = list(connections())
sessions = [links("router" + t) for t in TWINS]
for t in TWINS:
    ruleset("router" + t, flows)
snoop("router")
routers = Routers()
for frames in itertools.zip_longest(*(flow.opening() for flow in flows)):
    frames = [f for f in frames if f]
    differences = routers.exchange(frames)
    if differences:
        report("opening", [], differences)
        not_ok("connections open alike")
        break
else:
    ok(f"connections open alike: {len(flows)}")
expect("all are offloaded on the one with xdp_ct", len(flows), offloaded("router"))
expect("and none on the other", 0, offloaded("router2"))
expect("XDP can do all of them, both ways", 2 * len(flows),
       wait_for(lambda: (n := published()) >= 2 * len(flows) and n) or published())
start = time.monotonic()
if differential(flows):
    print(f"{time.monotonic() - start:.0f} s")
    different(next(f for f in flows if f.sides[0][1] == 4))
    untouched(flows)
end()
