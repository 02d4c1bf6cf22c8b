# SPDX-License-Identifier: GPL-2.0
"""
encap.py CLIENT SERVER: one pair of encapsulations of encap.sh; the hosts are up

A frame that XDP forwards must be the one that the stack sends. So each frame
is sent twice: first after the flow was deleted from the map, then when the
stack has offloaded it again.
"""
import ctypes
import fcntl
import os
import random
import select
import socket
import struct
import sys
import time
import traceback

from lib import (IPV4, IPV6, MAP_FLOWMAP, NEEDS_STACK, UDP, XDP_PASS, XDP_REDIRECT, Map, check,
                 counted, csum, end, expect, frame, ifindex, ipv4, mac, map_by_id, map_ids, netns, not_ok,
                 on, parse_key, parse_value, prog_of_device, raw_socket, received, run, sysctl, udp,
                 wait_for)

CLIENT_KIND, SERVER_KIND = sys.argv[1:3]
NAME = f"{CLIENT_KIND} to {SERVER_KIND}"
V4, V6 = socket.AF_INET, socket.AF_INET6
VLAN, STAG, PPPOE = 0x8100, 0x88a8, 0x8864
SID = 0x1234
GRE = socket.IPPROTO_GRE
LIBC = ctypes.CDLL(None, use_errno=True)
ports = iter(range(20000, 30000))


