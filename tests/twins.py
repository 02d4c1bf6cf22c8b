# SPDX-License-Identifier: GPL-2.0
"""Cases of twins.sh: twins.py [FRAMES [SEED]]

A frame's payload ends with its number, where it has room for it. Masked, as
the kernel is free to choose: identification (and so the checksum) of ICMP
errors that the routers make. Not masked: the source port that conntrack picks
at random where two connections would clash behind the NAT. Seed 1, which is
used if none is given, makes no such connections; of others a few do.
"""
import collections
import contextlib
import json
import os
import random
import struct
import sys

from lib import (ACK, FIN, PSH, RST, SYN, TCP, UDP, URG, check, end, expect, frame, ipv4, mac,
                 not_ok, ok, on, raw_socket, received, tcp, udp)

CLIENT, SERVER, ROUTER, INSIDE = "10.0.1.2", "203.0.113.2", "203.0.113.1", "10.0.1.1"
CLIENT_MAC, RC_MAC, RS_MAC, SERVER_MAC = (os.environ[n] for n in
                                          ("CLIENT_MAC", "RC_MAC", "RS_MAC", "SERVER_MAC"))
FRAMES = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
random.seed(seed)
print(f"seed {seed}, {FRAMES} frames")

ends = [{"c0": raw_socket("client" + t, "c0"), "s0": raw_socket("server" + t, "s0")}
        for t in ("", "2")]


def normal(data):
    if data[12:14] == b"\x08\0" and data[23] == 1 and data[26:30] in (
            bytes(map(int, ROUTER.split("."))), bytes(map(int, INSIDE.split(".")))):
        return data[:18] + bytes(2) + data[20:24] + bytes(2) + data[26:]
    return data


def send(frames):
    """Frames [(device, bytes), ...] into both; [{device: [what came out]}, ...]"""
    for twin in ends:
        for dev, data in frames:
            with contextlib.suppress(OSError) if len(data) > 1414 else contextlib.nullcontext():
                twin[dev].send(data)  # above its MTU the other end drops it
    return [{dev: [normal(f) for f in received(s, 0.3 if dev == "c0" else 0.05)]
             for dev, s in twin.items()} for twin in ends]


class Flow:
    """A connection as its two hosts see it; inside is the client's"""
    def __init__(self, proto, port, forward):
        self.proto, self.port, self.forward = proto, port, forward
        # (device, MACs, addresses, ports) of what each side sends
        out = ("c0", RC_MAC, CLIENT_MAC, CLIENT, SERVER)
        back = ("s0", RS_MAC, SERVER_MAC, SERVER, ROUTER)
        self.sides = [out + ((80, port) if forward else (port, 9000)),
                      back + ((port, 8080) if forward else (9000, port))]

    def make(self, side, payload=b"", flags=ACK, check_=True, seq=1, ack=1, options=b"",
             proto=0x0800, pad=b"", length=None, doff=5, dest=None, **ip):
        dev, dst, src, saddr, daddr, sport, dport = self.sides[side]
        segment = udp(saddr, daddr, sport, dport, payload, check_, length) if self.proto == UDP \
            else tcp(saddr, daddr, sport, dport, flags, seq, ack, payload, doff, options=options)
        return dev, frame(dest or dst, src, ipv4(saddr, daddr, self.proto, segment, **ip),
                          proto) + pad

    def open(self):
        first = 1 if self.forward else 0
        if self.proto == UDP:
            return [self.make(first), self.make(not first), self.make(first)]
        return [self.make(first, flags=SYN, seq=0, ack=0),
                self.make(not first, flags=SYN | ACK, seq=0, ack=1), self.make(first),
                self.make(not first)]


def some_flags():
    return random.choice((ACK | PSH, ACK | URG, ACK | 0xc0, ACK | SYN, 0, 0xff, PSH, SYN | FIN, URG))


