# SPDX-License-Identifier: GPL-2.0
"""Cases of races.sh; the hosts and the ruleset are up"""
import contextlib
import errno
import itertools
import os
import socket
import struct
import subprocess
import time

from lib import (COUNTERS, DNAT, FIN, LOOKUP, MODULE, SNAT, UDP, Lookup, Map, Prog, address, calls,
                 check, child, csum, delete_module, errno_of, expect, frame, ifindex, ipv4, mac,
                 make_key, netns, on, parse_key, parse_value, raw_socket, run, run_tests, sysfs,
                 udp, unload, wait_for, with_facts)
from flows import (CLIENT, CLIENT_MAC, RC, RC_MAC, RS_MAC, SERVER, SERVER_MAC, UdpFlow, gone, ports,
                   published, router_map, value, wires)

PARAMETERS = "/sys/module/kprobe_hold/parameters/"
MOMENT = 1 # seconds in which what must not happen would


def parameter(name, value=None):
    with open(PARAMETERS + name, "r" if value is None else "w", encoding="ascii") as f:
        return int(f.read()) if value is None else f.write(str(value))


class Hold:
    """A child that runs function() on the other CPU, and is held where it, or with itself
    False any for it, enters a function of the kernel; counts who comes to another one"""
    def __init__(self, where, function, counted="", itself=True):
        run("modprobe kprobe_hold symbol=" + where + (" counted=" + counted if counted else ""))

        def body():
            os.sched_setaffinity(0, {1})
            parameter("pid", os.getpid() if itself else 0)
            parameter("armed", 1)
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
def hold(name, where, function, *args, **kwargs):
    h = Hold(where, function, *args, **kwargs)
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
    with hold("flush", "nf_flow_table_free", lambda: on("router", "nft flush ruleset"),
              itself=False) as h:
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
                  h.held and lookup(flow.key) is None and
                  flow.key[:56] not in [k[:56] for k in m.keys()])
            expect(f"second teardown: {what}: the first one ends well", 0, h.release())
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
    on("router", f"ip neigh replace {SERVER} dev rs lladdr {SERVER_MAC} nud reachable")
    wait_for(lambda: UdpFlow().talk())


def test_publish():
    m, flow = router_map(), UdpFlow(talk=False)
    other = "02:00:00:00:02:05"
    on("router", "sysctl -qw net.ipv4.conf.all.arp_notify=1")
    with hold("publication", "flowmap_publish", flow.talk, itself=False) as h:
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
    with hold("map", "flowmap_count", body, "flowmap_free", itself=False) as h:
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
    with hold("free", "flowmap_free", close, itself=False) as h:
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


