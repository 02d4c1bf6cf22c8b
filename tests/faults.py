# SPDX-License-Identifier: GPL-2.0
"""Cases of faults.sh; the hosts and the ruleset are up, and so is fault injection"""
import bisect
import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import re
import socket
import struct

from lib import (BPF_EXIST, EXIT, MAP_LOOKUP_AND_DELETE_BATCH, MODULE, SIOCADDRT, SIOCDARP,
                 SIOCDELRT, SIOCSARP, SIOCSIFFLAGS, SIOCSIFHWADDR, SIOCSIFMTU, TEST_XDP_LIVE_FRAMES,
                 UDP, XDP_PASS, Iterator, Lookup, Map, Prog, arpreq, check, credit, delete_module,
                 expect, frame, ifreq, ipv4, loaded, mac, movi, netns, on, parse_value, program,
                 run, run_tests, sockaddr, syscall, sysfs, udp, unload, wait_for)
from flows import (CLIENT, ROUTER, RS, RS_MAC, SERVER, SERVER_MAC, TcpFlow, UdpFlow, gone, proc_maps,
                   published, router_map, value)

DEBUG = "/sys/kernel/debug/"
NTH = os.open("/proc/thread-self/fail-nth", os.O_RDWR)
MEMORY = (errno.ENOMEM, errno.ENOBUFS)


def write(path, text):
    with open(path, "w", encoding="ascii") as f:
        f.write(str(text))


@functools.cache
def symbols():
    """Functions by name, and all addresses in order"""
    found = {}
    with open("/proc/kallsyms", encoding="ascii") as f:
        for line in f:
            address, kind, name = line.split()[:3]
            if kind in "tT":
                found.setdefault(name, int(address, 16))
    return found, sorted(set(found.values()))


def limit(which, function=None, kinds=("failslab", "fail_page_alloc")):
    """Only what is allocated in a call of this function ("require") or out of it
    ("reject") fails; or all that the task does"""
    start, last = (0, (1 << 64) - 1) if which == "require" else (0, 0)
    if function:
        found, addresses = symbols()
        start = found[function]
        last = addresses[bisect.bisect(addresses, start)]
    for what in kinds:
        write(f"{DEBUG}{what}/{which}-start", hex(start))
        write(f"{DEBUG}{what}/{which}-end", hex(last))


@contextlib.contextmanager
def failing(kind, function=None, times=-1):
    """Whoever asks, in soft interrupts, too; gives how often it has failed"""
    limit("require", function, [kind])
    write(f"{DEBUG}{kind}/times", times)
    write(f"{DEBUG}{kind}/probability", 100)
    try:
        yield lambda: times - int(run(f"cat {DEBUG}{kind}/times"))
    finally:
        write(f"{DEBUG}{kind}/probability", 0)


def below(function=None):
    """And never kmemleak's own notes"""
    limit("require", function)
    limit("reject", "__alloc_object")


def each(name, attempt, after=lambda: True, before=lambda: None, allowed=MEMORY):
    """attempt(what before() returned) with the first allocation failing, with the
    second, and so on until all succeed; it may fail for want of memory, and after()
    must hold"""
    points = failures = 0
    wrong = []
    while True:
        given = before()
        os.write(NTH, b"%d" % (points + 1))
        try:
            attempt(given)
            failed = 0
        except OSError as e:
            failed = e.errno
        left = int(os.pread(NTH, 16, 0))
        os.write(NTH, b"0")
        if failed and failed not in allowed:
            wrong.append(f"point {points + 1}: {os.strerror(failed)}")
        if not after():
            wrong.append(f"point {points + 1}: what must hold after it does not")
        if left:
            break
        points += 1
        failures += bool(failed)
    print(f"# {name}: {points} allocations failed in turn, {failures} times all of it did",
          flush=True)
    expect(f"{name}: whichever allocation fails", (True, []), (points > 0, wrong))


def router_maps():
    with netns("router"):
        return proc_maps()


def no_maps():
    return wait_for(lambda: sysfs("flowmap", "maps") == ["0"] and not router_maps())


def test_load():
    path = run(f"modinfo -n {MODULE}").strip()
    check("load: the module is out", unload(MODULE))

    def load(fd):
        try:
            syscall(313, fd, ctypes.c_char_p(b""), 0)
        finally:
            os.close(fd)

    def out():
        if loaded(MODULE) and delete_module(MODULE):
            return False
        return not os.path.exists("/sys/kernel/bpf/modular_maps/flowmap") and \
            not os.path.exists("/proc/net/nf_flowmap") and not loaded(MODULE) and \
            not os.path.exists("/sys/kernel/slab/flowmap_flow")
    below("do_one_initcall")
    limit("reject", "sysfs_slab_add") # loses the name of a cache when it fails
    each("load, and kmemleak's notes of it", load, out, lambda: os.open(path, os.O_RDONLY))
    router_map().close()


