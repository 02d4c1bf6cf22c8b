# SPDX-License-Identifier: GPL-2.0
"""
The header variants that twins.py sends: links, connections, classes of frames

A link is what a host's frames are wrapped in: nothing, VLAN tags, PPPoE. A
flow is a connection between hosts on two links. CLASSES makes frames of it.

Nothing here makes conntrack choose a source port at random, as it does where
two connections would be the same behind the NAT: only known tuples have NAT,
each flow has a port of its own, and noise flips fewer bits than there are
between the addresses that NAT joins, and between the ports of servers that a
client talks to with and without SNAT.
"""
import random
import struct

from lib import ACK, FIN, PSH, RST, SYN, TCP, UDP, URG, csum, ipv4, ipv6, l4, mac, tcp, udp

GRE, ICMP, ICMP6 = 47, 1, 58
VLAN, QINQ, PPPOE = 0x8100, 0x88a8, 0x8864
NOISE = 3  # bits flipped in a frame, at most


class Link:
    """dev is the host's device, router what the router's is called there"""
    def __init__(self, name, dev, router, macs, number, mtu, encap=()):
        self.name, self.dev, self.router, self.mtu, self.encap = name, dev, router, mtu, encap
        self.router_mac, self.host_mac = (mac(m) for m in macs)
        first = "10" if dev == "c0" else "203"
        self.addresses = {4: (f"{first}.{number}.113.1", f"{first}.{number}.113.2"),
                          6: (f"fd{first[:2]}:{number}::1", f"fd{first[:2]}:{number}::2")}

    def wrap(self, packet, family, proto=None, encap=None, dest=None, source=None, pppoe=None):
        """A frame of the host's; pppoe may change that header: (version and type, code, length)"""
        data = (dest or self.router_mac) + (source or self.host_mac)
        inner = (0x0800 if family == 4 else 0x86dd) if proto is None else proto
        for kind, ident in self.encap if encap is None else encap:
            if kind == PPPOE:
                ppp = {0x0800: 0x21, 0x86dd: 0x57}.get(inner, inner)
                vt, code, length = pppoe or (0x11, 0, None)
                length = len(packet) + 2 if length is None else length
                return data + struct.pack("!HBBHHH", kind, vt, code, ident, length & 0xffff,
                                          ppp) + packet
            data += struct.pack("!HH", kind, ident)
        return data + struct.pack("!H", inner) + packet


class Flow:
    """sides: (link, family, source, destination, source port, destination port)
    of what each of the two hosts sends; first says who opens it"""
    def __init__(self, proto, nat, sides, first=0):
        self.proto, self.nat, self.sides, self.first = proto, nat, sides, first

    def egress(self, side):
        return self.sides[not side][0]

    def after(self, side):
        """Addresses and ports of this side's packets behind the NAT"""
        _, _, src, dst, sport, dport = self.sides[not side]
        return dst, src, dport, sport

    def segment(self, side, payload=b"", check=True, length=None, after=False, flags=ACK, seq=1,
                ack=1, doff=5, options=b"", urg=0):
        src, dst, sport, dport = self.after(side) if after else self.sides[side][2:]
        if self.proto == GRE:
            return struct.pack("!HHI", 0x2000, 0x0800, 7) + payload
        if self.proto == UDP:
            return udp(src, dst, sport, dport, payload, check, length)
        return tcp(src, dst, sport, dport, flags, seq, ack, payload, doff, options=options, urg=urg)

    def packet(self, side, segment, proto=None, **ip):
        _, family, src, dst = self.sides[side][:4]
        if family == 6:
            ip = {k: v for k, v in ip.items() if k in ("ttl", "tos", "label", "total", "version")}
        return (ipv4 if family == 4 else ipv6)(src, dst, self.proto if proto is None else proto,
                                               segment, **ip)

    def frame(self, side, segment, proto=None, wrap=None, **ip):
        link, family = self.sides[side][:2]
        return link.dev, link.wrap(self.packet(side, segment, proto, **ip), family, **wrap or {})

    def plain(self, side, payload=b"", **l4_args):
        return self.frame(side, self.segment(side, payload, **l4_args))

    def opening(self):
        """Frames in the order in which they open the connection"""
        a, b = self.first, not self.first
        if self.proto != TCP:
            return [self.plain(a, b"open"), self.plain(b, b"open"), self.plain(a, b"open")]
        return [self.plain(a, flags=SYN, seq=0, ack=0), self.plain(b, flags=SYN | ACK, seq=0),
                self.plain(a), self.plain(b), self.plain(a)]


