# SPDX-License-Identifier: GPL-2.0
"""Cases of frames.sh; the hosts, the ruleset and xdp_ct are up"""
import json
import os
import random
import struct
import sys

from lib import (ACK, FIN, PSH, RST, TCP, UDP, URG, XDP_PASS, XDP_REDIRECT, check, counted, csum,
                 expect, frame, ifindex, ipv4, ipv6, netns, not_ok, ok, on, prog_of_device,
                 run_tests, tcp, tcp_pair, udp, udp_socket)

CLIENT, SERVER, ROUTER = "10.0.1.2", "203.0.113.2", "203.0.113.1"
CLIENT6, SERVER6 = "fd00:1::2", "fd00:2::2"
CLIENT_MAC, RC_MAC, RS_MAC, SERVER_MAC = (os.environ[n] for n in
                                          ("CLIENT_MAC", "RC_MAC", "RS_MAC", "SERVER_MAC"))
RC, RS = ifindex("router", "rc"), ifindex("router", "rs")
PORT = 7777
VERDICTS = {0: "aborted", 1: "drop", XDP_PASS: "pass", 3: "tx", XDP_REDIRECT: "redirect"}

seed = int(sys.argv[1]) if len(sys.argv) > 1 else random.randrange(1 << 32)
random.seed(seed)
print(f"seed {seed}")

client = udp_socket("client", CLIENT, PORT)
server = udp_socket("server", SERVER, PORT)
for _ in range(2):
    client.sendto(b"to", (SERVER, PORT))
    server.sendto(*server.recvfrom(100))
    client.recv(100)
connection = tcp_pair("client", "server", SERVER, PORT)
for s in connection:
    s.sendall(b"data")
for s in connection:
    s.recv(100)
TCP_PORT = connection[0].getsockname()[1]
rc, rs = prog_of_device("router", "rc"), prog_of_device("router", "rs")


def stats():
    return json.loads(on("router", "xdp_ct stats --json"))


def up(packet, **kwargs):
    """Frame of the client for the server"""
    return frame(RC_MAC, CLIENT_MAC, packet, **kwargs)


def client_udp(payload=b"payload", check_=True, length=None, **ip):
    return ipv4(CLIENT, SERVER, UDP, udp(CLIENT, SERVER, PORT, PORT, payload, check_, length), **ip)


def client_tcp(flags=ACK, doff=5, payload=b"payload", options=b"", **ip):
    return ipv4(CLIENT, SERVER, TCP, tcp(CLIENT, SERVER, TCP_PORT, PORT, flags, 1, 1, payload, doff,
                                         options=options), **ip)


def up6(proto=UDP, **ip):
    return up(ipv6(CLIENT6, SERVER6, proto, udp(CLIENT6, SERVER6, PORT, PORT, b"payload"), **ip),
              proto=0x86dd)


def tagged(packet, *tags, proto=0x0800):
    """In VLANs, each an ethertype and an identifier"""
    for type_, vid in reversed(tags):
        packet, proto = struct.pack("!HH", vid, proto) + packet, type_
    return up(packet, proto=proto)


def pppoe(packet, ver_type=0x11, code=0, more=0, ppp=0x21):
    return struct.pack("!BBHHH", ver_type, code, 77, len(packet) + 2 + more, ppp) + packet


def session(packet, **kwargs):
    return up(pppoe(packet, **kwargs), proto=0x8864)


def show(data):
    return data.hex(" ", -4)


def forwarded(name, data, want, prog=rc, dev=RC):
    with netns("router"):
        verdict, got = prog.test(data, dev)
    return check(f"forwarded: {name}", (verdict, got) == (XDP_REDIRECT, want),
                 f"expected: redirect {show(want)}\ngot:      {VERDICTS[verdict]} {show(got)}")


def passed(name, reason, frames):
    """Each must be passed up, not a byte changed, and counted by its reason"""
    before = counted(reason, "rc")
    frames = list(frames)
    for data in frames:
        with netns("router"):
            verdict, got = rc.test(data, RC)
        if (verdict, got) != (XDP_PASS, data):
            not_ok(f"passed: {name}", f"expected: pass {show(data)}\n"
                   f"got:      {VERDICTS[verdict]} {show(got)}")
            return
    after = counted(reason, "rc")
    expect(f"passed: {name}: {len(frames)} counted as {reason}", len(frames), after - before)