class Side:
    """One side of the router: its devices and those of the host there"""
    def __init__(self, kind, host, host_dev, dev, host_mac, dev_mac, net4, net6):
        self.kind, self.host = kind, host
        self.host_phys, self.phys = host_dev, dev
        self.host_mac, self.mac = host_mac, dev_mac
        self.addrs = {V4: (net4 + ".1", net4 + ".2"), V6: (net6 + "::1", net6 + "::2")}
        self.tags = []  # on the wire, outermost first: (type, id)
        self.dev, self.host_dev = dev, host_dev  # with the addresses

    def address(self, ns, dev, own, peer):
        for family, bits in ((V4, 24), (V6, 64)):
            pair = self.addrs[family]
            opt = "nodad" if family == V6 else ""
            if self.kind.startswith("pppoe"):
                on(ns, f"ip addr add {pair[own]} peer {pair[peer]} dev {dev} {opt}")
            else:
                on(ns, f"ip addr add {pair[own]}/{bits} dev {dev} {opt}")

    def vlan(self, proto, ident):
        """Of the same number at both ends"""
        name = {VLAN: "802.1q", STAG: "802.1ad"}[proto]
        for ns, attr in (("router", "dev"), (self.host, "host_dev")):
            below = getattr(self, attr)
            on(ns, f"ip link add link {below} name {below}.{ident} type vlan proto {name} "
               f"id {ident}; ip link set dev {below}.{ident} up")
            setattr(self, attr, f"{below}.{ident}")
        self.tags.append((proto, ident))

    def pppoe(self):
        self.session = [pppoe("router", self.dev, self.host_mac),
                        pppoe(self.host, self.host_dev, self.mac)]
        self.dev, self.host_dev = (s.name for s in self.session)
        self.tags.append((PPPOE, SID))

    def bridge(self, options=""):
        """The physical device and one more are ports"""
        self.mac = "02:aa" + self.mac[5:]
        br = f"br-{self.phys}"
        on("router", f"ip link add {br} address {self.mac} type bridge stp_state 0 {options} && "
           f"ip link add {self.phys}x type veth peer name {self.phys}y && "
           f"ip link set {self.phys}x up && ip link set {self.phys}y up && "
           f"ip link set {self.phys}x master {br} && ip link set {self.phys} master {br} && "
           f"ip link set {br} up")
        self.dev = br

    def setup(self):
        on("router", f"ip -4 addr flush dev {self.dev}")
        on(self.host, f"ip -4 addr flush dev {self.host_dev}")
        for ns, dev in (("router", self.dev), (self.host, self.host_dev)):
            on(ns, f"ethtool -K {dev} txvlan off tx-vlan-stag-hw-insert off")
        if self.kind == "vlan":
            self.vlan(VLAN, 5)
        elif self.kind == "qinq":
            self.vlan(STAG, 100)
            self.vlan(VLAN, 7)
        elif self.kind == "pppoe":
            self.pppoe()
        elif self.kind == "pppoe-vlan":
            self.vlan(VLAN, 35)
            self.pppoe()
        elif self.kind == "bridge":
            self.bridge()
        elif self.kind == "bridge-pvid":  # access port, VLAN device on the bridge
            self.bridge("vlan_filtering 1 vlan_default_pvid 0")
            self.bridge_vlan(10, "pvid untagged")
        elif self.kind in ("bridge-tagged", "bridge-trunk"):  # trunk port
            if self.kind == "bridge-tagged":  # VLAN device on the bridge
                self.bridge("vlan_filtering 1 vlan_default_pvid 0")
                self.bridge_vlan(10, "")
            else:  # the bridge itself is in the VLAN, untagged
                self.bridge("vlan_filtering 1 vlan_default_pvid 10")
                on("router", f"bridge vlan add vid 10 dev {self.phys}")
            on(self.host, f"ip link add link {self.host_dev} name {self.host_dev}.10 type vlan "
               f"id 10; ip link set dev {self.host_dev}.10 up")
            self.host_dev += ".10"
            self.tags.append((VLAN, 10))
        elif self.kind == "vlan-bridge":  # no filtering, the port passes what is tagged
            self.bridge()
            self.vlan(VLAN, 20)
        elif self.kind == "bond":
            on("router", f"ip link set {self.dev} down && ip link add bond0 address {self.mac} "
               f"type bond mode active-backup && ip link set {self.dev} master bond0 && "
               f"ip link set bond0 up")
            self.dev = self.phys = "bond0"
        self.address("router", self.dev, 0, 1)
        self.address(self.host, self.host_dev, 1, 0)

    def bridge_vlan(self, vid, flags):
        on("router", f"bridge vlan add vid {vid} dev {self.phys} {flags} && "
           f"bridge vlan add vid {vid} dev {self.phys}x {flags} && "
           f"bridge vlan add vid {vid} dev {self.dev} self && "
           f"ip link add link {self.dev} name {self.dev}.{vid} type vlan id {vid} && "
           f"ip link set {self.dev}.{vid} up")
        self.dev += f".{vid}"

    def encap(self):
        """As the map has them"""
        tags = self.tags + [(0, 0)] * (2 - len(self.tags))
        return [(proto.to_bytes(2, "big"), ident) for proto, ident in tags]

    def wire(self, dst, src, packet, family):
        """A frame with this side's encapsulation"""
        proto = {V4: 0x0800, V6: 0x86dd}[family]
        for kind, ident in reversed(self.tags):
            if kind == PPPOE:
                ppp = {V4: 0x0021, V6: 0x0057}[family]
                packet = struct.pack("!BBHHH", 0x11, 0, ident, len(packet) + 2, ppp) + packet
            else:
                packet = struct.pack("!HH", ident, proto) + packet
            proto = kind
        return frame(dst, src, packet, proto)


class Session:
    """A PPPoE session without the protocols that agree on one: a socket, a
    channel and a unit of ppp"""
    def __init__(self, sock, channel, unit, name):
        self.sock, self.channel, self.unit, self.name = sock, channel, unit, name


def pppoe(ns, dev, peer):
    """A session with the address peer on dev; ends with its socket"""
    with netns(ns):
        sock = socket.socket(24, socket.SOCK_STREAM, 0)  # AF_PPPOX, PX_PROTO_OE
        # sockaddr_pppox: family, protocol, session, address, device
        addr = struct.pack("=HI", 24, 0) + struct.pack("!H", SID) + mac(peer) + \
            dev.encode().ljust(16, b"\0")
        if LIBC.connect(sock.fileno(), addr, len(addr)):
            raise OSError(ctypes.get_errno(), f"pppoe on {dev}")
        number = struct.unpack("i", fcntl.ioctl(sock, 0x80047437, bytes(4)))[0]  # PPPIOCGCHAN
        channel = os.open("/dev/ppp", os.O_RDWR)
        fcntl.ioctl(channel, 0x40047438, struct.pack("i", number))  # PPPIOCATTCHAN
        unit = os.open("/dev/ppp", os.O_RDWR)
        number = struct.unpack("i", fcntl.ioctl(unit, 0xc004743e,  # PPPIOCNEWUNIT
                                                struct.pack("i", -1)))[0]
        fcntl.ioctl(channel, 0x4004743a, struct.pack("i", number))  # PPPIOCCONNECT
        for proto in (0x21, 0x57):  # PPPIOCSNPMODE: NPMODE_PASS
            fcntl.ioctl(unit, 0x4008744b, struct.pack("ii", proto, 0))
        run(f"ip link set dev ppp{number} mtu 1492 up")
    return Session(sock, channel, unit, f"ppp{number}")