class Generation:
    """All of a value, by one number, which is the DSCP of the packets that make it: the
    ruleset and the routes go by that"""
    COUNT = 40

    def __init__(self, n):
        self.n, self.tags, self.snat = n, 1 + n // 2 % 2, n % 3 != 0
        self.real = ("rs", "r2")[n % 2]
        self.dev = ".".join([self.real, str(n), str(100 + n)][:1 + self.tags])
        self.to = (f"198.51.100.{n}", 30000 + n)
        self.src, self.dst = f"02:00:00:00:04:{n:02x}", f"02:00:00:00:03:{n:02x}"
        self.encap = struct.pack("!HH", 0x8100, n) if self.tags == 1 else \
            struct.pack("!4H", 0x88a8, n, 0x8100, 100 + n)

    def source(self, port):
        return (f"203.0.113.{100 + self.n}", 20 * port + self.n) if self.snat else (CLIENT, port)

    def setup(self):
        """Commands for ip"""
        yield f"link add link {self.real} name {self.real}.{self.n} type vlan " \
            f"proto 802.1{'ad' if self.tags == 2 else 'q'} id {self.n}"
        if self.tags == 2:
            yield f"link set dev {self.real}.{self.n} up"
            yield f"link add link {self.real}.{self.n} name {self.dev} type vlan id {100 + self.n}"
        yield f"link set dev {self.dev} address {self.src} mtu {1300 + self.n} up"
        yield f"route add {self.to[0]} dev {self.dev}"
        yield f"neigh add {self.to[0]} dev {self.dev} lladdr {self.dst} nud permanent"

    def packet(self, source, to):
        segment = udp(source[0], to[0], source[1], to[1], b"torn")
        return ipv4(source[0], to[0], UDP, segment, tos=self.n << 2)

    def value(self, port):
        """What a look-up of a packet from the client's port must give"""
        old, new = ([*address(a), *address(b)] for a, b in ((CLIENT, SERVER),
                                                           (self.source(port)[0], self.to[0])))
        ip = (csum(bytes(new)) - csum(bytes(old))) % 0xffff
        encap = [*struct.iter_unpack("!2sH", self.encap), (bytes(2), 0)]
        return {"flags": DNAT | (SNAT if self.snat else 0), "ifindex": ifindex("router", self.real),
                "h_dest": mac(self.dst), "h_source": mac(self.src), "h_proto": b"\x08\0",
                "mtu": 1300 + self.n,
                "encap0": encap[0][0], "id0": encap[0][1],
                "encap1": encap[1][0], "id1": encap[1][1],
                "sport": self.source(port)[1], "dport": self.to[1],
                "addr": bytes(new).ljust(32, b"\0"), "ip_csum_diff": ip,
                "l4_csum_diff": (ip + self.source(port)[1] + self.to[1] - port - 53) % 0xffff,
                "ct_mark": self.n, "ct_zone": self.n, "tcp_state": 0, "tcp_wscale": 0,
                "nat": 2 + self.snat}


def flat(v):
    """A value as value() above has it, and its conntrack id"""
    got = {**v, "nat": v.ct_status >> 4 & 3}  # IPS_NAT_MASK
    for name in ("ip_csum_diff", "l4_csum_diff"):
        got[name] = socket.ntohs(v[name]) % 0xffff
    return got


TORN = """
flush ruleset
table inet torn {{
	flowtable ft {{ hook ingress priority filter; devices = {{ rc, rs, r2 }}; }}
	chain zones {{
		type filter hook prerouting priority raw
		ct zone set ip dscp map {{ {zone} }}
	}}
	chain marks {{
		type filter hook prerouting priority mangle
		ct mark set ip dscp map {{ {zone} }}
	}}
	chain dnats {{
		type nat hook prerouting priority dstnat
		meta l4proto udp dnat ip to ip dscp map {{ {dst} }}
	}}
	chain snats {{
		type nat hook postrouting priority srcnat
		snat ip to ip dscp . udp sport map {{ {src} }}
	}}
	chain forward {{
		type filter hook forward priority filter
		ct state established flow add @ft
	}}
}}"""


