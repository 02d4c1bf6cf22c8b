# SPDX-License-Identifier: GPL-2.0
"""
What the tests in Python share: KTAP results, network namespaces, bpf(2) with
any attributes (wrong ones, too), the flowmap's key and value, and frames.

A process may act in several namespaces: 'with netns("router"):'. A socket
stays in the namespace it was made in, and so does a flowmap.
"""
import contextlib
import ctypes
import errno
import functools
import json
import os
import re
import select
import socket
import struct
import subprocess
import sys
import time
import traceback

failed = 0


# Results

def ok(name):
    print("ok - " + name, flush=True)


def not_ok(name, detail=""):
    global failed
    failed += 1
    print("not ok - " + name, flush=True)
    for line in str(detail).splitlines():
        print("# " + line, flush=True)


def expect(name, want, got):
    """One result: got must equal want"""
    if want == got:
        ok(name)
    else:
        not_ok(name, f"expected: {want}\ngot:      {got}")
    return want == got


def check(name, condition, detail=""):
    if condition:
        ok(name)
    else:
        not_ok(name, detail)
    return bool(condition)


ENOTSUPP = 524  # the kernel's own


def errno_name(number):
    return "ENOTSUPP" if number == ENOTSUPP else errno.errorcode[number]


def fails(name, want, function, *args, **kwargs):
    """One result: function(...) must raise OSError with the errno want"""
    try:
        got = function(*args, **kwargs)
    except OSError as e:
        return expect(name, errno_name(want), errno_name(e.errno))
    return not_ok(name, f"expected: {errno_name(want)}\ngot:      success ({got})")


def skip(name, why):
    print(f"ok - {name} # SKIP {why}", flush=True)


# kernels with sanitizers take their time
PATIENCE = 1 if os.environ.get("VM_KERNEL", "flowmap") == "flowmap" else 6


def wait_for(condition, timeout=20.0):
    """Wait until condition() is true; its last value"""
    end = time.monotonic() + timeout * PATIENCE
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return value


def run(command, **kwargs):
    """Output of a shell command that must succeed"""
    p = subprocess.run(command, shell=True, text=True, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, check=False, **kwargs)
    if p.returncode:
        raise RuntimeError(f"{command}: exit {p.returncode}: {p.stdout.strip()}")
    return p.stdout


@contextlib.contextmanager
def netns(name):
    """In a namespace of 'ip netns'; child processes, too"""
    with open("/proc/self/ns/net", "rb") as old, open(f"/run/netns/{name}", "rb") as new:
        os.setns(new.fileno(), os.CLONE_NEWNET)
        try:
            yield
        finally:
            os.setns(old.fileno(), os.CLONE_NEWNET)


def on(name, command):
    with netns(name):
        return run(command)


def sysctl(name, key, value):
    with netns(name), open("/proc/sys/" + key.replace(".", "/"), "w", encoding="ascii") as f:
        f.write(str(value))


def ifindex(name, dev):
    with netns(name):
        return socket.if_nametoindex(dev)


def child(function, *args, **kwargs):
    """A process that runs function(...): its pid, for errno_of()"""
    pid = os.fork()
    if not pid:
        status = 255
        try:
            function(*args, **kwargs)
            status = 0
        except OSError as e:
            status = e.errno
        except Exception:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return pid


def errno_of(pid):
    """How a child ended: the errno of what it ran, 0 if that succeeded"""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


CAP_NET_ADMIN, CAP_BPF = 12, 39


def with_caps(caps, function, *args, userns=False, **kwargs):
    """Errno of function(...) as run by a process with these capabilities only,
    in a user namespace of its own if asked for; 0 if it succeeds"""
    def limited():
        if userns:
            os.unshare(os.CLONE_NEWUSER)
        else:
            mask = sum(1 << c for c in caps)
            low, high = mask & 0xffffffff, mask >> 32
            head = _buf(struct.pack("=Ii", 0x20080522, 0))
            data = _buf(struct.pack("=6I", low, low, 0, high, high, 0))
            if _libc.capset(ctypes.byref(head), ctypes.byref(data)):
                raise RuntimeError("capset")
        function(*args, **kwargs)
    return errno_of(child(limited))


# bpf(2)