def udp6(src, dst, sport, dport, payload):
    body = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    ends = socket.inet_pton(V6, src) + socket.inet_pton(V6, dst)
    check_ = 0xffff ^ csum(ends + struct.pack("!II", len(body), UDP) + body)
    return struct.pack("!IHBB", 6 << 28, len(body), UDP, 64) + ends + body[:6] + \
        struct.pack("!H", check_ or 0xffff) + body[8:]


def ruleset():
    on("router", f"""nft -f - <<EOT
flush ruleset
table inet router {{
    flowtable ft {{ hook ingress priority filter; devices = {{ {left.phys}, {right.phys} }}; }}
    chain forward {{
        type filter hook forward priority filter
        ct state established flow add @ft
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat
        iifname {right.dev} udp dport 8080 dnat ip to 10.0.1.2:80
        iifname {right.dev} udp dport 8080 dnat ip6 to [fd00:1::2]:80
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat
        oifname {right.dev} meta l4proto != gre masquerade
    }}
}}
EOT""")


def forwarded():
    """Packets that XDP has sent"""
    return sum(packets for m in stats for packets, _ in
               struct.iter_unpack("=QQ", m.lookup(bytes(4))))  # FLOWMAP_FORWARDED, each CPU


class Wire:
    """A host's end of the wire: all that comes in, tags and all"""
    def __init__(self, side):
        self.sock = raw_socket(side.host, side.host_phys)
        self.sock.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA
        self.out = raw_socket(side.host, side.host_phys, receive=False)

    def send(self, data):
        self.out.send(data)

    def receive(self, payload, timeout):
        """The first frame with this payload, or None"""
        until = time.monotonic() + timeout  # others keep coming: the router's probes
        while select.select([self.sock], [], [], max(0, until - time.monotonic()))[0]:
            try:
                data, ancillary, _, _ = self.sock.recvmsg(65536, 256)
            except OSError:  # the device is gone
                return None
            for _, _, aux in ancillary:  # tpacket_auxdata; TP_STATUS_VLAN_VALID
                status, tci, tpid = struct.unpack("=I12xHH", aux[:20])
                if status & 0x10:
                    data = data[:12] + struct.pack("!HH", tpid, tci) + data[12:]
            if payload in data:
                return data
        return None


class Flow:
    """UDP from one side to the other, or GRE: as seen on the original's way in (way 0) and
    the reply's (way 1)"""
    def __init__(self, family, proto=UDP, dnat=False):
        self.family, self.proto = family, proto
        self.sides = (right, left) if dnat else (left, right)
        port = next(ports)
        sender, target = (s.addrs[family][1] for s in self.sides)
        router = self.sides[0 if dnat else 1].addrs[family][0]
        self.ends = [[sender, port, router if dnat else target, 8080 if dnat else port],
                     [target, 80 if dnat else port, sender if dnat else router, port]]
        if proto == GRE:
            self.ends = [[sender, 0, target, 0], [target, 0, sender, 0]]
        for _ in range(3):
            for way in (0, 1):  # a reply that overtakes would be a connection of its own
                wait_for(lambda w=way: self.send(w), timeout=10)

    def packet(self, way, payload):
        src, sport, dst, dport = self.ends[way]
        if self.proto == GRE:
            return ipv4(src, dst, GRE, struct.pack("!HH", 0, 0x0800) + payload)
        if self.family == V6:
            return udp6(src, dst, sport, dport, payload)
        return ipv4(src, dst, UDP, udp(src, dst, sport, dport, payload))

    def send(self, way, payload=None):
        """One packet. Return: the frame that comes out at the other side"""
        side, other = self.sides[::1 if not way else -1]
        payload = payload or random.randbytes(24)
        wires[side].send(side.wire(side.mac, side.host_mac, self.packet(way, payload), self.family))
        return wires[other].receive(payload, 2)

    def find(self, way, m=None):
        """Key in the map, or None"""
        src_port, dst_port = self.ends[way][1], self.ends[way][3]
        for data in (m or flowmap).keys():
            key = parse_key(data)
            if (key.l4proto, key.family, key.sport, key.dport) == \
               (self.proto, self.family, src_port, dst_port) and \
               key.ifindex == ifindex("router", self.sides[way].phys):
                return data
        return None

    def next(self, way):
        """The next packet: by XDP? And how its frame begins (that of 24 bytes of payload)"""
        before = forwarded()
        data = self.send(way)
        return forwarded() - before, data and data[:22]

    def fast(self, way):
        return self.next(way)[0] == 1

    def works(self):
        """Both ways by XDP, in a while"""
        return wait_for(lambda: [self.send(0), self.send(1)] and self.find(0) and
                        self.fast(0) and self.fast(1), timeout=20)


