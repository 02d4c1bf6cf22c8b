# SPDX-License-Identifier: GPL-2.0
"""Cases of races.sh; the hosts and the ruleset are up"""
import contextlib
import errno
import fcntl
import itertools
import os
import socket
import subprocess
import time
import traceback

from lib import (ATF_COM, ATF_PERM, COUNTERS, FIN, LOOKUP, SIOCSARP, SIOCSIFHWADDR, SIOCSIFMTU,
                 Lookup, Map, Prog, arpreq, calls, check, child, delete_module, end, errno_of,
                 expect, ifreq, mac, netns, not_ok, on, parse_value, run, sysfs, unload, wait_for,
                 with_facts)
from flows import SERVER, UdpFlow, gone, ports, published, router_map, value

MODULE = "nf_flow_table_bpf_flowmap"
PARAMETERS = "/sys/module/kprobe_hold/parameters/"
MAC, RS_MAC = os.environ["SERVER_MAC"], os.environ["RS_MAC"]
MOMENT = 1 # seconds in which what must not happen would


def parameter(name, value=None):
    with open(PARAMETERS + name, "r" if value is None else "w", encoding="ascii") as f:
        return int(f.read()) if value is None else f.write(str(value))


class Hold:
    """A child that runs function() on the other CPU, and is held where it enters a
    function of the kernel; counts who comes to another one"""
    def __init__(self, where, function, counted=""):
        run("modprobe kprobe_hold symbol=" + where + (" counted=" + counted if counted else ""))
        parameter("armed", 1)

        def body():
            os.sched_setaffinity(0, {1})
            function()
        self.pid = child(body)

    @property
    def held(self):
        return parameter("held")

    @property
    def hits(self):
        return parameter("hits")

    def release(self):
        """Let go: how the child ended"""
        parameter("release", 1)
        pid, self.pid = self.pid, 0
        return errno_of(pid)

    def close(self):
        if self.pid:
            self.release()
        run("rmmod kprobe_hold")


@contextlib.contextmanager
def hold(name, where, function, counted=""):
    h = Hold(where, function, counted)
    try:
        check(f"{name}: it is held", wait_for(lambda: h.held))
        yield h
    finally:
        h.close()


def nothing(condition):
    """True if it did not happen in a moment"""
    end_ = time.monotonic() + MOMENT
    while time.monotonic() < end_:
        if condition():
            return False
        time.sleep(0.05)
    return True


def way(data):
    """All of a value that never changes while it is published"""
    v = parse_value(data)
    return [v[f] for f in ("flags ifindex h_dest h_source h_proto mtu encap0 id0 encap1 id1 "
                           "ip_csum_diff l4_csum_diff sport dport addr ct_id ct_zone").split()]


def read_flow():
    """A map, a flow in it, a program's look-up, and what a child does that must find
    the flow as it is now"""
    m, flow = router_map(extra=COUNTERS), UdpFlow()
    lookup = Lookup(m)
    want = way(lookup(flow.key))

    def reader():
        got = lookup(flow.key)
        if not got or way(got) != want:
            raise OSError(errno.EPROTO, "not what was there")
    return m, flow, lookup, reader


def test_teardown():
    m, flow, lookup, reader = read_flow()
    with hold("teardown", "flowmap_count", reader, "flowmap_free_flow_rcu") as h:
        m.delete(flow.key)
        check("teardown: others do not find the flow any more", gone(m, flow) and
              lookup(flow.key) is None)
        check("teardown: the reader keeps it from being freed",
              nothing(lambda: h.hits) and h.held)
        expect("teardown: the reader has the whole value", 0, h.release())
        check("teardown: then it is freed", wait_for(lambda: h.hits == 1), h.hits)


def test_flush():
    """The ruleset's memory is freed when no reader is left, its flows go at once"""
    m, flow, lookup, _ = read_flow()
    on("router", "nft list ruleset > /tmp/rules")
    with hold("flush", "nf_flow_table_free", lambda: on("router", "nft flush ruleset")) as h:
        check("flush: the flow is gone before its flowtable is",
              h.held and lookup(flow.key) is None)
    on("router", "nft -f /tmp/rules")


def test_second_teardown():
    """Somebody has begun the flow's teardown, and not come to the map yet"""
    address = "ip link set dev rs address 02:00:00:00:02:05"
    for what, act in (("a flow is deleted", lambda: m.delete(flow.key)),
                      ("a device gets another address", lambda: on("router", address))):
        m, flow = router_map(), UdpFlow()
        lookup = Lookup(m)
        with hold(f"second teardown: {what}", "__nf_flow_snoop_teardown",
                  lambda m=lookup, f=flow: m(with_facts(f.key, tcp_flags=FIN))) as h:
            act()
            check(f"second teardown: {what}: and is gone when that returns",
                  h.held and lookup(flow.key) is None and flow.key not in m.keys())
            h.release()
    restore()