(MAP_CREATE, MAP_LOOKUP_ELEM, MAP_UPDATE_ELEM, MAP_DELETE_ELEM, MAP_GET_NEXT_KEY,
 PROG_LOAD, OBJ_PIN, OBJ_GET, PROG_ATTACH, PROG_DETACH, PROG_TEST_RUN,
 PROG_GET_NEXT_ID, MAP_GET_NEXT_ID, PROG_GET_FD_BY_ID, MAP_GET_FD_BY_ID,
 OBJ_GET_INFO_BY_FD) = range(16)
RAW_TRACEPOINT_OPEN, BTF_LOAD, BTF_GET_FD_BY_ID = range(17, 20)
LINK_CREATE, ITER_CREATE = 28, 33
MAP_LOOKUP_AND_DELETE_ELEM = 21
MAP_FREEZE = 22
MAP_LOOKUP_BATCH, MAP_LOOKUP_AND_DELETE_BATCH, MAP_UPDATE_BATCH, MAP_DELETE_BATCH = range(24, 28)
TOKEN_CREATE = 36

MAP_HASH, MAP_ARRAY, MAP_ARRAY_OF_MAPS = 1, 2, 12
BPF_F_TOKEN_FD = 1 << 16
PROG_SOCKET_FILTER, PROG_KPROBE, PROG_SCHED_CLS, PROG_SCHED_ACT, PROG_XDP, PROG_SYSCALL = \
    1, 2, 3, 4, 6, 31
PROG_TRACING, MODIFY_RETURN, TRACE_ITER = 26, 26, 28
BPF_F_SLEEPABLE = 1 << 4
BPF_F_NUMA_NODE, BPF_F_RDONLY, BPF_F_WRONLY, BPF_F_RDONLY_PROG = 1 << 2, 1 << 3, 1 << 4, 1 << 7
BPF_ANY, BPF_NOEXIST, BPF_EXIST, BPF_F_LOCK = 0, 1, 2, 4
XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT = range(5)
TEST_XDP_LIVE_FRAMES = 1 << 1

MODULAR_MIN, MODULAR_LOCAL, MODULAR_MAX = 0x10000, 0x18000, 0x1ffff
MAP_FLOWMAP = 65537

_libc = ctypes.CDLL(None, use_errno=True)


def bpf(cmd, attr):
    buf = ctypes.create_string_buffer(attr, max(len(attr), 128))
    return syscall(321, cmd, ctypes.byref(buf), len(buf)), buf.raw


def syscall(number, *args):
    ret = _libc.syscall(number, *args)
    if ret < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return ret


def _addr(buf):
    return ctypes.addressof(buf) if buf is not None else 0


def _buf(data):
    return ctypes.create_string_buffer(bytes(data), max(len(data), 1))


class Fd:
    """A file descriptor that goes with the object"""
    fd = -1

    def __init__(self, fd):
        self.fd = fd

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def __del__(self):
        self.close()

    def pin(self, path):
        name = _buf(path.encode() + b"\0")
        bpf(OBJ_PIN, struct.pack("=QII", _addr(name), self.fd, 0))


def obj_get(path, kind=Fd, flags=0, **kwargs):
    name = _buf(path.encode() + b"\0")
    return kind(fd=bpf(OBJ_GET, struct.pack("=QII", _addr(name), 0, flags))[0], **kwargs)