def test_create():
    router_map().close() # the module is there
    flows = [UdpFlow() for _ in range(5)]
    below("__sys_bpf")
    made = []

    def create(_):
        with netns("router"):
            made.append(Map(max_entries=4096))

    def after():
        """Nothing is left of a map; one that could be made has all flows, or says so"""
        right = True
        while made:
            line = router_maps()[0]
            right = line[1] // 2 + line[3] == len(flows)
            made.pop().close()
        return no_maps() and right
    each("create", create, after)
    for f in flows:
        f.close()
    on("router", "conntrack -F 2>/dev/null")


def test_add():
    m = router_map()
    lookup = Lookup(m)
    passing = Prog(program(movi(0, XDP_PASS), EXIT))
    now = {}

    def answer(flow):
        data = frame(RS_MAC, SERVER_MAC, ipv4(SERVER, ROUTER, UDP, udp(SERVER, ROUTER, flow.port,
                                                                       flow.port, b"from")))
        # in this task, not in a soft interrupt as from a device
        with netns("router"):
            passing.test(data, ifindex=RS, flags=TEST_XDP_LIVE_FRAMES)

    def ask():
        now["full"] = router_maps()[0][3]
        on("router", f"ip neigh del {CLIENT} dev rc || true")
        now["flow"] = flow = UdpFlow(talk=False)
        flow.client.sendto(b"to", (SERVER, flow.port))
        flow.server.recvfrom(100)
        return flow

    def after():
        """It goes on, and programs find it, or it was counted"""
        flow = now["flow"]
        right = wait_for(flow.talk) and (router_maps()[0][3] > now["full"] or wait_for(
            lambda: flow.talk() and lookup(flow.key) and lookup(flow.reply)))
        flow.close()
        return right
    below("nft_flow_offload_eval")
    each("add", answer, after, ask)
    below()
    each("add, the packet's whole way", answer, after, ask)


def test_exhausted():
    """No memory for flows at all, in soft interrupts, too"""
    m, flows = router_map(), []
    full = router_maps()[0][3]
    before = value(m, UdpFlow().key)
    write("/sys/kernel/slab/flowmap_flow/failslab", 1)
    write(f"{DEBUG}failslab/cache-filter", "Y")
    try:
        with failing("failslab"):
            flows = [UdpFlow() for _ in range(20)] + [TcpFlow()]
            went = all(f.talk() for f in flows)
    finally:
        write(f"{DEBUG}failslab/cache-filter", "N")
    check("exhausted: before, flows are published", before)
    check("exhausted: connections work without it", went)
    check("exhausted: none is in the map", all(gone(m, f) for f in flows))
    expect("exhausted: each is counted", full + len(flows), router_maps()[0][3])
    check("exhausted: and with memory again, new ones are", published(m, UdpFlow()))


def test_function():
    """The same by fail_function: what asks whether an allocation is to fail says so to the
    flowmap alone"""
    m, flows = router_map(), []
    full = router_maps()[0][3]
    write(f"{DEBUG}fail_function/inject", "should_failslab")
    write(f"{DEBUG}fail_function/should_failslab/retval", (1 << 64) - errno.ENOMEM)
    write(f"{DEBUG}fail_function/verbose", 0)
    write(f"{DEBUG}fail_function/stacktrace-depth", 32)
    with failing("fail_function", "flowmap_snoop_add", 1000) as failed:
        flows = [UdpFlow() for _ in range(5)]
        went = all(f.talk() for f in flows)
        hits = failed()
    write(f"{DEBUG}fail_function/inject", "!should_failslab")
    print(f"# function: {hits} allocations failed", flush=True)
    expect("function: each flow's allocation fails, connections work, each is counted",
           (len(flows), True, full + len(flows)), (hits, went, router_maps()[0][3]))
    check("function: then new ones are published again", published(m, UdpFlow()))


def test_growth():
    """The flowtable's own hash cannot grow"""
    on("router", "nft list ruleset > /tmp/rules && nft flush ruleset && nft -f /tmp/rules")
    m = router_map()
    with failing("failslab", "rht_deferred_worker", 1000) as failed: # it tries again at once
        flows = [UdpFlow() for _ in range(60)]
        went = wait_for(failed) and all(f.talk() and published(m, f) for f in flows)
        hits = failed()
    print(f"# growth: {hits} allocations failed", flush=True)
    check("growth: with a flowtable that cannot, all flows are published and work",
          went and hits > 0, hits)
    check("growth: and go on when it can", all(f.talk() and published(m, f) for f in flows))