def test_next_key():
    m, flow = router_map(), UdpFlow()
    on("router", "conntrack -F 2>/dev/null")
    wait_for(lambda: not list(m.keys()))
    flow.talk()

    def body():
        if m.next_key() not in keys:
            raise OSError(errno.EPROTO, "no key")
    keys = list(m.keys())
    with hold("iteration", "flowmap_key_from_entry", body, "flowmap_free_flow_rcu") as h:
        m.delete(keys[0])
        check("iteration: a deleted flow is not freed under it", nothing(lambda: h.hits) and h.held)
        expect("iteration: it gives the key that was there", 0, h.release())
        check("iteration: then it is freed", wait_for(lambda: h.hits == 1), h.hits)


def test_neighbour():
    m, flow, lookup, reader = read_flow()
    with hold("neighbour", "flowmap_count", reader) as h:
        on("router", f"ip neigh replace {SERVER} dev rs lladdr 02:00:00:00:02:99 nud reachable")
        check("neighbour: the next look-up sees that it moved", lookup(flow.key) is None and h.held)
        expect("neighbour: the one before has the whole old value", 0, h.release())
    restore()
    check("neighbour: and back", wait_for(lambda: flow.talk() and published(m, flow)))


def restore():
    """The router's device, and what it knows of the server"""
    on("router", f"ip link set dev rs address {RS_MAC} mtu 1500")
    on("router", f"ip neigh replace {SERVER} dev rs lladdr {MAC} nud reachable")
    wait_for(lambda: UdpFlow().talk())


def test_publish():
    m, flow = router_map(), UdpFlow(talk=False)
    other = "02:00:00:00:02:05"
    on("router", "sysctl -qw net.ipv4.conf.all.arp_notify=1")
    with hold("publication", "flowmap_publish", flow.talk) as h:
        on("router", f"ip link set dev rs address {other}")
        check("publication: what was read before a change", h.held and gone(m, flow))
        h.release()
        v = value(m, flow.key)
        check("publication: is not published after it", v is None or v.h_source == mac(other), v)
    check("publication: but anew", wait_for(lambda: flow.talk() and published(m, flow)))
    expect("publication: as it is now", mac(other), value(m, flow.key).h_source)
    restore()


def test_map_free():
    """In a soft interrupt, by a program that runs still, though it is detached: a generic
    one, for veth itself would wait"""
    m, flow = router_map(extra=COUNTERS), UdpFlow()
    prog = Prog(calls(m, LOOKUP, key=flow.key))
    prog.pin("/sys/fs/bpf/fixed")
    on("router", "ip link set dev rc xdpgeneric pinned /sys/fs/bpf/fixed")
    os.unlink("/sys/fs/bpf/fixed")
    check("map: the flow is there", wait_for(lambda: flow.talk() and published(m, flow)))

    def body():
        m.close()
        prog.close()
        if not flow.talk():
            raise OSError(errno.EPROTO, "no talk")
    with hold("map", "flowmap_count", body, "flowmap_free") as h:
        with netns("router"): # it may have to wait
            off = subprocess.Popen(["ip", "link", "set", "dev", "rc", "xdpgeneric", "off"])
        m.close()
        prog.close()
        check("map: the reader keeps it from being freed", nothing(lambda: h.hits) and h.held)
        expect("map: and its module from being unloaded", errno.EAGAIN, delete_module(MODULE))
        expect("map: the packet goes on its way", 0, h.release())
        expect("map: the program is detached", 0, off.wait())
        check("map: then it is freed", wait_for(lambda: h.hits == 1), h.hits)
    check("map: and the module unloads", unload(MODULE))