class Map(Fd):
    """Keys and values are bytes"""
    def __init__(self, type=MAP_FLOWMAP, key_size=64, value_size=112, max_entries=1024,
                 flags=0, extra=0, name="test", inner=0, ifindex=0, btf=(0, 0, 0), token=0,
                 fd=None):
        self.key_size, self.value_size = key_size, value_size
        if fd is None:
            fd = bpf(MAP_CREATE, struct.pack("=7I16s5IQ2i", type, key_size, value_size,
                                              max_entries, flags, inner, 0, name.encode(),
                                              ifindex, *btf, 0, extra, 0, token))[0]
        super().__init__(fd)

    def _elem(self, cmd, key, value, flags=0):
        k = _buf(key) if key is not None else None
        bpf(cmd, struct.pack("=I4xQQQ", self.fd, _addr(k), _addr(value), flags))

    def lookup(self, key, flags=0, cmd=MAP_LOOKUP_ELEM):
        value = _buf(bytes(self.value_size))
        self._elem(cmd, key, value, flags)
        return value.raw[:self.value_size]

    def lookup_and_delete(self, key):
        return self.lookup(key, cmd=MAP_LOOKUP_AND_DELETE_ELEM)

    def update(self, key, value, flags=BPF_ANY):
        self._elem(MAP_UPDATE_ELEM, key, _buf(value), flags)

    def delete(self, key):
        self._elem(MAP_DELETE_ELEM, key, None)

    def next_key(self, key=None):
        """None at the end"""
        following = _buf(bytes(self.key_size))
        try:
            self._elem(MAP_GET_NEXT_KEY, key, following)
        except FileNotFoundError:
            return None
        return following.raw[:self.key_size]

    def keys(self):
        key = self.next_key()
        while key:
            yield key
            key = self.next_key(key)

    def batch(self, count, cmd=MAP_LOOKUP_BATCH, keys=(), after=None):
        """[(key, value), ...] of one batch from the start, from self.last of one before, or of
        these keys"""
        out = _buf(bytes(self.key_size))
        start = _buf(after) if after else None
        into = _buf(b"".join(keys).ljust(self.key_size * count, b"\0"))
        values = _buf(bytes(self.value_size * count))
        attr = struct.pack("=QQQQIIQQ", _addr(start), _addr(out), _addr(into), _addr(values), count,
                           self.fd, 0, 0)
        buf = ctypes.create_string_buffer(attr, 128)
        if _libc.syscall(321, cmd, ctypes.byref(buf), 128) < 0 and \
           ctypes.get_errno() != errno.ENOENT:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        n = struct.unpack_from("=I", buf.raw, 32)[0]
        self.last = out.raw
        return [(into.raw[i * self.key_size:(i + 1) * self.key_size],
                 values.raw[i * self.value_size:(i + 1) * self.value_size]) for i in range(n)]

    def freeze(self):
        bpf(MAP_FREEZE, struct.pack("=I", self.fd))

    def memlock(self):
        """Memory, as the map says"""
        with open(f"/proc/self/fdinfo/{self.fd}", encoding="ascii") as f:
            return int(re.search(r"memlock:\s*(\d+)", f.read())[1])

    def info(self):
        buf = _buf(bytes(88))
        bpf(OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", self.fd, len(buf), _addr(buf)))
        names = ("type", "id", "key_size", "value_size", "max_entries", "map_flags", "name",
                 "ifindex", "vmlinux_type", "netns_dev", "netns_ino", "btf_id",
                 "btf_key_type_id", "btf_value_type_id", "pad", "map_extra")
        info = dict(zip(names, struct.unpack("=6I16s2IQQ4IQ", buf.raw[:88])))
        info["name"] = info["name"].rstrip(b"\0").decode()
        return info


def map_ids():
    found, i = [], 0
    while True:
        try:
            i = struct.unpack_from("=I", bpf(MAP_GET_NEXT_ID, struct.pack("=III", i, 0, 0))[1], 4)[0]
        except FileNotFoundError:
            return found
        found.append(i)


class MemoryCgroup:
    """'with MemoryCgroup("name") as c:'; what is in it must be gone by then"""
    def __init__(self, name):
        self.path = "/sys/fs/cgroup/" + name

    def __enter__(self):
        run("echo +memory > /sys/fs/cgroup/cgroup.subtree_control")
        os.mkdir(self.path)
        return self

    def __exit__(self, *_):
        os.rmdir(self.path)

    def charged(self):
        with open(self.path + "/memory.current", encoding="ascii") as f:
            return int(f.read())

    def slabs(self):
        """Of what is charged, kernel objects that are in use"""
        with open(self.path + "/memory.stat", encoding="ascii") as f:
            return int(re.search(r"^slab_unreclaimable (\d+)", f.read(), re.M)[1])

    def run(self, function):
        """By a process in the cgroup, which then ends"""
        def inside():
            with open(self.path + "/cgroup.procs", "w", encoding="ascii") as f:
                f.write(str(os.getpid()))
            function()
        err = errno_of(child(inside))
        if err:
            raise OSError(err, os.strerror(err))

    def create(self, make, **kwargs):
        """make(**kwargs), a map, by such a process"""
        path = "/sys/fs/bpf/charged"
        self.run(lambda: make(**kwargs).pin(path))
        m = obj_get(path, Map)
        os.unlink(path)
        return m


def map_by_id(i, **kwargs):
    return Map(fd=bpf(MAP_GET_FD_BY_ID, struct.pack("=III", i, 0, 0))[0], **kwargs)


class Prog(Fd):
    def __init__(self, insns=None, type=PROG_XDP, flags=0, attach=0, attach_btf_id=0, fd=None):
        self.log = ""
        if fd is None:
            code, log, gpl = _buf(b"".join(insns)), _buf(bytes(65536)), _buf(b"GPL\0")
            try:
                fd = bpf(PROG_LOAD, struct.pack("=IIQQIIQII16sII36xI", type, len(insns),
                                                 _addr(code), _addr(gpl), 1, len(log), _addr(log),
                                                 0, flags, b"test", 0, attach, attach_btf_id))[0]
            except OSError as e:
                e.log = log.value.decode(errors="replace")
                raise
        super().__init__(fd)

    def test(self, data, ifindex=0, repeat=1, flags=0, cpu=0, meta=0):
        """(verdict, data afterwards); in the namespace of device ifindex. The first meta bytes
        of data are no frame, but metadata before it."""
        size = len(data) + 256
        into, out = _buf(data), _buf(bytes(size))
        ctx = _buf(struct.pack("=6I", meta, len(data), 0, ifindex, 0, 0)) if ifindex else None
        live = flags & TEST_XDP_LIVE_FRAMES
        _, attr = bpf(PROG_TEST_RUN, struct.pack(
            "=IIIIQQIIIIQQIII", self.fd, 0, len(data), 0 if live else size, _addr(into),
            0 if live else _addr(out), repeat, 0, 24 if ctx else 0, 0, _addr(ctx), 0, flags, cpu, 0))
        return struct.unpack_from("=I", attr, 4)[0], \
            out.raw[:struct.unpack_from("=I", attr, 12)[0]]


def counted(reason, device=""):
    """Packets that the router's xdp_ct has counted for a reason, on a device or on all"""
    stats = json.loads(on("router", f"xdp_ct stats --json {device}"))
    return sum(d.get(reason, {}).get("packets", 0) for d in stats.values())


def prog_of_device(name, dev):
    """The XDP program that is attached"""
    text = on(name, f"ip -d link show dev {dev}")
    found = re.search(r"prog/xdp id (\d+)", text)
    if not found:
        raise RuntimeError(f"no XDP program on {dev} in {name}")
    return Prog(fd=bpf(PROG_GET_FD_BY_ID, struct.pack("=III", int(found[1]), 0, 0))[0])


# Instructions, for programs of a few lines

def insn(code, dst=0, src=0, off=0, imm=0):
    return struct.pack("=BBhi", code, dst | src << 4, off, imm)


def mov(dst, src):
    return insn(0xbf, dst, src)


def movi(dst, imm):
    return insn(0xb7, dst, imm=imm)


def addi(dst, imm):
    return insn(0x07, dst, imm=imm)


def load(size, dst, src, off):
    return insn({1: 0x71, 2: 0x69, 4: 0x61, 8: 0x79}[size], dst, src, off)


def store(size, dst, off, src):
    return insn({1: 0x73, 2: 0x6b, 4: 0x63, 8: 0x7b}[size], dst, src, off)


def storei(size, dst, off, imm):
    return insn({4: 0x62, 8: 0x7a}[size], dst, 0, off, imm)


def jeqi(dst, imm, off):
    return insn(0x15, dst, 0, off, imm)


def jgt(dst, src, off):
    return insn(0x2d, dst, src, off)


def call(function):
    return insn(0x85, imm=function)


def ld_map(dst, m, value=False):
    """The map, or the address of its first value"""
    return insn(0x18, dst, 2 if value else 1, imm=m.fd) + insn(0)


EXIT = insn(0x95)
LOOKUP, UPDATE, DELETE, SEQ_WRITE = 1, 2, 3, 127


def program(*insns):
    """Instructions, of which some are two long, one by one"""
    code = b"".join(insns)
    return [code[i:i + 8] for i in range(0, len(code), 8)]


class Lookup:
    """bpf_map_lookup_elem() as an XDP program calls it: the frame starts with
    the key, and the value is copied behind it"""
    def __init__(self, m):
        copy = [i for n in range(m.key_size // 8) for i in
                (load(8, 4, 6, 8 * n), store(8, 10, 8 * n - m.key_size, 4))]
        give = [i for n in range(m.value_size // 8) for i in
                (load(8, 4, 0, 8 * n), store(8, 6, m.key_size + 8 * n, 4))]
        body = [*copy, ld_map(1, m), mov(2, 10), addi(2, -m.key_size), call(LOOKUP),
                jeqi(0, 0, len(give) + 2), *give, movi(0, XDP_PASS), EXIT]
        count = len(b"".join(body)) // 8
        self.map = m
        self.prog = Prog(program(load(4, 6, 1, 0), load(4, 3, 1, 4), mov(4, 6),
                                 addi(4, m.key_size + m.value_size), jgt(4, 3, count),
                                 *body, movi(0, XDP_DROP), EXIT))

    def __call__(self, key):
        """The value, or None"""
        verdict, data = self.prog.test(key + bytes(self.map.value_size))
        return data[len(key):] if verdict == XDP_PASS else None


class Iterator(Fd):
    """An iterator program of bpf_map_elem that gives key and value of each element
    of a map, linked to it"""
    def __init__(self, m):
        give = [i for field, size in ((16, m.key_size), (24, m.value_size)) for i in
                (load(8, 1, 6, 0), load(8, 1, 1, 0), load(8, 2, 6, field), jeqi(2, 0, 2),
                 movi(3, size), call(SEQ_WRITE))]
        self.size = m.key_size + m.value_size
        self.map = m
        self.prog = Prog(program(mov(6, 1), *give, movi(0, 0), EXIT), type=PROG_TRACING,
                         attach=TRACE_ITER, attach_btf_id=btf_id("FUNC", "bpf_iter_bpf_map_elem"))
        info = _buf(struct.pack("=I", m.fd))
        super().__init__(bpf(LINK_CREATE, struct.pack("=IIIIQI", self.prog.fd, 0, TRACE_ITER, 0,
                                                      _addr(info), 4))[0])

    def __iter__(self):
        """(key, value) of each"""
        with open(bpf(ITER_CREATE, struct.pack("=II", self.fd, 0))[0], "rb") as f:
            while data := f.read(self.size):
                yield data[:self.map.key_size], data[self.map.key_size:]


@functools.cache
def btf_id(kind, name):
    """In the kernel's BTF; 0 if it has none"""
    found = re.search(rf"^\[(\d+)\] {kind} '{name}'",
                      run(f"bpftool btf dump file /sys/kernel/btf/vmlinux format raw | "
                          f"grep -F \"{kind} '{name}'\" || true"))
    return int(found[1]) if found else 0


# ioctl(2) on devices, neighbours and routes: what is done by it is done in this task

SIOCADDRT, SIOCDELRT, SIOCDARP, SIOCSARP = 0x890b, 0x890c, 0x8953, 0x8955
SIOCSIFFLAGS, SIOCSIFMTU, SIOCSIFHWADDR = 0x8914, 0x8922, 0x8924
ATF_COM = 2


def sockaddr(text):
    return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))


def arpreq(addr, lladdr, dev, flags=ATF_COM):
    return sockaddr(addr) + struct.pack("=H6s8xi16x16s", 1, mac(lladdr), flags, dev.encode())


def ifreq(dev, layout, *args):
    return struct.pack("=16s", dev.encode()) + struct.pack(layout, *args).ljust(24, b"\0")


# Types that modules bring: tests/modules/

TOY, BARE = MODULAR_LOCAL, MODULAR_LOCAL + 1
MODULAR_SYSFS = "/sys/kernel/bpf/modular_maps/"
MODULE = "nf_flow_table_bpf_flowmap"


def toy(key_size=8, value_size=8, max_entries=64, **kwargs):
    return Map(type=TOY, key_size=key_size, value_size=value_size, max_entries=max_entries,
               **kwargs)


def bare(**kwargs):
    return Map(type=BARE, key_size=4, value_size=4, max_entries=1, **kwargs)


def loaded(module):
    with open("/proc/modules", encoding="ascii") as f:
        return any(line.split()[0] == module for line in f)


def delete_module(module):
    """0, or the errno"""
    return _libc.syscall(176, module.encode(), os.O_NONBLOCK) and ctypes.get_errno()


def unload(module):
    """True if the kernel let go of it; a map is freed from a work queue"""
    return wait_for(lambda: not delete_module(module))


def sysfs(name, attribute):
    with open(MODULAR_SYSFS + name + "/" + attribute, encoding="ascii") as f:
        return f.read().split()


def calls(m, function, *more, key=None):
    """A program that calls a helper with a map and a key, of zeros if none is given"""
    words = struct.unpack_from(f"={m.key_size // 4}i", key or bytes(m.key_size))
    return program(*[storei(4, 10, 4 * i - m.key_size, w) for i, w in enumerate(words)],
                   ld_map(1, m), mov(2, 10), addi(2, -m.key_size), mov(3, 2), movi(4, 0),
                   call(function), *more, movi(0, 2), EXIT)


# The flowmap's key and value

REPLY, SNAT, DNAT, NO_NEIGH, HOOKS = 1, 2, 4, 1 << 8, 1 << 13
NEEDS_STACK = 0xff00
KEY_STACK, KEY_SKB = 1, 2
COUNTERS, IPV4, IPV6 = 1, 2, 4  # map_extra
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
IPS_OFFLOAD = 1 << 14

KEY = struct.Struct("=I2s2sBBH2sH2sHI32sIBBH")
VALUE = struct.Struct("=II6s6s2sH2sH2sHHH2s2s32sIIIHBBQQII")
KEY_FIELDS = ("ifindex sport dport family l4proto reserved encap0 id0 encap1 id1 tunnel addr "
              "len tcp_flags flags reserved2").split()
VALUE_FIELDS = ("flags ifindex h_dest h_source h_proto mtu encap0 id0 encap1 id1 ip_csum_diff "
                "l4_csum_diff sport dport addr ct_status ct_mark ct_id ct_zone tcp_state tcp_wscale "
                "packets bytes last_used reserved2").split()
assert KEY.size == 64 and VALUE.size == 112


class Fields(dict):
    __getattr__ = dict.__getitem__


def _fields(names, layout, data):
    f = Fields(zip(names, layout.unpack(data)))
    f["sport"], f["dport"] = (int.from_bytes(p, "big") for p in (f.sport, f.dport))
    f["saddr"], f["daddr"] = (socket.inet_ntoa(f.addr[i:i + 4]) for i in (0, 4))
    return f


def parse_key(data):
    return _fields(KEY_FIELDS, KEY, data)


def parse_value(data):
    return _fields(VALUE_FIELDS, VALUE, data)


def make_key(ifindex, proto, saddr, sport, daddr, dport, len=100, tcp_flags=0, flags=0, **other):
    f = dict.fromkeys(KEY_FIELDS, 0)
    f.update(encap0=bytes(2), encap1=bytes(2))
    f.update(ifindex=ifindex, family=family(saddr), l4proto=proto, len=len, flags=flags,
             tcp_flags=tcp_flags, sport=sport.to_bytes(2, "big"), dport=dport.to_bytes(2, "big"),
             addr=address(saddr) + address(daddr))
    f.update(other)
    return KEY.pack(*f.values())


def with_facts(key, **facts):
    """A dumped key as a packet's"""
    f = dict(zip(KEY_FIELDS, KEY.unpack(key)), len=100)
    f.update(facts)
    return KEY.pack(*f.values())


def credit(packets, nbytes, **other):
    f = dict.fromkeys(VALUE_FIELDS, 0)
    for name in ("h_dest", "h_source", "h_proto", "encap0", "encap1", "sport", "dport", "addr"):
        f[name] = b""
    f.update(packets=packets, bytes=nbytes, **other)
    return VALUE.pack(*f.values())


# Frames

def csum(data, start=0):
    """One's complement sum of words in network order, not complemented"""
    total = int.from_bytes(data + bytes(len(data) % 2), "big") + start
    return total % 0xffff or (0xffff if total else 0)


def family(text):
    return socket.AF_INET6 if ":" in text else socket.AF_INET


@functools.cache
def address(text):
    """Of IPv4 or IPv6, as bytes"""
    return socket.inet_pton(family(text), text)


def mac(text):
    return bytes.fromhex(text.replace(":", ""))


def ipv4(src, dst, proto, payload, ttl=64, ident=0, frag=0, options=b"", tos=0, check=None,
         total=None, version=4, ihl=None):
    ihl = 5 + len(options) // 4 if ihl is None else ihl
    total = 20 + len(options) + len(payload) if total is None else total
    head = struct.pack("!BBHHHBBH4s4s", version << 4 | ihl, tos, total, ident, frag, ttl, proto, 0,
                       address(src), address(dst)) + options
    if check is None:
        check = 0xffff ^ csum(head)
    return head[:10] + struct.pack("!H", check) + head[12:] + payload


def ipv6(src, dst, proto, payload, ttl=64, tos=0, label=0, total=None, version=6):
    """total is the payload's length"""
    return struct.pack("!IHBB16s16s", version << 28 | tos << 20 | label,
                       len(payload) if total is None else total, proto, ttl,
                       address(src), address(dst)) + payload


def l4(src, dst, proto, segment, at):
    """With its checksum, which goes at the offset at"""
    pseudo = address(src) + address(dst) + struct.pack("!HH", proto, len(segment))
    check = 0xffff ^ csum(pseudo + segment)
    if proto == UDP and not check:
        check = 0xffff
    return segment[:at] + struct.pack("!H", check) + segment[at + 2:]


def udp(src, dst, sport, dport, payload=b"", check=True, length=None):
    length = 8 + len(payload) if length is None else length
    segment = struct.pack("!HHHH", sport, dport, length, 0) + payload
    return l4(src, dst, UDP, segment, 6) if check else segment


def tcp(src, dst, sport, dport, flags=ACK, seq=0, ack=0, payload=b"", doff=5, window=8192, urg=0,
        options=b""):
    doff = doff + len(options) // 4
    segment = struct.pack("!HHIIBBHHH", sport, dport, seq & 0xffffffff, ack & 0xffffffff, doff << 4,
                          flags, window, 0, urg) + options + payload
    return l4(src, dst, TCP, segment, 16)


def frame(dst, src, packet, proto=0x0800):
    return mac(dst) + mac(src) + struct.pack("!H", proto) + packet


def ip_frame(to, by, src, dst, proto, payload, vlan=0, **kwargs):
    """With IPv4 or IPv6, as the addresses are"""
    make, ethertype = (ipv6, 0x86dd) if ":" in src else (ipv4, 0x0800)
    packet = make(src, dst, proto, payload, **kwargs)
    if vlan:
        packet, ethertype = struct.pack("!HH", vlan, ethertype) + packet, 0x8100
    return frame(to, by, packet, ethertype)


def raw_socket(ns, dev, receive=True):
    """AF_PACKET on a device; what it receives is what comes in"""
    with netns(ns):
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        s.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
        s.setsockopt(263, 23, 1)  # SOL_PACKET, PACKET_IGNORE_OUTGOING
        s.bind((dev, 3 if receive else 0))  # ETH_P_ALL
    s.setblocking(not receive)
    return s


def received(s, timeout=0.3):
    """All frames, until none comes for the time-out"""
    frames = []
    while select.select([s], [], [], timeout * PATIENCE)[0]:
        frames.append(s.recv(65536))
    return frames


class Wire:
    """raw_socket() for many frames at once; a VLAN tag that the kernel has taken
    off what it received is put on again"""
    SLOT, COUNT, CONTROL = 4096, 256, 64
    HEAD = struct.Struct("=QI4xQQQQi4xI4x")  # struct mmsghdr

    def __init__(self, ns, dev):
        self.socket = raw_socket(ns, dev)
        self.socket.setsockopt(socket.SOL_SOCKET, 32, 1 << 24)  # SO_SNDBUFFORCE
        self.socket.setsockopt(263, 8, 1)  # PACKET_AUXDATA
        self.data, self.control, self.iov, self.heads = (
            ctypes.create_string_buffer(self.COUNT * n)
            for n in (self.SLOT, self.CONTROL, 16, self.HEAD.size))
        self.fresh = self._heads([self.SLOT] * self.COUNT, self.data, self.SLOT, self.iov,
                                 self.control)

    def _heads(self, sizes, data, slot, iov, control=None):
        """struct mmsghdr for each, with one vector each, which are written to iov"""
        base, heads = ctypes.addressof(data), []
        for i, size in enumerate(sizes):
            struct.pack_into("=QQ", iov, 16 * i, base, size)
            base += slot or size
            heads.append(self.HEAD.pack(
                0, 0, ctypes.addressof(iov) + 16 * i, 1,
                ctypes.addressof(control) + self.CONTROL * i if control else 0,
                self.CONTROL if control else 0, 0, 0))
        return b"".join(heads)

    def send(self, frames):
        """Those that the device does not take, for their size, are left out"""
        data = ctypes.create_string_buffer(b"".join(frames))
        iov = ctypes.create_string_buffer(16 * len(frames))
        heads = ctypes.create_string_buffer(
            self._heads([len(f) for f in frames], data, 0, iov))
        done = 0
        while done < len(frames):
            n = _libc.sendmmsg(self.socket.fileno(), ctypes.byref(heads, done * self.HEAD.size),
                               len(frames) - done, 0)
            if n < 0 and ctypes.get_errno() not in (errno.EMSGSIZE, errno.EINVAL):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            done += max(n, 1)

    def receive(self):
        """What is there"""
        frames = []
        while True:
            ctypes.memmove(self.heads, self.fresh, len(self.fresh))
            n = _libc.recvmmsg(self.socket.fileno(), self.heads, self.COUNT, socket.MSG_DONTWAIT,
                               None)
            if n <= 0:
                return frames
            lengths = [h[7] for h in self.HEAD.iter_unpack(self.heads.raw[:n * self.HEAD.size])]
            for i, length in enumerate(lengths):
                data = ctypes.string_at(ctypes.addressof(self.data) + i * self.SLOT, length)
                status, tci, tpid = struct.unpack_from("=I12xHH", self.control,
                                                       i * self.CONTROL + 16)
                if status & 0x10:  # TP_STATUS_VLAN_VALID
                    data = data[:12] + struct.pack("!HH", tpid, tci) + data[12:]
                frames.append(data)


def udp_socket(ns, addr, port, timeout=2):
    with netns(ns):
        s = socket.socket(family(addr), socket.SOCK_DGRAM)
    s.bind((addr, port))
    s.settimeout(timeout * PATIENCE)
    return s


def tcp_pair(client, server, addr, port, to=None, timeout=5):
    """A connection from one namespace to a listener at addr and port in the
    other, by way of the address and port 'to' if given: (client, server)"""
    with netns(server):
        listener = socket.socket(family(addr), socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((addr, port))
    listener.listen()
    timeout *= PATIENCE
    listener.settimeout(timeout)
    with netns(client):
        c = socket.socket(family(addr), socket.SOCK_STREAM)
    c.settimeout(timeout)
    c.connect(to or (addr, port))
    s, _ = listener.accept()
    s.settimeout(timeout)
    listener.close()
    return c, s


# nf_tables

def _attr(type_, data):
    return struct.pack("=HH", 4 + len(data), type_) + data + bytes(-len(data) % 4)


def new_flowtable(ns, table, name, devices, flags):
    """A flowtable of the inet family, with flags that nft does not know"""
    def message(type_, family, res_id, body, flags):
        data = struct.pack("!BBH", family, 0, res_id) + body
        return struct.pack("=IHHII", 16 + len(data), type_, flags, 1, 0) + data
    nested = 1 << 15
    devs = b"".join(_attr(1, d.encode() + b"\0") for d in devices)
    hook = _attr(1, struct.pack("!I", 0)) + _attr(2, struct.pack("!i", 0)) + _attr(3 | nested, devs)
    body = _attr(1, table.encode() + b"\0") + _attr(2, name.encode() + b"\0") + \
        _attr(3 | nested, hook) + _attr(7, struct.pack("!I", flags))
    with netns(ns):
        s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)  # NETLINK_NETFILTER
    s.settimeout(5)
    s.send(message(16, 0, 10, b"", 1) + message(10 << 8 | 22, 1, 0, body, 0x405) +
           message(17, 0, 10, b"", 1))
    err = -struct.unpack_from("=i", s.recv(65536), 16)[0]
    s.close()
    if err:
        raise OSError(err, os.strerror(err))


FLOWTABLE_SNOOP = 4


def snoop(ns):
    """The ruleset's flowtable anew, in snoop mode; it must be without flow add"""
    on(ns, "nft delete flowtable inet router ft")
    new_flowtable(ns, "router", "ft", ("rc", "rs"), FLOWTABLE_SNOOP)
    on(ns, "nft add rule inet router forward ct state established flow add @ft")


def end():
    sys.exit(1 if failed else 0)


def run_tests(*tests, always=lambda: None):
    """Each, whatever has become of the one before, and end"""
    for test in tests:
        try:
            test()
        except Exception:
            always()
            not_ok(f"{test.__name__} ends", traceback.format_exc())
    end()