def test_flow(what, flow):
    for way in (0, 1):
        side, other = flow.sides[::1 if not way else -1]
        name = f"{NAME}: {what}, {('original', 'reply')[way]}"
        key = wait_for(lambda w=way: flow.find(w))
        if not check(f"{name}: published", key,
                     state()):
            continue
        k, v = parse_key(key), parse_value(flowmap.lookup(key))
        expect(f"{name}: the key is the frame's", side.encap(),
               [(k.encap0, k.id0), (k.encap1, k.id1)])
        expect(f"{name}: the value says where and how to send",
               (0, ifindex("router", other.phys), other.encap(), mac(other.host_mac),
                mac(other.mac)),
               (v.flags & NEEDS_STACK, v.ifindex, [(v.encap0, v.id0), (v.encap1, v.id1)], v.h_dest,
                v.h_source))
        payload = random.randbytes(33)
        flowmap.delete(key)
        counts = [forwarded()]
        slow = flow.send(way, payload=payload)
        counts.append(forwarded())
        wait_for(lambda w=way: flow.fast(w), timeout=20)
        counts.append(forwarded())
        fast = flow.send(way, payload=payload)
        counts.append(forwarded())
        check(f"{name}: XDP sends what the stack sends",
              slow and slow == fast and counts[1] == counts[0] and counts[3] == counts[2] + 1,
              f"stack: {slow and slow.hex(' ', -4)}\nXDP:   {fast and fast.hex(' ', -4)}\n{counts}")


def test_gre_expiry():
    """No sysctl for it: NF_FLOW_TIMEOUT"""
    flow = Flow(V4, GRE)
    check(f"{NAME}: GRE: by XDP", flow.works(), state())
    start = time.monotonic()
    check(f"{NAME}: GRE: expires", wait_for(lambda: not flow.find(0), timeout=60), state())
    check(f"{NAME}: GRE: after 30 s", 29 < time.monotonic() - start, time.monotonic() - start)


def test_families():
    """Maps for flows of one family"""
    with netns("router"):
        maps = {"IPv4": Map(extra=IPV4), "IPv6": Map(extra=IPV6)}
    for family, name in ((V4, "IPv4"), (V6, "IPv6")):
        flow = Flow(family)
        wait_for(lambda f=flow: f.find(0) and f.find(1))
        expect(f"{NAME}: family: a flow of {name} is in the map for it alone", [[name], [name]],
               [[n for n, m in maps.items() if flow.find(way, m)] for way in (0, 1)])


def test_headroom():
    """Metadata takes all the room in front of a frame, to which a tag is to be added"""
    meta, flow, device = 216, Flow(V4), ifindex("router", left.phys)
    data = bytes(meta) + left.wire(left.mac, left.host_mac, flow.packet(0, b"payload"), V4)
    if not check(f"{NAME}: headroom: by XDP before", flow.works(), state()):
        return
    counts = [counted("headroom")]
    prog = prog_of_device("router", left.phys)
    with netns("router"):
        result = prog.test(data, device, meta=meta)
        roomy, _ = prog.test(data[meta:], device)
    counts.append(counted("headroom"))
    expect(f"{NAME}: headroom: none: passed up unchanged, as headroom; else forwarded",
           ((XDP_PASS, data), XDP_REDIRECT, [0, 1]), (result, roomy, counts))


