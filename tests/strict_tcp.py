# SPDX-License-Identifier: GPL-2.0
"""
Cases of strict_tcp.sh; the hosts, the ruleset and xdp_ct are up

Handshakes go through the router as frames, so that conntrack learns and the
flowtable takes the connection. What follows is run through the programs that
are on the router's devices, without being sent: a verdict for each packet.
"""
import json
import os
import random
import select
import struct
import sys
import time
import traceback

import lib
from lib import (ACK, PSH, SYN, TCP, XDP_PASS, XDP_REDIRECT, check, counted, end, expect, ifindex,
                 ip_frame, netns, not_ok, on, prog_of_device, raw_socket, received, tcp,
                 wait_for)

# client, server, router to the server; the VLAN on the client's side
WAYS = {"IPv4": ("10.0.1.2", "203.0.113.2", "203.0.113.1", 0),
        "IPv6": ("fd01::2", "fd02::2", "fd02::1", 0),
        "VLAN": ("10.0.5.2", "203.0.113.2", "203.0.113.1", 5)}
CLIENT_MAC, RC_MAC, RS_MAC, SERVER_MAC = (os.environ[n] for n in
                                          ("CLIENT_MAC", "RC_MAC", "RS_MAC", "SERVER_MAC"))
RC, RS = ifindex("router", "rc"), ifindex("router", "rs")
PORT = 7777
SACK = b"\x04\x02\x01\x01"

packets = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
random.seed(seed)
print(f"seed {seed}")

rc, rs = prog_of_device("router", "rc"), prog_of_device("router", "rs")
c0, s0 = raw_socket("client", "c0"), raw_socket("server", "s0")
next_port = 20000


def send(source, dest, data, port):
    """Put it on one end of the wire: does it come out at the other, in a while?"""
    received(dest, 0)  # what has come before
    source.send(data)
    until = time.monotonic() + 20
    while select.select([dest], [], [], max(0, until - time.monotonic()))[0]:
        if struct.pack("!H", port) in dest.recv(65536)[34:60]:
            return True
    return False


def wscale(shift):
    return b"" if shift is None else b"\x01\x03\x03" + bytes([shift])


class Connection:
    """Sequence numbers of its methods count from each side's first byte of data"""
    def __init__(self, scales=(7, 8), start=None, sack=SACK, handshake=True, win=1000):
        global next_port
        next_port += 1
        self.host, self.peer, self.router, self.vlan = WAYS[way]
        self.port = next_port
        self.start = start or (random.randrange(1 << 32), random.randrange(1 << 32))
        self.win = win
        options = [sack + wscale(s) for s in scales]
        if handshake:
            send(c0, s0, self.client(-1, -self.start[1], flags=SYN, options=options[0]), self.port)
            send(s0, c0, self.server(-1, 0, flags=SYN | ACK, options=options[1]), self.port)
        self.offload(0, 0, handshake)

    def offload(self, seq, ack, established=True):
        """By packets that say nothing new, the server's too if it must, until
        the flow is published"""
        for n in range(50):
            if n % 2 or established:
                c0.send(self.client(seq, ack))
            else:
                s0.send(self.server(ack, seq))
            if wait_for(lambda: len(self.flows()) == 2, 0.1):
                return
        raise RuntimeError("the connection is not offloaded")

    def flows(self):
        return json.loads(on("router", f"xdp_ct flows --json -p tcp --sport {self.port}"))

    def client(self, seq, ack, win=None, length=0, flags=ACK, options=b""):
        return ip_frame(RC_MAC, CLIENT_MAC, self.host, self.peer, TCP, tcp(
            self.host, self.peer, self.port, PORT, flags, self.start[0] + seq, self.start[1] + ack,
            bytes(length), window=self.win if win is None else win, options=options), self.vlan)

    def server(self, seq, ack, win=None, length=0, flags=ACK, options=b""):
        return ip_frame(RS_MAC, SERVER_MAC, self.peer, self.router, TCP, tcp(
            self.peer, self.router, PORT, self.port, flags, self.start[1] + seq,
            self.start[0] + ack, bytes(length), window=self.win if win is None else win, options=options))

    def verdict(self, side, *args, **kwargs):
        """Of a packet of client (0) or server (1): is it on XDP?"""
        prog, dev, make = ((rc, RC, self.client), (rs, RS, self.server))[side]
        data = make(*args, **kwargs)
        with netns("router"):
            verdict, got = prog.test(data, dev)
        if verdict not in (XDP_PASS, XDP_REDIRECT) or (verdict == XDP_PASS and got != data):
            raise RuntimeError(f"verdict {verdict}, {data.hex()} > {got.hex()}")
        return verdict == XDP_REDIRECT


