# SPDX-License-Identifier: GPL-2.0
"""
Connections through the router of lib.sh's hosts and ruleset, and what the
router's maps and conntrack say of them
"""
import ctypes
import functools
import os
import re

from lib import (ACK, TCP, UDP, Fields, Map, Prog, ifindex, ip_frame, make_key, netns, obj_get, on,
                 parse_value, raw_socket, run, tcp_pair, udp, udp_socket)

CLIENT, SERVER, ROUTER, INSIDE = "10.0.1.2", "203.0.113.2", "203.0.113.1", "10.0.1.1"
IP = Fields(client=CLIENT, server=SERVER, router=ROUTER, over="")
IP6 = Fields(client="fd00:1::2", server="fd00:2::2", router="fd00:2::1", over=" over IPv6")
RC, RS = ifindex("router", "rc"), ifindex("router", "rs")
CLIENT_MAC, RC_MAC, RS_MAC, SERVER_MAC = (os.environ[name + "_MAC"]
                                          for name in ("CLIENT", "RC", "RS", "SERVER"))
ports = iter(range(20000, 30000))


@functools.cache
def wires():
    """To send frames from client and server"""
    return raw_socket("client", "c0", receive=False), raw_socket("server", "s0", receive=False)


def udp_frames(sport, dport=53, ip=IP):
    """What opens a connection: the client's and the server's"""
    return (ip_frame(RC_MAC, CLIENT_MAC, ip.client, ip.server, UDP,
                     udp(ip.client, ip.server, sport, dport)),
            ip_frame(RS_MAC, SERVER_MAC, ip.server, ip.router, UDP,
                     udp(ip.server, ip.router, dport, sport)))


def open_flow(sport, dport=53, ip=IP):
    """Without sockets; from one CPU, or the answer may come first"""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})
    for wire, data in zip(wires(), udp_frames(sport, dport, ip)):
        wire.send(data)
    os.sched_setaffinity(0, cpus)


class UdpFlow:
    """client:port to server:port through the masquerade, both ways once"""
    def __init__(self, talk=True, port=None, ip=IP):
        self.port = port or next(ports)
        self.to = (ip.server, self.port)
        self.client = udp_socket("client", ip.client, self.port)
        self.server = udp_socket("server", *self.to)
        if talk:
            self.talk()
        self.key = make_key(RC, UDP, ip.client, self.port, *self.to)
        self.reply = make_key(RS, UDP, *self.to, ip.router, self.port)

    def close(self):
        self.client.close()
        self.server.close()

    def talk(self):
        """True if a packet arrived in each direction"""
        try:
            self.client.sendto(b"to", self.to)
            data, peer = self.server.recvfrom(100)
            self.server.sendto(b"from", peer)
            return data == b"to" and self.client.recv(100) == b"from"
        except OSError:
            return False


class TcpFlow:
    """server to the port forward, the client answers"""
    def __init__(self, ip=IP):
        self.server, self.client = tcp_pair("server", "client", ip.client, 80, (ip.router, 8080))
        self.port, self.ip = self.server.getsockname()[1], ip
        self.talk()
        self.key = make_key(RS, TCP, ip.server, self.port, ip.router, 8080, tcp_flags=ACK)
        self.reply = make_key(RC, TCP, ip.client, 80, ip.server, self.port, tcp_flags=ACK)

    def talk(self):
        self.server.sendall(b"to")
        self.client.recv(100)
        self.client.sendall(b"from")
        return self.server.recv(100) == b"from"


def router_map(**kwargs):
    with netns("router"):
        return Map(**kwargs)


def programs(m):
    """Count, delete, credit and stop of tests/bpf/flowmap.bpf.c with this map, as functions of a key"""
    where = "/sys/fs/bpf/programs"
    run(f"bpftool prog loadall {os.environ['BUILD']}/bpf/flowmap.bpf.o {where} "
        f"map name flowmap id {m.info()['id']}")
    progs = [obj_get(f"{where}/{name}", Prog) for name in ("count", "delete", "credit", "stop")]
    run(f"rm -r {where}")
    return [lambda key, p=p: ctypes.c_int32(p.test(key)[0]).value for p in progs]


def proc_maps():
    """Lines of /proc/net/nf_flowmap: [[id, entries, max_entries, full], ...]"""
    with open("/proc/thread-self/net/nf_flowmap", encoding="ascii") as f:
        return [[int(n) for n in line.split()] for line in f.readlines()[1:]]


def value(m, key):
    """What user space reads; None if it is not there"""
    try:
        return parse_value(m.lookup(key))
    except FileNotFoundError:
        return None


def published(m, flow):
    return value(m, flow.key) is not None and value(m, flow.reply) is not None


def gone(m, flow):
    return value(m, flow.key) is None and value(m, flow.reply) is None


def conntrack(proto, port):
    """Fields of the connection whose original direction has this source port"""
    for line in on("router", "conntrack -L -o id 2>/dev/null").splitlines():
        pairs = re.findall(r"(\w+)=(\S+)", line)
        names = [n for n, _ in pairs]
        if line.startswith(proto) and ("sport", str(port)) in pairs[:names.index("dport") + 1]:
            second = names.index("src", 1)
            return Fields(line=line, offload="[OFFLOAD]" in line,
                          id=int(re.search(r"id=(\d+)$", line.strip())[1]),
                          mark=int(re.search(r"mark=(\d+)", line)[1]),
                          original=dict(pairs[:second]), reply=dict(pairs[second:]))
    return None