def state():
    return on("router", "ip neigh; bridge fdb | grep -v self; ip route; conntrack -L 2>&1; "
              "xdp_ct flows 2>&1")


def stale(what, flow, way, command, undo=None, same=False):
    """The very next packet must not go by XDP. By the stack it gets another header or
    does not get out, or it gets the same"""
    if not check(f"{NAME}: stale: {what}: by XDP before", flow.works(),
                 state()):
        return
    old = flow.next(way)
    if callable(command):
        command()
    else:
        on("router", command)
    xdp, header = flow.next(way)
    check(f"{NAME}: stale: {what}: the next packet goes by the stack",
          old[0] == 1 and xdp == 0 and (header == old[1]) == same,
          f"before: {old}\nthen:   {(xdp, header)}")
    if undo:
        on("router", undo)
        check(f"{NAME}: stale: {what}: undone, packets go by XDP again", flow.works(),
              state())


def vlan_priority(dev, priority):
    """Of packets without one; nobody is told (struct vlan_ioctl_args)"""
    with netns("router"), socket.socket() as sock:  # SIOCSIFVLAN, SET_VLAN_EGRESS_PRIORITY_CMD
        fcntl.ioctl(sock, 0x8983, struct.pack("=i24sI20xh2x", 3, dev.encode(), 0, priority))


def padt():
    """The other end of a PPPoE session ends it: one frame"""
    discovery = struct.pack("!BBHH", 0x11, 0xa7, SID, 0)
    data = frame(right.mac, right.host_mac, discovery, 0x8863)
    for kind, ident in reversed([t for t in right.tags if t[0] != PPPOE]):
        data = data[:12] + struct.pack("!HH", kind, ident) + data[12:]
    wires[right].send(data)


# of what changes, where the stack's frame begins like the one before
SAME = ("IPv6 neighbour failed", "neighbour failed", "egress device's MTU",
        "egress device renamed", "conntrack -D", "ruleset flushed", "flowtable deleted")


def test_stale_plain():
    """What every egress has, by real packets"""
    flow = Flow(V6)
    for what, command, undo in (
            ("IPv6 route replaced", "ip route replace 2001:db8::2/128 via 2001:db8::9 dev rs",
             "ip route del 2001:db8::2/128"),
            ("IPv6 route deleted", "ip route del 2001:db8::/64 dev rs",
             "ip route add 2001:db8::/64 dev rs"),
            ("IPv6 policy rule added", "ip -6 rule add to 2001:db8::2 prohibit",
             "ip -6 rule del to 2001:db8::2 prohibit"),
            ("IPv6 neighbour moved", "ip neigh replace 2001:db8::2 dev rs lladdr 02:00:00:00:02:99",
             "ip neigh del 2001:db8::2 dev rs"),
            ("IPv6 neighbour failed", "ip neigh change 2001:db8::2 dev rs nud failed",
             "ip neigh del 2001:db8::2 dev rs")):
        stale(what, flow, 0, command, undo, same=what in SAME)
    zone = "chain inet router raw"
    on("router", f"nft 'add {zone} {{ type filter hook prerouting priority raw; }}; "
       "add rule inet router raw ct zone set 7'")
    stale("conntrack zone flushed", Flow(V4), 0, "conntrack -D -w 7", f"nft delete {zone}",
          same=True)
    flow = Flow(V4)
    flush = "nft list ruleset > /tmp/rules && nft flush ruleset"
    for what, command, undo in (
            ("route replaced", "ip route replace 203.0.113.2/32 via 203.0.113.9 dev rs",
             "ip route del 203.0.113.2/32"),
            ("route deleted", "ip route del 203.0.113.0/24", "ip route add 203.0.113.0/24 dev rs"),
            ("policy rule added", "ip rule add to 203.0.113.2 prohibit",
             "ip rule del to 203.0.113.2 prohibit"),
            ("neighbour moved", "ip neigh replace 203.0.113.2 dev rs lladdr 02:00:00:00:02:99",
             "ip neigh del 203.0.113.2 dev rs"),
            ("neighbour failed", "ip neigh change 203.0.113.2 dev rs nud failed",
             "ip neigh del 203.0.113.2 dev rs"),
            ("link down", "ip link set dev rs down", "ip link set dev rs up"),
            ("carrier lost", "ip -n server link set s0 down", "ip -n server link set s0 up"),
            ("egress device's MTU", "ip link set dev rs mtu 1400", "ip link set dev rs mtu 1500"),
            ("egress device's address", "ip link set dev rs address 02:00:00:00:02:77",
             f"ip link set dev rs address {right.mac}"),
            ("egress device renamed", "ip link set dev rs name other",
             "ip link set dev other name rs"),
            ("conntrack -D", "conntrack -D -p udp --orig-src 10.0.1.2", "true"),
            ("ruleset flushed", flush, "nft -f /tmp/rules"),
            ("flowtable deleted", "nft flush chain inet router forward && "
             "nft delete flowtable inet router ft", "nft flush ruleset && nft -f /tmp/rules"),
            ("egress device removed", "ip link del rs", None)):
        stale(what, flow, 0, command, undo, same=what in SAME)