def xdp(name, connection, *args, **kwargs):
    check(f"{way}: {name}", connection.verdict(*args, **kwargs),
          "expected: by XDP\ngot:      passed up")


def up(name, connection, *args, reason="tcp_window", **kwargs):
    before = counted(reason)
    sent = connection.verdict(*args, **kwargs)
    expect(f"{way}: {name}, as {reason}", ("passed up", 1),
           ("by XDP" if sent else "passed up", counted(reason) - before))


def both(connection):
    """Both sides are seen"""
    for side in 0, 1:
        connection.verdict(side, 0, 0)
    return connection


def test_bounds():
    # the windows: client 1000 << 7 = 128000, server 1000 << 8 = 256000
    c = Connection()
    xdp("bounds: the first packet", c, 0, 0, 0, length=100)
    xdp("bounds: the first reply", c, 1, 0, 100, length=1000)
    xdp("bounds: data", c, 0, 100, 1000, length=1400)
    xdp("bounds: its ACK", c, 1, 1000, 1500)
    xdp("bounds: sent again", c, 0, 100, 1000, length=1400)
    xdp("bounds: older than what is acknowledged", c, 0, 0, 1000, length=100)
    up("bounds: older than a window", c, 0, -300000, 1000, length=100)
    up("bounds: ACK of what was not sent", c, 0, 1500, 1001)
    up("bounds: ACK far ahead", c, 0, 1500, 1 << 30)
    xdp("bounds: an old ACK", c, 0, 1500, 0)
    up("bounds: an ACK older than a window", c, 0, 1500, 1000 - 128001)
    xdp("bounds: keep-alive", c, 0, 1499, 1000, length=1)
    xdp("bounds: the reply goes on", c, 1, 1000, 1500, length=1000)
    xdp("bounds: PSH is as good", c, 0, 1500, 2000, length=10, flags=ACK | PSH)
    up("bounds: data far beyond the window", c, 0, 1 << 30, 2000, length=100)
    up("bounds: data half the space away", c, 0, 1 << 31, 2000, length=100)
    for side, win in (0, 256000), (1, 128000):
        c = both(Connection())
        xdp(f"bounds: side {side}: as far as the window allows", c, side, win, 0, length=100)
        up(f"bounds: side {side}: beyond the window", c, side, win + 1, 0, length=100)


def test_scale():
    # with SACK and without a scale it may have been picked up: the most is allowed
    for scales, sack, sizes in (((0, 0), SACK, (1000, 1000)), ((14, 3), SACK, (1000 << 14, 8000)),
                                ((None, 5), b"", (1000, 1000)), ((4, None), b"", (1000, 1000)),
                                ((None, 5), SACK, (1000 << 14, 1000 << 14))):
        for side in 0, 1:
            c, win = both(Connection(scales, sack=sack)), sizes[1 - side]
            name = f"scale: {scales[0]} and {scales[1]}, {'' if sack else 'no '}SACK: side {side}"
            xdp(f"{name} to the edge", c, side, win, 0)
            up(f"{name} beyond", c, side, win + 1, 0)
    c = both(Connection(handshake=False))
    xdp("scale: picked up: any may be", c, 0, 1000 << 14, 0)
    up("scale: picked up: but not more", c, 0, (1000 << 14) + 1, 0)