def test_syscalls():
    m = router_map()
    flows = [UdpFlow() for _ in range(5)]
    keys = [k for f in flows for k in (f.key, f.reply)]

    def all_there():
        return wait_for(lambda: all(f.talk() and published(m, f) for f in flows))
    iterator = Iterator(m)
    below("__sys_bpf")
    for name, attempt in (("look-up", lambda _: m.lookup(keys[0])),
                          ("next key", lambda _: m.next_key(keys[0])),
                          ("update", lambda _: m.update(keys[0], credit(1, 1), BPF_EXIST)),
                          ("delete", lambda _: m.delete(keys[0])),
                          ("look-up and delete", lambda _: m.lookup_and_delete(keys[0])),
                          ("batch look-up", lambda _: m.batch(100)),
                          ("batch look-up and delete",
                           lambda _: m.batch(100, MAP_LOOKUP_AND_DELETE_BATCH)),
                          ("iterator", lambda _: len(list(iterator)))):
        each(name, attempt, all_there)
    below("bpf_seq_read")
    each("iterator's reads", lambda _: len(list(iterator)), all_there)


# What changes beneath a flow

def route():
    """To the server by itself, with a smaller MTU: RTF_UP, RTF_HOST, RTF_MTU"""
    dev = ctypes.create_string_buffer(b"rs")
    return dev, struct.pack("=8x16s16s16sHh4xQQh6xQQQH6x", sockaddr(SERVER), bytes(16),
                            sockaddr("255.255.255.255"), 0x45, 0, 0, 0, 0,
                            ctypes.addressof(dev), 1300, 0, 0)


def test_changes():
    on("router", "sysctl -qw net.ipv4.conf.all.arp_notify=1") # the server hears of MAC addresses
    m, flow = router_map(), UdpFlow()
    lookup = Lookup(m)
    with netns("router"):
        control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    dev, rt = route()
    server = arpreq(SERVER, SERVER_MAC, "rs")

    def ioctl(number, data):
        fcntl.ioctl(control.fileno(), number, data)

    def undo(number, data):
        try:
            ioctl(number, data)
        except OSError:
            pass

    def way():
        """What the kernel says: the neighbour's address, the device's address and MTU"""
        neigh = on("router", f"ip neigh show {SERVER} dev rs")
        found = re.search(r"lladdr (\S+)", neigh)
        link = on("router", "ip link show dev rs")
        mtu = re.search(r"mtu (\d+)", on("router", f"ip route get {SERVER} || true") + link)
        up = "state UP" in link
        return up and found and (mac(found[1]), mac(re.search(r"link/ether (\S+)", link)[1]),
                                 int(mtu[1]))

    def after(*back):
        """A look-up gives what is true now, or nothing; and undone, all is as it was"""
        got = lookup(flow.key)
        truth = way()
        if got:
            v = parse_value(got)
            right = truth and (v.h_dest, v.h_source, v.mtu) == truth
        else:
            right = True
        undo(*back)
        return right and wait_for(lambda: flow.talk() and lookup(flow.key) and lookup(flow.reply))
    below("__x64_sys_ioctl")
    changes = {
        "neighbour moves": ((SIOCSARP, arpreq(SERVER, "02:00:00:00:02:99", "rs")),
                            (SIOCSARP, server)),
        "neighbour deleted": ((SIOCDARP, server), (SIOCSARP, server)),
        "route added": ((SIOCADDRT, rt), (SIOCDELRT, rt)),
        "device down": ((SIOCSIFFLAGS, ifreq("rs", "=H", 0x1002)),
                        (SIOCSIFFLAGS, ifreq("rs", "=H", 0x1003))),
        "MTU": ((SIOCSIFMTU, ifreq("rs", "=i", 1400)), (SIOCSIFMTU, ifreq("rs", "=i", 1500))),
        "MAC address": ((SIOCSIFHWADDR, ifreq("rs", "=H6s", 1, mac("02:00:00:00:02:05"))),
                        (SIOCSIFHWADDR, ifreq("rs", "=H6s", 1, mac(RS_MAC)))),
    }
    for name, (do, back) in changes.items():
        each(name, lambda _, do=do: ioctl(*do), lambda back=back: after(*back))
    del dev


run_tests(test_create, test_add, test_syscalls, test_changes, test_exhausted, test_function,
          test_growth, test_load, always=lambda: os.write(NTH, b"0"))