def test_free():
    """By a worker, when nobody has the map any more"""
    run("modprobe " + MODULE)
    def close():
        os.sched_setaffinity(0, {0, 1})  # the worker is held, and its CPU with it
        router_map().close()
    with hold("free", "flowmap_free", close) as h:
        expect("free: its module cannot be unloaded", (errno.EAGAIN, 1),
               (delete_module(MODULE), h.held))
        check("free: who closed the map is not held",
              wait_for(lambda: os.waitid(os.P_PID, h.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and
              h.held)
        expect("free: and ended well", 0, h.release())
        check("free: when it has ended it can", unload(MODULE))


def test_unload():
    """A reader of /proc/net holds nothing"""
    router_map().close()
    check("unload: no map", wait_for(lambda: sysfs("flowmap", "maps") == ["0"]))

    def body():
        with open("/proc/net/nf_flowmap", encoding="ascii") as f:
            if not f.read().startswith("id"):
                raise OSError(errno.EPROTO, "no table")

    with hold("unload", "flowmap_proc_show", body) as h:
        pid = child(lambda: os._exit(delete_module(MODULE)))
        check("unload: it waits for the reader",
              nothing(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and
              h.held)
        expect("unload: who reads the table", 0, h.release())
        expect("unload: and then it ends", 0, errno_of(pid))


def test_growth():
    """Flows come and go at each step of an iteration, the one that it stands on first"""
    m = router_map(max_entries=256)
    steady = []
    for _ in range(40): # anywhere in the order of keys, which is by the lower byte of a port
        steady.append(UdpFlow())
        next(itertools.islice(ports, 4, None))
    want = sorted(k for f in steady for k in (f.key[:56], f.reply[:56]))
    seen, extra, steps, key = [], [], 0, None
    while (key := m.next_key(key)) is not None and steps < 2000:
        steps += 1
        seen.append(key[:56])
        extra.append(UdpFlow())
        extra[-1].close()
        if key[:56] not in want:
            m.delete(key)
        elif len(extra) > 30:
            f = extra.pop(0)
            if not gone(m, f):
                m.delete(f.key)
    print(f"# growth: {steps} steps, {len(seen)} keys", flush=True)
    expect("growth: what is there throughout is seen exactly once", [],
           [k.hex() for k in want if seen.count(k) != 1])
    check("growth: and some of what came meanwhile", len(seen) > len(want) and steps < 2000, steps)


def test_torn():
    """One number in three fields, which a look-up must never mix"""
    m, flow = router_map(extra=COUNTERS), UdpFlow()
    lookup, stop = Lookup(m), "/tmp/torn"
    with netns("router"):
        control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def set_to(i):
        # twice: a device's new address is the end of its neighbours
        neighbour = arpreq(SERVER, f"02:00:00:00:03:{i:02x}", "rs", ATF_COM | ATF_PERM)
        fcntl.ioctl(control, SIOCSARP, neighbour)
        time.sleep(0.02)
        fcntl.ioctl(control, SIOCSIFHWADDR,
                    ifreq("rs", "=H6s", 1, mac(f"02:00:00:00:04:{i:02x}")))
        fcntl.ioctl(control, SIOCSIFMTU, ifreq("rs", "=i", 1300 + i))
        fcntl.ioctl(control, SIOCSARP, neighbour)

    def publish():
        """By a packet that nobody gets; True if it is as a whole"""
        flow.client.sendto(b"to", (SERVER, flow.port))
        return wait_for(lambda: published(m, flow))

    def read(get):
        """A child's: how many numbers it saw, 255 if any value had two"""
        os.sched_setaffinity(0, {1})
        seen = set()
        while not os.path.exists(stop):
            for data in get():
                v = parse_value(data)
                numbers = {v.h_dest[5], v.h_source[5], v.mtu - 1300}
                if len(numbers) != 1:
                    print(f"# torn: {numbers}", flush=True)
                    os._exit(255)
                seen |= numbers
        os._exit(min(len(seen), 254))

    def at(function, *args):
        try:
            found = function(*args)
        except FileNotFoundError:
            found = None
        return [found] if found else []
    ways = {"a program": lambda: at(lookup, flow.key),
            "the syscall": lambda: at(m.lookup, flow.key),
            "batches": lambda: [v for k, v in m.batch(100) if k[:56] == flow.key[:56]]}
    m.delete(flow.key)
    set_to(0)
    publish()
    readers = {name: child(read, get) for name, get in ways.items()}
    generations = 0
    for i in range(1, 150):
        # nothing passes that would publish it, until all is changed
        set_to(i)
        generations += publish()
        time.sleep(0.03)  # a turn for each reader
    with open(stop, "w", encoding="ascii"):
        pass
    results = {name: errno_of(pid) for name, pid in readers.items()}
    restore()
    print(f"# torn: {generations} times published anew, numbers seen: {results}", flush=True)
    for name, n in results.items():
        check(f"torn: {name} never sees half of a change, and sees many", 10 <= n < 255, n)
    check("torn: it was published anew each time", generations > 100, generations)


def test_namespace():
    m, flow, lookup, reader = read_flow()
    with hold("namespace", "flowmap_count", reader, "flowmap_free_flow_rcu") as h:
        # this waits for a grace period
        deletion = subprocess.Popen(["ip", "netns", "del", "router"])
        check("namespace: the reader keeps its flows from being freed",
              nothing(lambda: h.hits) and h.held)
        expect("namespace: the reader has the whole value", 0, h.release())
        expect("namespace: it is deleted", 0, deletion.wait())
        check("namespace: then it exits, and they are freed", wait_for(lambda: h.hits, timeout=20))
    check("namespace: the map empties, and is still there",
          wait_for(lambda: not list(m.keys())) and lookup(flow.key) is None)


def test_net_exit():
    """A map that is there when its namespace exits hears of it"""
    run("ip netns add passing")
    with netns("passing"):
        m = Map()
    with hold("exit", "flowmap_snoop_net_exit", lambda: run("ip netns del passing")):
        expect("exit: the map is there, and empty", [], list(m.keys()))
    m.close()


for test in (test_teardown, test_flush, test_second_teardown, test_next_key, test_neighbour,
             test_publish, test_map_free, test_free, test_unload, test_growth, test_torn,
             test_net_exit, test_namespace):
    try:
        test()
    except (OSError, RuntimeError, AttributeError, TypeError, KeyError):
        not_ok(f"{test.__name__} ends", traceback.format_exc())
end()