def test_neighbours():
    """In use by XDP alone for ten times the time that they are held reachable"""
    watch = raw_socket("server", "s0")
    for family, name in ((V4, "IPv4"), (V6, "IPv6")):
        sysctl("router", f"net.{name.lower()}.neigh.rs.base_reachable_time_ms", 500)
        # shorter than that: or each confirmation counts as a use, and the next follows
        sysctl("router", f"net.{name.lower()}.neigh.rs.delay_first_probe_time", 0)
        # its timer still runs for the time that it had
        on("router", f"ip neigh del {right.addrs[family][1]} dev rs")
        flow = Flow(family)
        flow.works()
        received(watch, 0)
        before, sent, probes, ages = forwarded(), 0, 0, []
        start = time.monotonic()
        while time.monotonic() < start + 7.5:  # reachable: 0.25 to 0.75 s
            sent += 1
            flow.send(0)
            # seconds since it was used, confirmed, changed
            ages.append(int(on("router", f"ip -s neigh show {flow.ends[0][2]} dev rs | "
                               "grep -o 'used [^ ]*'").split("/")[1]))
            probes += sum(f[12:14] == b"\x08\x06" and f[20:22] == b"\0\1" or
                          f[12:14] == b"\x86\xdd" and f[20] == 58 and f[54] == 135
                          for f in received(watch, 0) if f[:6] == mac(right.host_mac))
        expect(f"neighbour in use: {name}: each packet goes by XDP", sent, forwarded() - before)
        check(f"neighbour in use: {name}: confirmed again and again", max(ages) < 5, ages)
        check(f"neighbour in use: {name}: its probes are on the wire", probes >= 2, probes)


