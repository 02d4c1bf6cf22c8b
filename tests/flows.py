# SPDX-License-Identifier: GPL-2.0
"""
Connections through the router of lib.sh's hosts and ruleset, and what the
router's maps and conntrack say of them
"""
import ctypes
import functools
import os
import re

from lib import (ACK, TCP, UDP, Fields, Map, Prog, frame, ifindex, ipv4, make_key, netns, obj_get,
                 on, parse_value, raw_socket, run, tcp_pair, udp, udp_socket)

CLIENT, SERVER, ROUTER, INSIDE = "10.0.1.2", "203.0.113.2", "203.0.113.1", "10.0.1.1"
RC, RS = ifindex("router", "rc"), ifindex("router", "rs")
CLIENT_MAC, RC_MAC, RS_MAC, SERVER_MAC = (os.environ[name + "_MAC"]
                                          for name in ("CLIENT", "RC", "RS", "SERVER"))
ports = iter(range(20000, 30000))


@functools.cache
def wires():
    """To send frames from client and server"""
    return raw_socket("client", "c0", receive=False), raw_socket("server", "s0", receive=False)


def udp_frames(sport, dport=53):
    """What opens a connection: the client's and the server's"""
    return (frame(RC_MAC, CLIENT_MAC, ipv4(CLIENT, SERVER, UDP, udp(CLIENT, SERVER, sport, dport))),
            frame(RS_MAC, SERVER_MAC, ipv4(SERVER, ROUTER, UDP, udp(SERVER, ROUTER, dport, sport))))


def open_flow(sport, dport=53):
    """Without sockets; from one CPU, or the answer may come first"""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})
    for wire, data in zip(wires(), udp_frames(sport, dport)):
        wire.send(data)
    os.sched_setaffinity(0, cpus)


class UdpFlow:
    """client:port to server:port through the masquerade, both ways once"""
    def __init__(self, talk=True, port=None, server=SERVER):
        self.port = port or next(ports)
        self.to = (server, self.port)
        self.client = udp_socket("client", CLIENT, self.port)
        self.server = udp_socket("server", *self.to)
        if talk:
            self.talk()
        self.key = make_key(RC, UDP, CLIENT, self.port, *self.to)
        self.reply = make_key(RS, UDP, *self.to, ROUTER, self.port)

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
    def __init__(self):
        self.server, self.client = tcp_pair("server", "client", CLIENT, 80, (ROUTER, 8080))
        self.port = self.server.getsockname()[1]
        self.talk()
        self.key = make_key(RS, TCP, SERVER, self.port, ROUTER, 8080, tcp_flags=ACK)
        self.reply = make_key(RC, TCP, CLIENT, 80, SERVER, self.port, tcp_flags=ACK)

    def talk(self):
        self.server.sendall(b"to")
        self.client.recv(100)
        self.client.sendall(b"from")
        return self.server.recv(100) == b"from"


def router_map(**kwargs):
    with netns("router"):
        return Map(**kwargs)


def programs(m):
    """Count, delete and credit of tests/bpf/flowmap.bpf.c with this map, as functions of a key"""
    where = "/sys/fs/bpf/programs"
    run(f"bpftool prog loadall {os.environ['BUILD']}/bpf/flowmap.bpf.o {where} "
        f"map name flowmap id {m.info()['id']}")
    progs = [obj_get(f"{where}/{name}", Prog) for name in ("count", "delete", "credit")]
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