# Classes: functions of (flow, side, payload) that give frames [(device, bytes), ...]

def tail(flow, side, payload, **args):
    return [flow.frame(side, flow.segment(side, payload, **args))]


def with_ip(**choices):
    """A field of the IP header, by a function that chooses it"""
    def make(flow, side, payload):
        return [flow.frame(side, flow.segment(side, payload),
                           **{k: choose() for k, choose in choices.items()})]
    return make


def below(n):
    return lambda: random.randrange(n)


def one_of(*values):
    return lambda: random.choice(values)


def sized(flow, side, size, payload, **ip):
    """An IP packet of so many bytes, if it can be that short"""
    head = len(flow.packet(side, flow.segment(side)))
    fill = random.randbytes(max(size - head - len(payload), 0))
    return [flow.frame(side, flow.segment(side, fill + payload), **ip)]


def big(flow, side, payload):
    """About the MTU of where it leaves, or as large as comes in"""
    mtu = flow.egress(side).mtu
    size = random.choice((mtu - 1, mtu, mtu, mtu + 1, mtu + 8, mtu // 2, 1500, 1501,
                          flow.sides[side][0].mtu, random.randrange(1280, 3400)))
    return sized(flow, side, min(size, flow.sides[side][0].mtu), payload,
                 frag=random.choice((0, 0x4000)), ident=random.randrange(65536))


def sums(flow, side, payload):
    """Checksums that are 0 or ffff, before or behind the NAT, wrong, or none"""
    payload = payload[:len(payload) & ~1]
    at, bare = (6, 8) if flow.proto == UDP else (16, 20)
    if flow.proto == GRE:
        return tail(flow, side, payload)
    kind = random.randrange(4)
    if kind < 2:  # the last word makes the sum 0
        probe = flow.segment(side, payload + bytes(2), after=kind == 1)
        word = probe[at:at + 2]
        segment = flow.segment(side, payload + word)
        if kind == 0 and flow.proto == TCP and random.randrange(2):
            segment = segment[:at] + b"\xff\xff" + segment[at + 2:]
    else:
        check = random.choice((b"\0\0", b"\0\0", b"\xff\xff", random.randbytes(2)))
        segment = flow.segment(side, payload)
        assert len(segment) >= bare
        segment = segment[:at] + check + segment[at + 2:]
    return [flow.frame(side, segment)]


def ip_sum(flow, side, payload):
    """IPv4's header checksum: wrong, or 0 made so by the identification, as 0 or ffff"""
    segment = flow.segment(side, payload)
    if random.randrange(2):
        return [flow.frame(side, segment, check=random.randrange(65536))]
    probe = flow.packet(side, segment)
    ident = struct.unpack("!H", probe[10:12])[0]
    return [flow.frame(side, segment, ident=ident, check=random.choice((0, 0xffff)))]


def l4_lies(flow, side, payload):
    if flow.proto == UDP:
        length = random.choice((0, 7, 8, 9, len(payload), len(payload) + 7, len(payload) + 9,
                                random.randrange(65536)))
        return tail(flow, side, payload, length=length)
    return tail(flow, side, payload, doff=random.randrange(16))


def ip_lies(flow, side, payload):
    segment = flow.segment(side, payload)
    head = 20 if flow.sides[side][1] == 4 else 0
    total = random.choice((0, head, head + 7, head + 8, head + len(segment) - 1,
                           head + len(segment) + 1, 65535, random.randrange(2000)))
    return [flow.frame(side, segment, total=total)]


def padded(flow, side, payload):
    dev, data = flow.frame(side, flow.segment(side, payload[-random.randrange(1, 5):]))
    return [(dev, data.ljust(60, b"\0") if random.randrange(2) else
             data + random.randbytes(random.randrange(1, 40)))]