def test_stale():
    flow = Flow(V4)
    client, br = left.addrs[V4][1], f"br-{left.phys}"
    if "bridge" in left.kind:
        vid = " vlan 10" if left.kind in ("bridge-pvid", "bridge-tagged",
                                             "bridge-trunk") else ""
        pvid = "pvid untagged" if left.kind == "bridge-pvid" else ""
        vlan = f"bridge vlan add vid 10 dev {left.phys}"
        fdb = f"{left.host_mac} dev {left.phys}x master"
        stale("FDB entry moved to another port", flow, 1,
              f"bridge fdb replace {fdb} dynamic{vid}",
              f"bridge fdb del {fdb}{vid} || true")  # a frame may have moved it back
        stale("FDB entry deleted", flow, 1,
              f"bridge fdb del {left.host_mac} dev {left.phys} master{vid}", "true", same=True)
        stale("route through the bridge replaced", flow, 1,
              f"ip route replace {client}/32 via 10.0.1.77 dev {left.dev}",
              f"ip route del {client}/32")
        stale("neighbour behind the bridge moved", flow, 1,
              f"ip neigh replace {client} dev {left.dev} lladdr 02:00:00:00:01:99",
              f"ip neigh del {client} dev {left.dev}")
        stale("neighbour behind the bridge failed", flow, 1,
              f"ip neigh change {client} dev {left.dev} nud failed",
              f"ip neigh show {client} dev {left.dev} | grep -v FAILED", same=True)
        stale("port leaves the bridge", flow, 1, f"ip link set {left.phys} nomaster",
              f"ip link set {left.phys} master {br}" +
              (f" && {vlan} {pvid}" if vid else ""))
        if vid:
            for way, title in ((1, "VLAN taken off the port"),
                               (0, "VLAN taken off the port of ingress")):
                stale(title, flow, way, f"bridge vlan del vid 10 dev {left.phys}",
                      f"{vlan} {pvid}")
            stale("VLAN on the port tagged the other way", flow, 1,
                  f"{vlan} pvid {'' if pvid else 'untagged'}", f"{vlan} {pvid}")
    elif left.kind in ("vlan", "qinq"):
        link, ident = left.dev.rsplit(".", 1)
        stale("ingress device removed", flow, 0, f"ip link del {left.dev}",
              f"ip link add link {link} name {left.dev} type vlan id {ident} && "
              f"ip link set {left.dev} up && ip addr add {left.addrs[V4][0]}/24 dev {left.dev}")
    if right.kind == "pppoe":
        stale("PADT, and the session is gone", flow, 0, padt)
    elif right.kind == "pppoe-vlan":
        stale("PPPoE session of ingress gone", flow, 1, right.session[0].sock.close)
    elif right.dev != right.phys:
        if right.kind in ("vlan", "qinq"):
            stale("VLAN device gets a map of priorities", flow, 0,
                  f"ip link set dev {right.dev} type vlan egress 0:3")
            on("router", f"ip link set dev {right.dev} type vlan egress 0:0")
            check(f"{NAME}: stale: VLAN device: undone, packets go by XDP again", flow.works(),
                  state())
            vlan_priority(right.dev, 3)
            check(f"{NAME}: stale: VLAN device gets one by ioctl: soon none goes by XDP",
                  wait_for(lambda: not flow.fast(0)), state())
            on("router", f"ip link set dev {right.dev} type vlan egress 0:0")
        stale("egress device removed", flow, 0, f"ip link del {right.dev}")


left = Side(CLIENT_KIND, "client", "c0", "rc", os.environ["CLIENT_MAC"], os.environ["RC_MAC"],
            "10.0.1", "fd00:1")
right = Side(SERVER_KIND, "server", "s0", "rs", os.environ["SERVER_MAC"], os.environ["RS_MAC"],
             "203.0.113", "2001:db8")
wires = {}
try:
    on("router", "sysctl -qw net.ipv6.conf.all.forwarding=1")
    for ns in ("client", "router", "server"):
        on(ns, "sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0")
    for ns in ("client", "server"):  # what arrives is for the test, not to be answered
        on(ns, "nft add table inet mute; nft 'add chain inet mute in { type filter hook input "
           "priority 0; }'; nft add rule inet mute in meta l4proto { udp, gre } drop")
    for s in (left, right):
        s.setup()
        wires[s] = Wire(s)
    ruleset()
    on("router", f"xdp_ct attach {left.phys} {right.phys} --counters")
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as f:
        cpus = int(f.read().strip().split("-")[-1]) + 1
    flowmap, stats = None, []
    for i in map_ids():
        m = map_by_id(i)
        if m.info()["type"] == MAP_FLOWMAP:
            flowmap = m
        elif m.info()["name"] == "xdp_ct_stats":
            stats.append(map_by_id(i, key_size=4, value_size=16 * cpus))
    for family, title in ((V4, "IPv4"), (V6, "IPv6")):
        test_flow(f"{title} SNAT", Flow(family))
    if (left.kind, right.kind) == ("plain", "plain"):
        for family, title in ((V4, "IPv4"), (V6, "IPv6")):
            test_flow(f"{title} DNAT", Flow(family, dnat=True))
        test_flow("GRE", Flow(V4, GRE))
        test_gre_expiry()
        test_families()
        test_neighbours()
        test_stale_plain()
    else:
        if right.kind == "qinq":
            test_headroom()
        test_stale()
except (OSError, RuntimeError, AttributeError, TypeError):
    not_ok(f"{NAME}: ends", traceback.format_exc())
end()