def test_window():
    c = both(Connection(win=1))
    xdp("window: all that there is room for", c, 0, 0, 0, length=256)
    xdp("window: closed now", c, 1, 0, 256, win=0)
    xdp("window: a probe of one byte", c, 0, 256, 0, length=1)
    up("window: no more than that", c, 0, 258, 0, length=1)
    xdp("window: it opens", c, 1, 0, 256, win=10)
    xdp("window: and is used", c, 0, 256, 0, length=1400)


def test_wrap():
    c = both(Connection(start=((1 << 32) - 700, (1 << 32) - 1)))
    for n in range(3):
        xdp(f"wrap: data {n}", c, 0, 500 * n, n, length=500)
        xdp(f"wrap: ACK {n}", c, 1, n, 500 * (n + 1), length=1)
    up("wrap: beyond the window", c, 0, 1500 + 256001, 3, length=500)
    up("wrap: ACK of what was not sent", c, 1, 3, 1501)


def test_overshot():
    c = both(Connection())
    up("overshot: more than the window", c, 0, 256001, 0, length=1000)
    xdp("overshot: the other takes it: its ACK is right", c, 1, 0, 257001)
    xdp("overshot: and it goes on", c, 0, 257001, 0, length=1000)


def test_syn():
    c = Connection()
    for side in 0, 1:
        c.verdict(side, 0, 0, length=100)
    up("SYN: again", c, 0, -1, 0, flags=SYN, options=SACK + wscale(7), reason="tcp_flags")
    up("SYN: far away", c, 0, 1 << 30, 0, flags=SYN, reason="tcp_flags")
    up("SYN: the reply again", c, 1, -1, 0, flags=SYN | ACK, reason="tcp_flags")
    xdp("SYN: has changed nothing", c, 0, 100, 100, length=100)
    up("SYN: has not opened the window", c, 0, 1 << 30, 100, length=100)


def test_one_side():
    c = Connection()
    for n in range(4):
        xdp(f"one side only: nothing to check it by {n}", c, 0, n << 28, 0, length=100)


def test_anew():
    c = Connection()
    for side in 0, 1:
        c.verdict(side, 0, 0, length=100)
        c.verdict(side, 100, 100, length=100)
    up("anew: far ahead", c, 0, 1 << 29, 200, length=100)
    # it leaves the flowtable, goes on through the stack, and comes back
    for m in lib.map_ids():
        flowmap = lib.map_by_id(m, key_size=64, value_size=112)
        if flowmap.info()["name"] == "flowmap":
            break
    with netns("router"):
        for key in list(flowmap.keys()):
            if lib.parse_key(key).sport == c.port:
                flowmap.delete(key)
    wait_for(lambda: not c.flows())
    c.offload(1 << 29, 1 << 28)
    xdp("anew: what it did meanwhile is learnt", c, 0, 1 << 29, 1 << 28, length=100)
    xdp("anew: by both sides", c, 1, 1 << 28, (1 << 29) + 100, length=100)
    xdp("anew: it goes on", c, 0, (1 << 29) + 100, (1 << 28) + 100, length=100)
    up("anew: and is checked again", c, 0, 100, 100, length=100)
    # so is what other ports or addresses do
    other = Connection()
    xdp("anew: another connection has windows of its own", other, 0, 0, 0)
    xdp("anew: both ways", other, 1, 0, 0)
    xdp("anew: and this one its own", c, 1, (1 << 28) + 100, (1 << 29) + 200)


def before(a, b):
    return (a - b) & 0x80000000 != 0


