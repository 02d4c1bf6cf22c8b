# SPDX-License-Identifier: GPL-2.0
"""
Cases of fuzz_maps.sh: a process is a Fuzzer, which holds maps, programs, links and
pins and does one random thing after the other with them. Whatever it does may fail,
but only by an errno that a user could make sense of; what else could go wrong the
kernel reports, and the end finds whether anything is left.
"""
import collections
import errno
import os
import random
import struct
import sys
import threading

from lib import (BARE, LOOKUP, MAP_CREATE, MAP_DELETE_BATCH, MAP_FLOWMAP, MAP_FREEZE,
                 MAP_LOOKUP_AND_DELETE_BATCH, MAP_LOOKUP_BATCH, MAP_UPDATE_BATCH, MODULAR_MAX,
                 MODULAR_MIN, MODULAR_SYSFS, PROG_SCHED_CLS, PROG_SOCKET_FILTER, PROG_XDP, TOY,
                 DELETE, UPDATE, Fd, Iterator, Map, Prog, bpf, calls, check, child, delete_module,
                 end, errno_of, expect, loaded, map_by_id, map_ids, netns, obj_get, run,
                 unload, wait_for)
from flows import UdpFlow

MODULES = {TOY: "bpf_map_toy", BARE: "bpf_map_bare", MAP_FLOWMAP: "nf_flow_table_bpf_flowmap"}
SIZES = {TOY: (8, 8), BARE: (4, 4), MAP_FLOWMAP: (64, 112)}
PINS, DONE = "/sys/fs/bpf/fuzz", "/tmp/done"
# all but create_raw, whose random bytes are refused
STEPS = set("create create_with by_id get unpin close close_all unload load lookup update delete "
            "lookup_and_delete iterate batch freeze info program iterator pin".split())
# what a user may have done wrong, or too early, or too late
EXPECTED = {getattr(errno, name) for name in (
    "EACCES", "EBADF", "EBUSY", "E2BIG", "EEXIST", "EINVAL", "ENODEV", "ENOENT", "ENOMEM",
    "ENOSPC", "EOPNOTSUPP", "EPERM", "EAGAIN")} | {524}


class Fuzzer:
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.maps, self.held, self.done = [], [], collections.Counter()
        self.unexpected = collections.Counter()

    def number(self):
        """Of 32 bits, more often one that matters"""
        r = self.random
        return r.choice((0, 1, 2, 3, 4, 8, 64, 112, 1024, 65536, 1 << 24, (1 << 31) - 1, 1 << 31,
                         (1 << 32) - 1, r.getrandbits(32), 1 << r.randrange(32)))

    def bytes(self, n):
        return self.random.choice((bytes(n), b"\xff" * n, self.random.randbytes(n)))

    def map(self):
        return self.random.choice(self.maps)

    def key(self, m):
        """One that there is, if there is one, or any"""
        if self.random.random() < 0.5:
            try:
                if (k := m.next_key()) is not None:
                    return k
            except OSError:
                pass
        return self.bytes(m.key_size)

    # What is done; each may raise OSError

    def create(self):
        kind = self.random.choice(list(SIZES))
        key_size, value_size = SIZES[kind]
        if kind == TOY and self.random.random() < 0.5:
            key_size, value_size = self.random.randrange(1, 100), self.random.randrange(1, 300)
        self.maps.append(Map(type=kind, key_size=key_size, value_size=value_size,
                             max_entries=self.random.choice((2, 3, 64, 1000, 100000)),
                             extra=self.random.choice((0, 1, 2, 4)) if kind == MAP_FLOWMAP else 0,
                             flags=self.random.choice((0, 0, 0, 8, 16))))

    def create_with(self):
        """Any attributes"""
        kind = self.random.choice((TOY, BARE, MAP_FLOWMAP, MODULAR_MIN, MODULAR_MAX,
                                   self.random.randrange(MODULAR_MIN, MODULAR_MAX)))
        sizes = SIZES.get(kind, (8, 8))
        given = {"key_size": sizes[0], "value_size": sizes[1]}
        for name in self.random.sample(("key_size", "value_size", "max_entries", "flags", "inner",
                                        "ifindex", "extra", "btf", "name"), 2):
            given[name] = {"btf": (self.number(),) * 3,
                           "name": self.random.choice(("", "a" * 15, "a/b", "\x7f"))}.get(
                               name, self.number())
        # not gigabytes, and offsets that an instruction can have
        for name, most in (("max_entries", 1 << 16), ("key_size", 1 << 12), ("value_size", 1 << 12)):
            if kind == TOY and 0 < given.get(name, 0) < 1 << 31:
                given[name] = min(given[name], most)
        self.maps.append(Map(type=kind, **given))

    def create_raw(self):
        """Random bytes as attributes, of any length"""
        attr = bytearray(self.random.randbytes(self.random.randrange(4, 120)))
        attr[:4] = struct.pack("=I", self.random.choice(list(SIZES)))
        self.held.append(Fd(bpf(MAP_CREATE, bytes(attr))[0]))

    def lookup(self):
        m = self.map()
        m.lookup(self.key(m), flags=self.random.choice((0, 0, 4, self.number())))

    def update(self):
        m = self.map()
        m.update(self.key(m), self.bytes(m.value_size), self.random.choice((0, 1, 2, 3, 4)))

    def delete(self):
        m = self.map()
        m.delete(self.key(m))

    def lookup_and_delete(self):
        m = self.map()
        m.lookup_and_delete(self.key(m))

    def iterate(self):
        m = self.map()
        for n, _ in enumerate(m.keys()):
            if n > 100:
                break

    def batch(self):
        self.map().batch(self.random.choice((0, 1, 7, 300)),
                         self.random.choice((MAP_LOOKUP_BATCH, MAP_LOOKUP_AND_DELETE_BATCH,
                                             MAP_UPDATE_BATCH, MAP_DELETE_BATCH)))

    def freeze(self):
        bpf(MAP_FREEZE, struct.pack("=I", self.map().fd))

    def info(self):
        m = self.map()
        m.info()
        with open(f"/proc/self/fdinfo/{m.fd}", encoding="ascii") as f:
            f.read()

    def program(self):
        m = self.map()
        p = Prog(calls(m, self.random.choice((LOOKUP, UPDATE, DELETE, 51, 87))),
                 type=self.random.choice((PROG_XDP, PROG_XDP, PROG_SCHED_CLS, PROG_SOCKET_FILTER)))
        self.held.append(p)
        p.test(bytes(64), repeat=self.random.choice((1, 100)))

    def iterator(self):
        it = Iterator(self.map())
        self.held.append(it)
        for n, _ in enumerate(it):
            if n > 100:
                break

    def pin(self):
        self.random.choice(self.maps + self.held).pin(f"{PINS}/{self.random.randrange(20)}")

    def unpin(self):
        os.unlink(f"{PINS}/{self.random.randrange(20)}")

    def get(self):
        self.held.append(obj_get(f"{PINS}/{self.random.randrange(20)}"))

    def by_id(self):
        ids = map_ids()
        if ids:
            self.held.append(map_by_id(self.random.choice(ids)))

    def close(self):
        for things in (self.maps, self.held):
            while len(things) > self.random.randrange(30):
                things.pop(self.random.randrange(len(things))).close()

    def close_all(self):
        """All that holds a module, but for what the other process has"""
        for thing in self.maps + self.held:
            thing.close()
        self.maps, self.held = [], []
        for pin in os.listdir(PINS):
            os.unlink(f"{PINS}/{pin}")

    def unload(self):
        if err := delete_module(self.random.choice(list(MODULES.values()))):
            raise OSError(err, os.strerror(err))

    def load(self):
        """Fails (EBUSY) while another process unloads it"""
        run("modprobe -q " + self.random.choice(list(MODULES.values())) + " || :")

    def step(self):
        things = [(self.create, 5), (self.create_with, 3), (self.create_raw, 2), (self.by_id, 1),
                  (self.get, 2), (self.unpin, 2), (self.close, 2), (self.close_all, 1),
                  (self.unload, 3), (self.load, 0.2)]
        if self.maps:
            things += [(self.lookup, 6), (self.update, 16), (self.delete, 4),
                       (self.lookup_and_delete, 3), (self.iterate, 3), (self.batch, 4),
                       (self.freeze, 0.3), (self.info, 1), (self.program, 2),
                       (self.iterator, 0.5), (self.pin, 2)]
        thing = self.random.choices(*zip(*things))[0]
        try:
            thing()
            self.done[thing.__name__] += 1
        except OSError as e:
            if e.errno not in EXPECTED:
                self.unexpected[f"{thing.__name__}: {os.strerror(e.errno)}"] += 1