def test_torn():
    """Every field of a value says which generation it is of, and the same keys are
    published for one after another, as other connections with other NAT, other ways
    and other neighbours"""
    m, stop = router_map(extra=COUNTERS), "/tmp/torn"
    lookup = Lookup(m)
    run("ip link add s2 netns server type veth peer name r2 netns router")
    on("server", "ethtool -K s2 gro on && ip link set dev s2 up")
    on("router", "nft list ruleset > /tmp/rules && ip link set dev r2 up")
    every = [Generation(n) for n in range(1, Generation.COUNT + 1)]
    # the flowtable keeps what was torn down for a second: several at a time
    keys = {port: make_key(RC, UDP, CLIENT, port, SERVER, 53) for port in range(1000, 2050, 50)}
    with netns("router"):
        run("ip -batch -", input="\n".join(c for g in every for c in g.setup()))
        run("nft -f -", input=TORN.format(
            zone=", ".join(f"{g.n} : {g.n}" for g in every),
            dst=", ".join(f"{g.n} : {g.to[0]} . {g.to[1]}" for g in every),
            src=", ".join("{} . {} : {} . {}".format(g.n, port, *g.source(port))
                          for g in every if g.snat for port in keys)))
    want = {(port, g.n): g.value(port) for port in keys for g in every}
    ends = dict(zip(("rc", "rs"), wires()), r2=raw_socket("server", "s2", receive=False))

    def publish(port, g):
        """True if the key has a value now"""
        ends["rc"].send(frame(RC_MAC, CLIENT_MAC, g.packet((CLIENT, port), (SERVER, 53))))
        back = frame(g.src, g.dst, g.packet(g.to, g.source(port)))
        ends[g.real].send(back[:12] + g.encap + back[12:])
        return wait_for(lambda: value(m, keys[port]), timeout=0.5)

    def read(get):
        """A child's: how many generations it saw, 255 if any value was of two"""
        os.sched_setaffinity(0, {1})
        seen, ids = set(), {}
        while not os.path.exists(stop):
            for port, data in get():
                got = flat(parse_value(data))
                n = got["ct_zone"]
                right = want.get((port, n), {"generation": "none"})
                wrong = {name: (right[name], got.get(name)) for name in right
                         if got.get(name) != right[name]}
                if ids.setdefault((port, n), got["ct_id"]) != got["ct_id"]:
                    wrong["ct_id"] = ids[port, n], got["ct_id"]
                if wrong:
                    print(f"# torn: generation {n}, expected and got: {wrong}", flush=True)
                    os._exit(255)
                seen.add((port, n))
        os._exit(min(len(seen), 254))

    def each(function):
        for port, key in keys.items():
            try:
                found = function(key)
            except FileNotFoundError:
                found = None
            if found:
                yield port, found
    ways = {"a program": lambda: each(lookup), "the syscall": lambda: each(m.lookup),
            "batches": lambda: [(k.sport, v) for k, v in ((parse_key(k), v) for k, v in
                                                          m.batch(100)) if k.ifindex == RC]}
    readers = {name: child(read, get) for name, get in ways.items()}
    os.sched_setaffinity(0, {0})
    generations = 0
    for g, port in itertools.islice(zip(itertools.cycle(every), itertools.cycle(keys)), 600):
        try:
            m.delete(keys[port])
        except FileNotFoundError:
            pass
        generations += bool(publish(port, g))
    os.sched_setaffinity(0, {0, 1})
    with open(stop, "w", encoding="ascii"):
        pass
    results = {name: errno_of(pid) for name, pid in readers.items()}
    on("router", "nft flush ruleset && nft -f /tmp/rules && ip link del dev r2")
    on("router", "for dev in /sys/class/net/rs.*; do ip link del dev ${dev##*/} || true; done")
    print(f"# torn: {generations} published, generations of keys seen: {results}", flush=True)
    for name, n in results.items():
        check(f"torn: {name} never sees half of a change, and sees many", 20 <= n < 255, n)
    check("torn: it was published anew each time", generations > 500, generations)


def test_namespace():
    """Its name goes first, which waits for readers, and then what keeps it alive"""
    m, flow, lookup, reader = read_flow()
    keep = os.open("/run/netns/router", os.O_RDONLY)
    run("ip netns del router")
    check("namespace: without a name the flow is there", lookup(flow.key))

    def body():
        os.close(keep)
        reader()
    with hold("namespace", "flowmap_count", body, "flowmap_free_flow_rcu") as h:
        os.close(keep)
        check("namespace: it exits, and others do not find its flows any more",
              wait_for(lambda: lookup(flow.key) is None) and h.held)
        check("namespace: the reader keeps them from being freed",
              nothing(lambda: h.hits) and h.held)
        expect("namespace: the reader has the whole value", 0, h.release())
        check("namespace: then they are freed", wait_for(lambda: h.hits, timeout=20))
    check("namespace: the map empties, and is still there",
          wait_for(lambda: not list(m.keys())) and lookup(flow.key) is None)


def test_net_exit():
    """A map that is there when its namespace exits hears of it"""
    run("ip netns add passing")
    with netns("passing"):
        m = Map()
    with hold("exit", "flowmap_snoop_net_exit", lambda: run("ip netns del passing"),
              itself=False):
        expect("exit: the map is there, and empty", [], list(m.keys()))
    m.close()


run_tests(test_teardown, test_flush, test_second_teardown, test_next_key, test_neighbour,
          test_publish, test_map_free, test_free, test_unload, test_growth, test_torn,
          test_net_exit, test_namespace)