class Model:
    """tcp_in_window() of net/netfilter/nf_conntrack_proto_tcp.c, without SACK"""
    def __init__(self, scales, win):
        """Both sides have sent nothing and offered win"""
        self.scales = scales
        self.end = [0, 0]
        self.max_win = [win << scales[0], win << scales[1]]
        self.max_end = self.max_win[::-1]

    def ok(self, s, seq, ack, win, length):
        r = 1 - s
        win <<= self.scales[s]
        end_ = (seq + length) & 0xffffffff
        back = max(self.max_win[s], 66000)
        ack_ok = before(self.end[r] - back - 1, ack)
        in_win = before(self.end[s] - self.max_win[r] - 1, end_)
        if not before(seq, self.max_end[s] + 1):
            if in_win and ack_ok and before(ack, self.end[r] + 1) and \
               (end_ - self.max_end[s] + 1) & 0xffffffff <= self.max_win[r]:
                self.end[s] = end_
            return False
        if not before(ack, self.end[r] + 1) or not in_win or not ack_ok:
            return False
        self.max_win[s] = max(self.max_win[s], win)
        if before(self.end[s], end_):
            self.end[s] = end_
        if before(self.max_end[s], end_):
            self.max_win[r] += (end_ - self.max_end[s]) & 0xffffffff
        if before(self.max_end[r] - 1, ack + win):
            self.max_end[r] = (ack + win) & 0xffffffff
            if not win:
                self.max_end[r] += 1
        return True


def test_live():
    """On the wire: the stack decides, and its flowtable looks at no window"""
    c = both(Connection())
    counts = [counted("tcp_window")]
    for seq in 0, 1 << 30:
        check(f"{way}: live: data at {seq} comes out", send(
            c0, s0, c.client(seq, 0, length=10), c.port))
        counts.append(counted("tcp_window"))
    expect(f"{way}: live: by XDP, and not", [counts[0], counts[0] + 1], counts[1:])


def test_random():
    """Near what is right, on all sides: conntrack's own bounds, packet by packet"""
    seen = {True: 0, False: 0}
    for _ in range(4):
        scales = (random.randrange(10), random.randrange(10))
        c, m = Connection(scales, start=(7, 9)), Model(scales, 1000)
        both(c).verdict(0, 0, 0)
        for _ in range(packets // 4):
            s = random.randrange(2)
            win = random.choice((0, 1, 10, 1000, 65535))
            length = random.choice((0, 0, 1, 100, 1400))
            around = random.choice((m.end[s], m.max_end[s], m.end[s] - m.max_win[1 - s]))
            seq = around + random.choice((0, 0, -length, random.randrange(-5, 5),
                                          random.randrange(-3000, 3000)))
            around = random.choice((m.end[1 - s], m.end[1 - s], m.end[1 - s] - m.max_win[s],
                                    m.end[1 - s] - 66000))
            ack = around + random.choice((0, 0, random.randrange(-5, 5),
                                          random.randrange(-3000, 3000)))
            seq, ack = seq & 0xffffffff, ack & 0xffffffff
            state = (m.end[:], m.max_end[:], m.max_win[:])
            want = m.ok(s, seq, ack, win, length)
            got = c.verdict(s, seq, ack, win, length)
            seen[want] += 1
            if want != got:
                not_ok(f"{way}: random: as conntrack", f"seed {seed} scales {scales} end, "
                       f"max_end, max_win {state}\nside {s} seq {seq} ack {ack} win {win} "
                       f"length {length}\n"
                       f"expected: {want}\ngot:      {got}")
                return
    check(f"{way}: random: as conntrack: {seen[True]} in the windows, {seen[False]} not",
          min(seen.values()) > packets // 10, f"seed {seed}")


for way in WAYS:
    for test in (test_bounds, test_scale, test_window, test_wrap, test_overshot, test_syn,
                 test_one_side, test_anew, test_live, test_random):
        try:
            test()
        except Exception:
            not_ok(f"{way}: {test.__name__} ends", f"seed {seed}\n" + traceback.format_exc())
end()