def fuzz(steps, seed):
    fuzzer = Fuzzer(seed)
    for _ in range(steps):
        fuzzer.step()
    print("# " + ", ".join(f"{n} {what}" for what, n in sorted(fuzzer.done.items())), flush=True)
    for what, n in fuzzer.unexpected.items():
        print(f"# unexpected: {what} ({n} times)", flush=True)
    if fuzzer.unexpected:
        raise OSError(errno.EPROTO, "an errno that nobody expects")
    with open(DONE, "a", encoding="ascii") as f:
        f.write(" ".join(fuzzer.done) + "\n")


def traffic(stop):
    """Connections that the flowmaps of the processes may show"""
    while not stop.is_set():
        flows = [UdpFlow() for _ in range(10)]
        for flow in flows:
            flow.talk()
            flow.client.close()
            flow.server.close()
        run("nsenter --net=/run/netns/router conntrack -F 2>&1")


def held():
    """Programs, and bytes that maps have of vmalloc"""
    areas = sum(int(line.split()[1]) for line in open("/proc/vmallocinfo", encoding="ascii")
                if "bpf_map_area_alloc" in line)
    return len(run("bpftool prog list | grep '^[0-9]' || :").splitlines()), areas


def left():
    """What is there of maps and modules"""
    return [(name, open(f"{MODULAR_SYSFS}{name}/maps", encoding="ascii").read().strip())
            for name in sorted(os.listdir(MODULAR_SYSFS))]


steps, seed = int(sys.argv[1]), int(sys.argv[2])
os.mkdir(PINS)
before = held()
stop = threading.Event()
thread = threading.Thread(target=traffic, args=(stop,))
with netns("router"):
    children = [child(fuzz, steps, f"{seed} {i}") for i in range(2)]
thread.start()
status = [errno_of(pid) for pid in children]
stop.set()
thread.join()
expect(f"fuzz: {steps} steps in each of two processes, seed {seed}, end well", [0, 0], status)
if steps >= 1000:
    with open(DONE, encoding="ascii") as f:
        expect("fuzz: each kind of step has succeeded", set(), STEPS - set(f.read().split()))
for pin in os.listdir(PINS):
    os.unlink(f"{PINS}/{pin}")
os.rmdir(PINS)
check("fuzz: no map is left", wait_for(lambda: all(n == "0" for _, n in left()), timeout=20),
      left())
expect("fuzz: nor a program, nor memory", before, wait_for(
    lambda: (n := held()) == before and n, timeout=20) or held())
for module in MODULES.values():
    check(f"fuzz: {module} unloads", not loaded(module) or unload(module))
end()