# class: (weight, arguments for make())
CLASSES = {
    "plain": (30, lambda p: {}),
    "tos": (5, lambda p: {"tos": random.randrange(256)}),
    "ident": (5, lambda p: {"ident": random.randrange(65536)}),
    "DF": (5, lambda p: {"frag": 0x4000}),
    "reserved bit": (2, lambda p: {"frag": 0x8000}),
    "no checksum": (4, lambda p: {"check_": False}),
    "TTL": (8, lambda p: {"ttl": random.choice((0, 1, 2, 3, 255))}),
    "padding": (6, lambda p: {"pad": random.randbytes(random.randrange(1, 40))}),
    "IP options": (4, lambda p: {"options_": random.choice((b"\x01\x01\x01\0", b"\x94\x04\0\0"))}),
    "IP checksum": (3, lambda p: {"check": random.randrange(65536)}),
    "IP length": (4, lambda p: {"total": random.choice((random.randrange(2000), 20, 28, 65535))}),
    "IP version": (2, lambda p: {"version": random.randrange(16)}),
    "header length": (2, lambda p: {"ihl": random.randrange(16)}),
    "L4 length": (4, lambda p: {"length": random.randrange(200), "doff": random.randrange(16)}),
    "TCP flags": (6, lambda p: {"flags": some_flags()}),
    "TCP options": (5, lambda p: {"options": b"\x01\x01\x08\x0a" + random.randbytes(8)}),
    "fragment": (4, lambda p: {"frag": random.choice((0x2000, 0x2001, 5, 0x1fff))}),
    "big": (4, lambda p: {"size": random.choice((1340, 1352, 1356, 1368, 1369, 1400, 1440)),
                        "frag": random.choice((0, 0x4000))}),
    "ethertype": (2, lambda p: {"proto": random.choice((0x0806, 0x86dd, 0x88cc, 46))}),
    "other host": (2, lambda p: {"dest": random.choice(("02:00:00:00:09:09", "01:00:5e:00:00:05"))}),
    "cut": (4, lambda p: {"cut": True}),
    "noise": (6, lambda p: {"noise": random.randrange(1, 4)}),
}


def random_frame(flows, number):
    """(class, device, bytes)"""
    name = random.choices(list(CLASSES), [w for w, _ in CLASSES.values()])[0]
    flow = random.choice(flows)
    args = CLASSES[name][1](flow.proto)
    size = args.pop("size", random.randrange(4, 200))
    cut, noise = args.pop("cut", False), args.pop("noise", 0)
    payload = random.randbytes(size) + struct.pack("!I", number)
    options = args.pop("options_", None)
    if options:
        dev, dst, src, saddr, daddr, sport, dport = flow.sides[number & 1]
        segment = udp(saddr, daddr, sport, dport, payload) if flow.proto == UDP else \
            tcp(saddr, daddr, sport, dport, ACK, 1, 1, payload)
        data = frame(dst, src, ipv4(saddr, daddr, flow.proto, segment, options=options))
    else:
        dev, data = flow.make(number & 1, payload=payload, **args)
    data = bytearray(data)
    for _ in range(noise):
        data[random.randrange(14, min(len(data), 54))] ^= 1 << random.randrange(8)
    # noise must not end a connection: its state would differ for the frames that follow
    if noise and flow.proto == TCP and data[47] & (FIN | SYN | RST):
        data[47] &= ~(FIN | SYN | RST)
    if cut:
        data = data[:random.randrange(14, len(data))]
    return name, dev, bytes(data)


def show(data):
    return data.hex(" ", -4)


def diff(frames, a, b):
    """What of the first router is not of the second, and the other way round"""
    for dev in ("c0", "s0"):
        with_xdp, without = collections.Counter(a[dev]), collections.Counter(b[dev])
        for name, left in (("with xdp_ct", with_xdp - without),
                           ("without", without - with_xdp)):
            for data in left:
                yield f"{dev}, {name} only: {show(data)}"


def forwarded():
    stats = json.loads(on("router", "xdp_ct stats --json"))
    return sum(s.get("forwarded", {}).get("packets", 0) for s in stats.values())


flows = [Flow(proto, 10000 + i, forward) for i, (proto, forward) in
         enumerate((p, f) for p in (UDP, TCP) for f in (False, True) for _ in range(3))]
for flow in flows:
    for one in flow.open():
        result = send([one])
        if result[0] != result[1]:
            not_ok("connections open alike", "\n".join(diff([one], *result)))
expect("all connections are offloaded on the one with xdp_ct", len(flows),
       on("router", "conntrack -L 2>/dev/null").count("[OFFLOAD]"))
expect("and none on the other", 0, on("router2", "conntrack -L 2>/dev/null").count("[OFFLOAD]"))

classes = collections.Counter()
by_xdp = collections.Counter()
total = different = left = 0
BATCH = 100
while total < FRAMES and not different:
    batch = []
    for _ in range(BATCH):
        name, dev, data = random_frame(flows, total)
        classes[name] += 1
        batch.append((dev, data))
        total += 1
    out = send(batch)
    left += sum(len(f) for f in out[0].values())
    for line in diff(batch, *out):
        different += 1
        if different <= 10:
            print(line)
    if different:
        # which of them, one by one
        for dev, data in batch:
            out = send([(dev, data)])
            text = list(diff([], *out))
            if text:
                print(f"in at {dev}: {show(data)}")
                print("\n".join(text))
                break
if different:
    not_ok(f"{FRAMES} frames leave alike", f"seed {seed}: {different} differ after {total} frames")
else:
    ok(f"{FRAMES} frames leave alike: {left} did")
print(", ".join(f"{n} {c}" for n, c in classes.most_common()))
check("a third of them at least by XDP", forwarded() > total / 3, f"{forwarded()} of {total}")
check("no connection was lost on the way",
      on("router", "conntrack -L 2>/dev/null").count("[OFFLOAD]") >= len(flows) // 2)
end()