def tcp_options(flow, side, payload):
    options = random.choice((b"\x01\x01\x08\x0a" + random.randbytes(8),
                             b"\x01\x01\x05\x0a" + random.randbytes(8), bytes(40), b"\x01" * 4,
                             b"\x02\x04\x05\xb4", b"\xfe" + random.randbytes(3)))
    return tail(flow, side, payload, options=options)


def tcp_seq(flow, side, payload):
    """Any window, urgent pointer and flags that leave the connection as it is"""
    return tail(flow, side, payload, seq=random.randrange(1 << 32), ack=random.randrange(1 << 32),
                flags=random.choice((ACK, ACK | PSH, ACK | URG, ACK | 0xc0, ACK | 0x80, ACK | 0x40)),
                urg=random.choice((0, 1, 65535)))


def ip_options(flow, side, payload):
    """No time stamps: the router would write its clock's"""
    options = random.choice((
        b"\x01\x01\x01\0", b"\x94\x04\0\0", b"\x07\x07\x04\0\0\0\0\0", b"\x07\x0b\x04" + bytes(9),
        bytes(40), b"\x83\x07\x04\x0a\x01\x71\x02\0", b"\x82\x0b" + bytes(10), b"\x07\x03\x05\0",
        b"\x99\x28\0\0", random.randbytes(1) + b"\x04" + random.randbytes(2)))
    if options[0] & 0x1f in (4, 7) and len(options) == 4:
        options = b"\x01\x01\x01\0"
    return [flow.frame(side, flow.segment(side, payload), options=options)]