def sent(packet):
    """Frame of the router to the server"""
    return frame(SERVER_MAC, RS_MAC, packet)


def test_forwarded():
    for name, kwargs in {"UDP": {}, "UDP, odd length": {"payload": b"odd"},
                         "UDP without payload": {"payload": b""},
                         "UDP without checksum": {"check_": False},
                         "UDP with DF": {"frag": 0x4000}, "UDP with ECN and DSCP": {"tos": 0xbb},
                         "UDP of the MTU": {"payload": bytes(1472)},
                         "UDP with an identification": {"ident": 4711}}.items():
        out = dict(kwargs)
        payload, check_ = out.pop("payload", b"payload"), out.pop("check_", True)
        forwarded(name, up(client_udp(**kwargs)),
                  sent(ipv4(ROUTER, SERVER, UDP, udp(ROUTER, SERVER, PORT, PORT, payload, check_),
                            ttl=63, **out)))
    forwarded("UDP with TTL 2", up(client_udp(ttl=2)),
              sent(ipv4(ROUTER, SERVER, UDP, udp(ROUTER, SERVER, PORT, PORT, b"payload"), ttl=1)))
    forwarded("UDP with a trailer, which the stack cuts off", up(client_udp() + b"trailer"),
              sent(ipv4(ROUTER, SERVER, UDP, udp(ROUTER, SERVER, PORT, PORT, b"payload"), ttl=63)))
    for name, flags in (("ACK", ACK), ("ACK and PSH", ACK | PSH), ("ACK and URG", ACK | URG),
                        ("ECE and CWR", ACK | 0xc0)):
        forwarded(f"TCP with {name}", up(client_tcp(flags)),
                  sent(ipv4(ROUTER, SERVER, TCP, tcp(ROUTER, SERVER, TCP_PORT, PORT, flags, 1, 1,
                                                     b"payload"), ttl=63)))
    options = bytes.fromhex("0101080a0000000100000002")
    forwarded("TCP with a time stamp", up(client_tcp(options=options)),
              sent(ipv4(ROUTER, SERVER, TCP, tcp(ROUTER, SERVER, TCP_PORT, PORT, ACK, 1, 1,
                                                 b"payload", options=options), ttl=63)))
    # checksums of 0 and ffff come up among so many
    for _ in range(300):
        payload = random.randbytes(random.randrange(40))
        ident = random.randrange(65536)
        data = up(client_udp(payload, ident=ident))
        want = sent(ipv4(ROUTER, SERVER, UDP, udp(ROUTER, SERVER, PORT, PORT, payload), ttl=63,
                         ident=ident))
        with netns("router"):
            verdict, got = rc.test(data, RC)
        if (verdict, got) != (XDP_REDIRECT, want):
            not_ok("forwarded: random payloads", f"seed {seed}\nin:  {show(data)}\n"
                   f"want {show(want)}\ngot  {VERDICTS[verdict]} {show(got)}")
            break
    else:
        ok("forwarded: 300 with random payload and identification")
    # to a UDP checksum of 0, which is sent as ffff, by choosing two bytes of payload
    probe = udp(ROUTER, SERVER, PORT, PORT, b"\0\0")
    payload = probe[6:8]
    new = udp(ROUTER, SERVER, PORT, PORT, payload)
    expect("UDP: the payload makes the checksum ffff", b"\xff\xff", new[6:8])
    forwarded("UDP whose new checksum is 0", up(client_udp(payload)),
              sent(ipv4(ROUTER, SERVER, UDP, new, ttl=63)))
    forwarded("the reply", frame(RS_MAC, SERVER_MAC, ipv4(
        SERVER, ROUTER, UDP, udp(SERVER, ROUTER, PORT, PORT, b"back"))),
        frame(CLIENT_MAC, RC_MAC, ipv4(SERVER, CLIENT, UDP, udp(SERVER, CLIENT, PORT, PORT, b"back"),
                                       ttl=63)), rs, RS)


