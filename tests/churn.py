# SPDX-License-Identifier: GPL-2.0
"""
churn.py send BPF COUNT: connections from this namespace, by churn.bpf.c pinned at
BPF. churn.py run BPF SECONDS FLOWS SEED DIR: the traffic of churn.sh, and maps.
"""
import fcntl
import itertools
import os
import random
import socket
import struct
import sys
import time
import traceback

from lib import (ACK, BPF_EXIST, COUNTERS, FIN, MAP_LOOKUP_AND_DELETE_BATCH, PATIENCE, RST,
                 SYN, TCP, TEST_XDP_LIVE_FRAMES, UDP, Map, Prog, check, child, credit, end, errno_of,
                 expect, frame, ipv4, netns, obj_get, tcp, tcp_pair, udp)

CLIENT, SERVER, DPORT = "10.0.1.2", "203.0.113.2", 5000
DEST, SOURCE = os.environ["RC_MAC"], os.environ["CLIENT_MAC"]
TEMPLATE = struct.Struct("=IIQ60s4x")


class Generator:
    """In this namespace"""
    def __init__(self, path):
        self.prog = obj_get(path + "/generate", Prog)
        self.map = obj_get(path + "/template", Map, key_size=4, value_size=TEMPLATE.size)
        self.ifindex = socket.if_nametoindex("c0")

    def send(self, first, count, proto, *tcp_header):
        """A packet of each of these connections"""
        if proto == TCP:
            segment = tcp(CLIENT, SERVER, 0, DPORT, *tcp_header)
        else:
            segment = udp(CLIENT, SERVER, 0, DPORT, bytes(18), check=False)
        data = frame(DEST, SOURCE, ipv4(CLIENT, SERVER, proto, segment, frag=0x4000))
        self.map.update(bytes(4), TEMPLATE.pack(first, self.ifindex, 0, data.ljust(60, b"\0")))
        self.prog.test(data, repeat=count, flags=TEST_XDP_LIVE_FRAMES)

    def connections(self, first, count, proto, last=None):
        """Open them, use them, and end them by a packet with these flags"""
        if proto == UDP:
            self.send(first, count, UDP)
            self.send(first, count, UDP)
            return
        self.send(first, count, TCP, SYN, 1000)
        for _ in range(2):
            self.send(first, count, TCP, ACK, 1001, 2)
        if last:
            self.send(first, count, TCP, last, 1001, 2)


def added():
    with open("/sys/kernel/tracing/kprobe_profile", encoding="ascii") as f:
        return sum(int(line.split()[1]) for line in f if line.split()[0] == "added")


def until(stop, step):
    """A child's life"""
    while not os.path.exists(stop):
        step()


def talk(pair):
    """Each side says something"""
    for a, b in (pair, pair[::-1]):
        data = os.urandom(1000)
        a.sendall(data)
        got = b""
        while len(got) < len(data):
            more = b.recv(len(data))
            if not more:
                raise ConnectionResetError
            got += more
        if got != data:
            raise ValueError("other data came than was sent")


def connected(*args):
    """tcp_pair(), at last: the device may be down right now"""
    while True:
        try:
            pair = tcp_pair(*args, timeout=60)
        except OSError:
            time.sleep(0.1)
            continue
        for s in pair:  # gone when closed: none is left without a process
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return pair


def forwarded(stop):
    """Through the port forward: nothing that is done may cut it"""
    pair = connected("server", "client", CLIENT, 80, ("203.0.113.1", 8080))
    until(stop, lambda: (talk(pair), time.sleep(0.05)))
    talk(pair)


def masqueraded(stop):
    """Conntrack forgets these when the device goes down; a reset is all that may come
    of it"""
    cut = 0
    while not os.path.exists(stop):
        pair = connected("client", "server", SERVER, 7000)
        try:
            while not os.path.exists(stop):
                talk(pair)
                time.sleep(0.05)
        except (ConnectionResetError, TimeoutError):
            cut += 1
        finally:
            for s in pair:
                s.close()
    with open(os.path.dirname(stop) + "/down", encoding="ascii") as f:
        down = len(f.readlines())
    print(f"# a masqueraded connection was cut {cut} times, by {down} times down", flush=True)
    if cut > down:
        raise ValueError("something else has cut it")


def maps(stop, rand, lock):
    """Come, are read in every way, and go"""
    done = {"maps": 0, "dumped": 0, "deleted": 0, "credited": 0, "emptied": 0}

    def step():
        fcntl.flock(lock, fcntl.LOCK_SH)
        where = rand.choice(("router", "router", "router2"))
        try:
            with netns(where):
                m = Map(max_entries=rand.choice((2, 100, 4096, 65536)),
                        extra=rand.choice((0, COUNTERS)))
        except FileNotFoundError: # between two lives of that namespace
            fcntl.flock(lock, fcntl.LOCK_UN)
            return
        done["maps"] += 1
        done["dumped"] += len(m.batch(4096))
        for k in itertools.islice(m.keys(), 200):
            try:
                m.update(k, credit(1, 100), BPF_EXIST)
                done["credited"] += 1
                if rand.randrange(2):
                    m.delete(k)
                    done["deleted"] += 1
            except FileNotFoundError: # gone meanwhile
                pass
        done["emptied"] += len(m.batch(100, MAP_LOOKUP_AND_DELETE_BATCH))
        time.sleep(rand.random())
        m.close()
        fcntl.flock(lock, fcntl.LOCK_UN)
        time.sleep(rand.random() / 2)
    until(stop, step)
    print("# maps: " + ", ".join(f"{n} {what}" for what, n in done.items()), flush=True)
    if not all(done.values()):
        raise ValueError("not all was done")


def guarded(name, function, *args):
    """As a child: it says what went wrong"""
    def body():
        try:
            function(*args)
        except Exception:
            print(f"# {name}: {traceback.format_exc()}".replace("\n", "\n# "), flush=True)
            raise
    return child(body)


def run(path, seconds, flows, seed, tmp):
    rand, stop = random.Random(seed), tmp + "/stop"
    start = time.monotonic()
    with open(tmp + "/lock", "w", encoding="ascii") as lock:
        children = {"the port forward's connection lives": guarded("forward", forwarded, stop),
                    "masqueraded connections live or are cut": guarded("masq", masqueraded, stop),
                    "maps come and go": guarded("maps", maps, stop, random.Random(seed + 1), lock)}

        def generate(pin, first):
            sent = {UDP: 0, TCP: 0}
            with netns("client"):
                generator = Generator(pin)
                while time.monotonic() - start < seconds and added() < flows:
                    count, proto = 64 * rand.randrange(1, 33), rand.choice((UDP, TCP))
                    generator.connections(first, count, proto, rand.choice((None, FIN | ACK, RST)))
                    first += count
                    sent[proto] += count
            print(f"# {sent[UDP]} UDP and {sent[TCP]} TCP connections tried", flush=True)
        first = rand.randrange(1 << 20)
        children["a second generator ends"] = guarded("generator", generate, path + "1",
                                                      first + (1 << 25))
        try:
            generate(path, first)
        finally:
            with open(stop, "w", encoding="ascii"):
                pass
        for name, pid in children.items():
            expect(name, 0, errno_of(pid))
    took = time.monotonic() - start
    print(f"# {added()} flows added in {took:.0f} s", flush=True)
    # in the whole time far fewer than there are on any machine
    check("connections were offloaded", added() >= flows or
          took >= seconds and added() > (100 if PATIENCE == 1 else 10) * seconds, added())


if sys.argv[1] == "send":
    Generator(sys.argv[2]).connections(0, int(sys.argv[3]), UDP)
else:
    run(sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
    end()