def extension(flow, side, payload):
    """IPv6's chain of headers, right and wrong, before the transport header"""
    def header(after, body):
        return bytes((after, (len(body) + 2) // 8 - 1)) + body
    hop, route, dest = 0, 43, 60
    pad, unknown = b"\x01\x04\0\0\0\0", bytes((random.choice((0x3e, 0x7e, 0xbe, 0xfe)), 4)) + bytes(4)
    chains = {
        "hop": ((hop, pad),), "dest": ((dest, pad),), "both": ((hop, pad), (dest, pad)),
        "alert": ((hop, b"\x05\x02\0\0\x01\0"),), "jumbo": ((hop, b"\xc2\x04\0\x01\0\0"),),
        "unknown": ((random.choice((hop, dest)), unknown),), "order": ((dest, pad), (hop, pad)),
        "route": ((route, bytes((random.choice((0, 2, 3, 4)), random.choice((0, 1)))) + bytes(20)),),
        "long": ((dest, b"\x01\x3c" + bytes(60)),), "many": ((dest, pad),) * 6,
        "others": ((random.choice((135, 139, 140, 51)), random.randbytes(6)),), "none": (),
    }
    name = random.choice(list(chains))
    segment, after = flow.segment(side, payload), 59 if name == "none" else flow.proto
    for kind, body in reversed(chains[name]):
        segment, after = header(after, body) + segment, kind
    if not random.randrange(10):
        segment = segment[:random.randrange(len(segment))]
    return [flow.frame(side, segment, proto=after)]


def fragments(flow, side, payload):
    """First, middle, last, all of them in some order, twice, overlapping"""
    segment = flow.segment(side, random.randbytes(random.randrange(40, 900)) + payload)
    ident, size = random.randrange(1 << 32), 8 * random.randrange(1, 30)
    size = max(size, len(segment) // 96 * 8)
    pieces = [(at, segment[at:at + size], at + size < len(segment))
              for at in range(0, len(segment), size)]
    kind = random.randrange(9)
    if kind < 3:
        pieces = [pieces[(0, len(pieces) // 2, -1)[kind]]]
    elif kind == 4:
        pieces.reverse()
    elif kind == 5:
        random.shuffle(pieces)
    elif kind == 6:
        pieces.insert(random.randrange(len(pieces)), random.choice(pieces))
    elif kind == 7:
        at = 8 * random.randrange(len(segment) // 8)
        pieces.insert(random.randrange(len(pieces)), (at, random.randbytes(16), True))
    elif kind == 8:
        pieces = [(0, segment, False)]
    frames = []
    for at, piece, more in pieces[:12]:
        if flow.sides[side][1] == 4:
            frames.append(flow.frame(side, piece, ident=ident & 0xffff,
                                     frag=at // 8 | 0x2000 * more))
        else:
            head = struct.pack("!BBHI", flow.proto, 0, at | more, ident)
            frames.append(flow.frame(side, head + piece, proto=44))
    return frames


def icmp_error(flow, side, payload):
    """About a packet that this side has got, quoted as it looked here"""
    family = flow.sides[side][1]
    quote = flow.after(not side)
    if flow.proto == UDP:
        inner = udp(*quote, payload)
    elif flow.proto == TCP:
        inner = tcp(*quote, ACK, 1, 1, payload)
    else:
        inner = flow.segment(not side, payload)
    inner = (ipv4 if family == 4 else ipv6)(quote[0], quote[1], flow.proto, inner,
                                            ttl=random.randrange(1, 64))
    if not random.randrange(3):
        inner = inner[:random.choice((28, 48, len(inner), random.randrange(len(inner))))]
    if inner and not random.randrange(6):
        inner = flip(inner, 0, len(inner), 2)
    if family == 4:
        kind, code = random.choice(((3, random.randrange(17)), (3, 4), (4, 0), (5, 1), (11, 0),
                                    (11, 1), (12, 0)))
        head = struct.pack("!BBHI", kind, code, 0, random.choice((0, 1400, 68)))
        data = head + inner
        data = data[:2] + struct.pack("!H", 0xffff ^ csum(data)) + data[4:]
        proto = ICMP
    else:
        kind, code = random.choice(((1, random.randrange(8)), (2, 0), (3, 0), (3, 1), (4, 1),
                                    (100, 0)))
        data = struct.pack("!BBHI", kind, code, 0, random.choice((0, 1400, 1280))) + inner
        data = l4(*flow.sides[side][2:4], ICMP6, data, 2)
        proto = ICMP6
    if not random.randrange(6):
        data = flip(data, 0, 8, 1)
    return [flow.frame(side, data, proto=proto)]


def protocols(flow, side, payload):
    """Neither TCP nor UDP nor GRE, or GRE with a version"""
    proto = random.choice((0, 2, 4, 41, 47, 50, 51, 89, 103, 132, 136, 253, 255))
    data = random.randbytes(8) + payload
    if proto == GRE:
        data = b"\x20\x01" + data
    if random.randrange(3) == 0:  # echo
        proto = ICMP if flow.sides[side][1] == 4 else ICMP6
        data = struct.pack("!BBHHH", 8 if proto == ICMP else 128, 0, 0,
                           random.randrange(65536), 1) + payload
        data = data[:2] + struct.pack("!H", 0xffff ^ csum(data)) + data[4:] if proto == ICMP else \
            l4(*flow.sides[side][2:4], proto, data, 2)
    return [flow.frame(side, data, proto=proto)]


def encaps(flow, side, payload):
    """Tags and sessions that the link has not, priorities, PPPoE that lies"""
    link, family = flow.sides[side][:2]
    packet = flow.packet(side, flow.segment(side, payload))
    encap = list(link.encap)
    wrap = {}
    kind = random.randrange(7)
    if kind < 2:  # priority and DEI are not the packet's
        encap = [(k, i | random.randrange(16) << 12) if k != PPPOE else (k, i) for k, i in encap]
    elif kind == 2:
        encap = encap[:-1] + [(k, i ^ 1 << random.randrange(12)) for k, i in encap[-1:]]
    elif kind == 3:
        encap.insert(0, (random.choice((VLAN, QINQ)), random.choice((0, 5, 4095, 0xe000))))
    elif kind == 4:
        encap = encap[1:]
    elif kind == 5:
        encap.reverse()
    wrap["encap"] = encap
    if any(k == PPPOE for k, _ in encap) and kind == 6:
        n = len(packet) + 2
        length = random.choice((n, n, n - 1, n + 1, 0, 1, 2, 30, 65535))
        wrap["pppoe"] = (random.choice((0x11, 0x11, 0x12, 0x21)), random.choice((0, 0, 0, 1)), length)
        wrap["proto"] = random.choice((None, None, 0x21, 0x57, 0x2100, 0xc021, 0xfd))
    data = link.wrap(packet, family, **wrap)
    return [(link.dev, data + random.randbytes(random.choice((0, 0, 6))))]


def ethernet(flow, side, payload):
    """Types and addresses that are not the router's"""
    link = flow.sides[side][0]
    wrap = random.choice((
        {"proto": random.choice((0x0806, 0x0800, 0x86dd, 0x88cc, 0x8847, 46, 1500, 0))},
        {"dest": random.choice((mac("02:00:00:00:09:09"), mac("01:00:5e:00:00:05"),
                                mac("33:33:00:00:00:01"), bytes(6), link.host_mac))},
        {"source": random.choice((mac("02:00:00:00:09:09"), link.router_mac, bytes(6)))}))
    if PPPOE in (k for k, _ in link.encap):
        wrap.pop("source", None)  # a session is its peer's for PPPoE, anybody's for the flowtable
    return [flow.frame(side, flow.segment(side, payload), wrap=wrap)]


def flip(data, start, end, bits):
    data = bytearray(data)
    for _ in range(bits):
        data[random.randrange(start, end)] ^= 1 << random.randrange(8)
    return bytes(data)


def l3_at(data):
    """Where the IP header of a frame is"""
    at = 12
    while at + 2 < len(data):
        kind = data[at:at + 2]
        if kind in (b"\x81\0", b"\x88\xa8"):
            at += 4
        elif kind == b"\x88\x64":
            return at + 10
        else:
            return at + 2
    return len(data)


def noise(flow, side, payload):
    """Some bits of the headers, but none that end a TCP connection: what became
    of it would differ for the frames that follow"""
    dev, data = flow.plain(side, payload)
    start = l3_at(data)
    l4_at = start + (20 if flow.sides[side][1] == 4 else 40)
    new = bytearray(flip(data, start, min(len(data), l4_at + 20), random.randrange(1, NOISE + 1)))
    if flow.proto == TCP and len(new) > l4_at + 13:
        new[l4_at + 13] &= ~(FIN | SYN | RST)
    if v4(flow) and random.randrange(2):
        new[start + 10:start + 12] = bytes(2)
        new[start + 10:start + 12] = struct.pack("!H", 0xffff ^ csum(new[start:start + 20]))
    return [(dev, bytes(new))]


def cut(flow, side, payload):
    dev, data = flow.plain(side, payload)
    return [(dev, data[:random.randrange(14, len(data))])]


def v4(flow):
    return flow.sides[0][1] == 4


def v6(flow):
    return not v4(flow)


def is_tcp(flow):
    return flow.proto == TCP


def any_flow(_):
    return True


# class: (weight, which flows, function)
CLASSES = {
    "plain": (20, any_flow, tail),
    "empty": (2, any_flow, lambda flow, side, payload: [flow.plain(side)]),
    "DSCP and ECN": (3, any_flow, with_ip(tos=below(256))),
    "flow label": (2, v6, with_ip(label=below(1 << 20))),
    "identification": (3, v4, with_ip(ident=below(65536), frag=one_of(0, 0x4000))),
    "reserved bit": (1, v4, with_ip(frag=one_of(0x8000, 0xc000))),
    "TTL, hop limit": (6, any_flow, with_ip(ttl=one_of(0, 1, 2, 2, 3, 255))),
    "checksums": (6, any_flow, sums),
    "IPv4 checksum": (3, v4, ip_sum),
    "padding": (5, any_flow, padded),
    "IPv4 options": (3, v4, ip_options),
    "extension headers": (4, v6, extension),
    "IP length lies": (4, any_flow, ip_lies),
    "IP version": (1, any_flow, with_ip(version=below(16))),
    "IPv4 header length": (2, v4, with_ip(ihl=below(16))),
    "UDP, TCP length lies": (4, lambda flow: flow.proto != GRE, l4_lies),
    "TCP options": (4, is_tcp, tcp_options),
    "TCP sequence, window": (4, is_tcp, tcp_seq),
    "fragments": (2, any_flow, fragments),
    "about the MTU": (7, any_flow, big),
    "VLAN, QinQ, PPPoE": (6, lambda flow: flow.sides[0][0].encap or flow.sides[1][0].encap, encaps),
    "Ethernet": (3, any_flow, ethernet),
    "other protocols": (3, any_flow, protocols),
    "ICMP errors": (5, any_flow, icmp_error),
    "cut off": (3, any_flow, cut),
    "noise": (6, any_flow, noise),
}