def flipped(packet):
    """Each bit of the IPv4 header flipped, whose checksum thus is broken"""
    for bit in range(160):
        data = bytearray(packet)
        data[bit // 8] ^= 1 << bit % 8
        yield up(bytes(data))


def test_passed():
    whole = up(client_udp())
    passed("truncated UDP, all lengths below the headers", "length",
           (whole[:n] for n in range(14, 42)))
    whole_tcp = up(client_tcp())
    passed("truncated TCP, all lengths", "length",
           (whole_tcp[:n] for n in range(14, len(whole_tcp))))
    passed("truncated UDP, all lengths", "length", (whole[:n] for n in range(14, len(whole))))
    passed("IPv4 length above the frame's", "length",
           (up(client_udp(total=n)) for n in (36, 100, 1500, 65535)))
    passed("IPv4 length below its header's", "length", (up(client_udp(total=n)) for n in range(20)))
    passed("IPv4 length below the UDP header's", "length",
           (up(client_udp(total=n)) for n in range(20, 35)))
    passed("UDP length below 8", "length", (up(client_udp(length=n)) for n in range(8)))
    passed("UDP length above the packet's", "length",
           (up(client_udp(length=n)) for n in (16, 100, 65535)))
    passed("TCP header length below 20", "length", (up(client_tcp(doff=n)) for n in range(5)))
    passed("TCP header length above the packet's", "length",
           (up(client_tcp(doff=n)) for n in range(7, 16)))
    passed("IP version", "ip_header", (up(client_udp(version=n)) for n in range(16) if n != 4))
    passed("IPv4 header length below 20", "ip_header", (up(client_udp(ihl=n)) for n in range(5)))
    passed("IPv4 checksum", "ip_header",
           (up(client_udp(check=n)) for n in random.sample(range(1, 65535), 20)
            if csum(client_udp(check=n)[:20]) != 0xffff))
    before = stats()["rc"]
    for data in flipped(client_udp()):
        with netns("router"):
            verdict, got = rc.test(data, RC)
        if (verdict, got) != (XDP_PASS, data):
            not_ok("passed: each bit of the IPv4 header flipped", f"{VERDICTS[verdict]} {show(got)}")
            break
    else:
        after = stats()["rc"]
        expect("passed: each bit of the IPv4 header flipped, counted by some reason", 160,
               sum(c["packets"] for c in after.values()) - sum(c["packets"] for c in before.values()))
    passed("IPv4 options", "ip_options",
           (up(client_udp(options=o)) for o in (b"\x01\x01\x01\0", b"\x94\x04\0\0",
                                               b"\x07\x07\x04\0\0\0\0\0", bytes(40))))
    passed("fragments", "fragment",
           (up(client_udp(frag=f)) for f in (0x2000, 1, 0x1fff, 0x2001, 0x3fff, 0x6000)))
    passed("TTL 0 and 1", "ttl", (up(client_udp(ttl=n)) for n in (0, 1)))
    passed("other protocols", "protocol",
           (up(ipv4(CLIENT, SERVER, n, bytes(20))) for n in (0, 1, 2, 4, 41, 50, 51, 132, 255)))
    good = (ACK, ACK | URG, ACK | FIN, ACK | FIN | URG, RST, RST | ACK)
    passed("TCP flags that conntrack calls invalid, and SYN", "tcp_flags",
           (up(client_tcp(f)) for f in range(256) if f & 0x37 not in good))
    passed("for another host, multicast, broadcast", "not_host",
           (frame(d, CLIENT_MAC, client_udp()) for d in
            ("02:00:00:00:09:09", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", SERVER_MAC)))
    passed("other ethertypes", "not_ip", (up(client_udp(), proto=p) for p in (0x0806, 0x8847, 46)))
    vlan, qinq = (0x8100, 5), (0x88a8, 9)
    passed("a VLAN tag that the flow has not", "miss", [tagged(client_udp(), vlan)])
    passed("a VLAN tag of priority alone", "miss", [tagged(client_udp(), (0x8100, 0xe000))])
    passed("QinQ, PPPoE, PPPoE on VLAN that the flow has not", "miss",
           [tagged(client_udp(), qinq, vlan), session(client_udp()),
            tagged(pppoe(client_udp()), vlan, proto=0x8864)])
    passed("IPv6 that has no flow", "miss",
           [up6(), tagged(up6()[14:], vlan, proto=0x86dd), session(up6()[14:], ppp=0x57)])
    for name, data in (("VLAN", tagged(client_udp(), vlan)),
                       ("QinQ", tagged(client_udp(), qinq, vlan)),
                       ("IPv6", up6()), ("IPv6 in VLAN", tagged(up6()[14:], vlan, proto=0x86dd))):
        passed(f"truncated {name}, all lengths", "length",
               (data[:n] for n in range(14, len(data))))
    data = session(client_udp())
    passed("truncated PPPoE, all lengths below the least", "length",
           (data[:n] for n in range(14, 42)))
    passed("truncated PPPoE, all lengths", "not_ip", (data[:n] for n in range(42, len(data))))
    passed("PPPoE length above the frame's", "not_ip",
           (session(client_udp(), more=n) for n in (1, 100, 60000)))
    passed("PPPoE length below 2", "not_ip",
           (session(client_udp(), more=n - 2 - len(client_udp())) for n in (0, 1)))
    passed("PPPoE length below the packet's", "length",
           (session(client_udp(), more=n - len(client_udp())) for n in (0, 20, 27, 28, 34)))
    passed("PPPoE version, type and code", "not_ip",
           [session(client_udp(), ver_type=n) for n in (0, 1, 0x10, 0x12, 0x21)] +
           [session(client_udp(), code=n) for n in (9, 0xa7)])
    passed("PPP of other protocols", "not_ip",
           (session(client_udp(), ppp=n) for n in (0, 0xc021, 0x8021, 0x2145)))
    passed("other ethertypes in VLAN", "not_ip",
           (tagged(client_udp(), vlan, proto=n) for n in (0x0806, 0x8847, 46)))
    passed("three encapsulations", "not_ip",
           [tagged(client_udp(), qinq, vlan, vlan), tagged(pppoe(client_udp()), qinq, vlan,
                                                           proto=0x8864)])
    passed("IPv6 payload above the frame's", "length", (up6(total=n) for n in (16, 100, 65535)))
    passed("IPv6 payload below the UDP header's", "length", (up6(total=n) for n in range(8)))
    passed("IPv6 version", "ip_header", (up6(version=n) for n in range(16) if n != 6))
    passed("hop limit 0 and 1", "ttl", (up6(ttl=n) for n in (0, 1)))
    passed("hop limit 1, and TTL 1, in VLAN and PPPoE", "ttl",
           [tagged(up6(ttl=1)[14:], vlan, proto=0x86dd), session(up6(ttl=1)[14:], ppp=0x57),
            tagged(client_udp(ttl=1), vlan), session(client_udp(ttl=1))])
    passed("IPv6 extension headers", "protocol",
           (up6(n) for n in (0, 43, 44, 50, 51, 60, 135, 139, 140)))
    passed("fragments in VLAN and PPPoE", "fragment",
           [tagged(client_udp(frag=0x2000), vlan), session(client_udp(frag=1))])
    passed("above the MTU", "mtu", [up(client_udp(bytes(1473)))])
    passed("other ports and addresses", "miss",
           [up(ipv4(CLIENT, SERVER, UDP, udp(CLIENT, SERVER, PORT, PORT + 1))),
            up(ipv4(CLIENT, SERVER, UDP, udp(CLIENT, SERVER, PORT + 1, PORT))),
            up(ipv4(CLIENT, "203.0.113.3", UDP, udp(CLIENT, "203.0.113.3", PORT, PORT))),
            up(ipv4("10.0.1.3", SERVER, UDP, udp("10.0.1.3", SERVER, PORT, PORT)))])
    with netns("router"):
        verdict, got = rs.test(whole, RS)
    expect("passed: the flow's frame at another device", (XDP_PASS, whole), (verdict, got))


def test_random():
    """No bytes at all make it drop or abort, or change what it passes"""
    count = {XDP_PASS: 0, XDP_REDIRECT: 0}
    for _ in range(3000):
        data = bytearray(up(random.choice((client_udp, client_tcp))()))
        for _ in range(random.randrange(4)):
            data[random.randrange(len(data))] = random.randrange(256)
        data = bytes(data[:random.choice((len(data), random.randrange(14, len(data) + 1)))])
        with netns("router"):
            verdict, got = rc.test(data, RC)
        if verdict not in count or (verdict == XDP_PASS and got != data) or \
           (verdict == XDP_REDIRECT and csum(got[14:34]) != 0xffff):
            not_ok("random: passed unchanged or forwarded",
                   f"seed {seed}\nin:  {show(data)}\nout: {verdict} {show(got)}")
            return
        count[verdict] += 1
    check("random: 3000 frames passed unchanged or forwarded", all(count.values()), count)


def test_close():
    """Last, as it ends the flow"""
    passed("TCP with FIN", "tcp_close", [up(client_tcp(FIN | ACK))])
    passed("TCP when the flow has gone", "miss", [up(client_tcp(ACK))])


run_tests(test_forwarded, test_passed, test_random, test_close)
