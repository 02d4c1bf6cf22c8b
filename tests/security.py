# SPDX-License-Identifier: GPL-2.0
"""Cases of security.sh; the hosts, the ruleset and xdp_ct are up"""
import ctypes
import errno
import json
import os
import random
import re
import struct
import time

from lib import (ACK, BPF_EXIST, BPF_F_RDONLY, BPF_F_WRONLY, EXIT, FIN, MODULE, NO_NEIGH, PATIENCE,
                 RST, SYN, TCP, UDP, Lookup, Map, Prog, address, check, counted, credit, expect,
                 fails, frame, ipv4, mac, make_key, map_by_id, map_ids, movi, netns, obj_get, on,
                 program, raw_socket, received, run, run_tests, tcp, udp, udp_socket, wait_for)
from flows import (CLIENT, CLIENT_MAC, RC, RC_MAC, ROUTER, RS_MAC, SERVER, SERVER_MAC, TcpFlow,
                   UdpFlow, conntrack, open_flow, proc_maps, published, router_map, value)

NOBODY = 65534
OTHER = "02:00:de:ad:be:ef"
libc = ctypes.CDLL(None, use_errno=True)


def in_container(function, *args, ns=None, **kwargs):
    """Result of function(...), JSON's types, as run by the root of a container:
    all capabilities, in a user and a network namespace that are its own"""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        answer = "died"
        try:
            if ns:
                fd = os.open(f"/run/netns/{ns}", os.O_RDONLY)
                os.setns(fd, os.CLONE_NEWNET)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self is its own
            os.unshare(os.CLONE_NEWUSER | (0 if ns else os.CLONE_NEWNET))
            for name, text in (("setgroups", "deny"), ("uid_map", f"0 {NOBODY} 1"),
                               ("gid_map", f"0 {NOBODY} 1")):
                with open(f"/proc/self/{name}", "w", encoding="ascii") as f:
                    f.write(text)
            answer = function(*args, **kwargs)
        except OSError as e:
            answer = errno.errorcode.get(e.errno, e.errno)
        finally:
            os.write(write, json.dumps(answer).encode())
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read) as f:
        return json.load(f)


def entries(m):
    with netns("router"):
        return next(line[1] for line in proc_maps() if line[0] == m.info()["id"])


def test_container():
    m, flow = router_map(), UdpFlow()
    m.pin("/sys/fs/bpf/flowmap")
    expect("container: is root there", [0, True],
           in_container(lambda: [os.getuid(), bool(run("nft list ruleset; echo yes"))]))
    expect("container: creates no map", "EPERM", in_container(lambda: Map().fd))
    expect("container: loads no program", "EPERM",
           in_container(lambda: Prog(program(movi(0, 2), EXIT)).fd))
    expect("container: finds no map by its id", "EPERM",
           in_container(lambda: map_by_id(m.info()["id"]).fd))
    expect("container: lists no maps", "EPERM", in_container(map_ids))
    expect("container: opens no pinned map", "EACCES",
           in_container(lambda: obj_get("/sys/fs/bpf/flowmap").fd))
    expect("container: sees no map in its own /proc/net", [], in_container(proc_maps))
    os.unlink("/sys/fs/bpf/flowmap")

    before = entries(m)
    with netns("router2"):
        inner = Map()
    inside = udp_socket("client2", CLIENT, flow.port), udp_socket("server2", SERVER, flow.port)
    inside[0].sendto(b"to", (SERVER, flow.port))
    inside[1].sendto(b"from", inside[1].recvfrom(9)[1])
    inside[0].recv(9)
    check("container: its connections are in its map",
          wait_for(lambda: len(list(inner.keys())) == 2))
    expect("container: and in no other namespace's", before, entries(m))
    on("router2", "conntrack -F 2>/dev/null")
    check("container: nor does it end those of others", published(m, flow) and flow.talk())


def test_fd():
    m, flow = router_map(), UdpFlow()
    reader = router_map(flags=BPF_F_RDONLY)
    check("descriptor: read-only reads", value(reader, flow.key))
    fails("descriptor: read-only updates nothing", errno.EPERM, reader.update, flow.key,
          credit(1, 1), BPF_EXIST)
    fails("descriptor: read-only deletes nothing", errno.EPERM, reader.delete, flow.key)
    writer = router_map(flags=BPF_F_WRONLY)
    fails("descriptor: write-only reads nothing", errno.EPERM, writer.lookup, flow.key)
    fails("descriptor: write-only lists nothing", errno.EPERM, writer.next_key)
    # the map is for look-ups and deletions; what is written is never an entry
    fails("descriptor: nobody adds a flow", errno.EOPNOTSUPP, m.update, flow.key, bytes(112), 1)
    fails("descriptor: nobody changes where a flow goes", errno.EINVAL, m.update, flow.key,
          m.lookup(flow.key), BPF_EXIST)


def test_values():
    m = router_map()
    flows = [UdpFlow() for _ in range(8)] + [TcpFlow()]
    found = []
    for k in list(m.keys()):
        data = k + m.lookup(k)
        for word in struct.unpack(f"=Q{len(data) // 8 - 1}Q", data):
            # direct map, vmalloc, vmemmap; kernel text and modules
            if 0xffff888000000000 <= word < 0xffffec0000000000 or word >= 0xffffffff80000000:
                found.append(hex(word))
    expect("values: no kernel address in any", [], found)
    check("values: nor is a conntrack id one",
          all(value(m, f.key).ct_id not in (0, 0xffffffff) for f in flows))


def seed_of(m):
    """The secret of its hash, as the kernel's own memory has it"""
    layout = run(f"bpftool btf dump file /sys/kernel/btf/{MODULE} format raw")
    offset = int(re.search(r"STRUCT 'flowmap' .*\n(?:\t.*\n)*?\t'seed' .*bits_offset=(\d+)",
                           layout)[1]) // 8
    where = "/sys/kernel/tracing/"
    with open(where + "kprobe_events", "w", encoding="ascii") as f:
        f.write(f"p:seed {MODULE}:flowmap_delete_elem " +
                " ".join(f"w{i}=+{offset + 8 * i}(%di):x64" for i in range(9)))
    run(f"echo > {where}trace && echo 1 > {where}events/kprobes/seed/enable")
    fails("hash: (a call that shows the seed)", errno.ENOENT, m.delete, bytes(m.key_size))
    with open(where + "trace", encoding="ascii") as f:
        found = re.findall(r"w\d=0x(\w+)", f.read())
    run(f"echo 0 > {where}events/kprobes/seed/enable && echo > {where}kprobe_events")
    return [int(w, 16) for w in found]


def bucket(seed, count, key):
    """Where an IPv4 key is, as the comment on the hash in the flowmap has it"""
    words = struct.unpack_from("=8I", key)
    h = (seed[0] + sum(s * w for s, w in zip(seed[1:], words))) % (1 << 64) >> 32
    return ((h ^ h >> 15) * 0x61c88647 % (1 << 32)) * count >> 32


def test_hash():
    """Connections whose keys are chosen to collide, by who knows a map's seed"""
    first, second = router_map(max_entries=1024), router_map(max_entries=1024)
    seeds, count = [seed_of(m) for m in (first, second)], 512
    check("hash: each map has a seed of its own", len(set(seeds[0] + seeds[1])) == 18)
    keys = {port: make_key(RC, UDP, CLIENT, port, SERVER, 53) for port in range(1024, 65536)}
    chosen = [p for p in keys if bucket(seeds[0], count, keys[p]) == 100][:60]

    def there(port):
        return all(value(m, keys[port]) for m in (first, second)) or open_flow(port)
    check("hash: both maps have the flows", wait_for(lambda: all([there(p) for p in chosen])))
    for name, m, seed in (("one", first, seeds[0]), ("the other", second, seeds[1])):
        order = [bucket(seed, count, k) for k in m.keys()]
        check(f"hash: buckets of {name} are where its seed says",
              len(order) >= 2 * len(chosen) and order == sorted(order), order)
    places = {bucket(seeds[1], count, keys[p]) for p in chosen}  # by chance: 57
    check("hash: keys that share a bucket of one map are all over the other",
          len(chosen) == 60 and len(places) > 45, len(places))
    on("router", "conntrack -F 2>/dev/null")
    wait_for(lambda: not list(first.keys()))


def syns(count):
    """Frames of a flood: UDP and TCP SYN from ports and addresses that lie"""
    rand = random.Random(1)
    for i in range(count):
        src, port = f"10.0.1.{rand.randrange(3, 250)}", rand.randrange(1024, 65536)
        packet = ipv4(src, SERVER, UDP, udp(src, SERVER, port, 53, b"x")) if i % 2 else \
            ipv4(src, SERVER, TCP, tcp(src, SERVER, port, 80, SYN, seq=i))
        yield frame(RC_MAC, CLIENT_MAC, packet)


def test_flood():
    m, flow = router_map(), UdpFlow()
    before = entries(m)
    wire = raw_socket("client", "c0", receive=False)
    count = 2000
    on("server", "nft 'add table netdev mute; add chain netdev mute in { type filter hook ingress "
       "device s0 priority 0; }; add rule netdev mute in ip saddr 203.0.113.1 meta l4proto "
       "{ tcp, udp } th dport { 53, 80 } drop'")
    for f in syns(count):
        wire.send(f)
    time.sleep(0.5 * PATIENCE)
    tracked = int(on("router", "conntrack -C").split()[-1])
    check("flood: the slow path has seen it", tracked > count / 2, tracked)
    expect("flood: connections that nobody answers take no room", before, entries(m))
    check("flood: others go on by XDP", published(m, flow) and flow.talk() and
          Lookup(m)(flow.key))
    on("server", "nft delete table netdev mute")
    on("router", "conntrack -F 2>/dev/null")


def from_server(flow, flags, seq, **kwargs):
    """A frame of the server's side of the connection, by whoever is on its wire"""
    segment = tcp(SERVER, ROUTER, flow.port, 8080, flags, seq, **kwargs)
    return frame(RS_MAC, SERVER_MAC, ipv4(SERVER, ROUTER, TCP, segment))


def after(flags):
    """What conntrack says of a connection after such a spoofed packet"""
    flow = TcpFlow()
    raw_socket("server", "s0", receive=False).send(
        from_server(flow, flags, 0x12345678, ack=0x23456789))
    time.sleep(0.1 * PATIENCE)
    alive = flow.talk() and flow.talk()
    ct = conntrack("tcp", flow.port)
    state = ct and (ct.offload or ct.line.split()[3])
    return alive, state


def test_spoofed():
    kinds = {"RST": RST, "RST and ACK": RST | ACK, "FIN": FIN | ACK, "SYN": SYN,
             "SYN and ACK": SYN | ACK, "RST, FIN, SYN": RST | FIN | SYN}
    got = {name: after(flags) for name, flags in kinds.items()}
    on("router", "xdp_ct detach rc rs")
    peer = {name: after(flags) for name, flags in kinds.items()}
    on("router", "xdp_ct attach rc rs")
    for name, (alive, _) in got.items():
        check(f"spoofed {name}: the connection goes on", alive)
        expect(f"spoofed {name}: conntrack's state is as with a flowtable alone", peer[name],
               got[name])
    m = router_map()
    wire = raw_socket("server", "s0", receive=False)
    flow = TcpFlow()
    good = from_server(flow, ACK, 1, payload=b"payload")
    broken = bytearray(good)
    broken[14 + 8] = 1  # TTL, and with it the header's checksum
    wire.send(bytes(broken))
    check("spoofed TTL and header checksum: the flow stays", published(m, flow) and flow.talk())
    first = ipv4(SERVER, ROUTER, TCP, tcp(SERVER, ROUTER, flow.port, 8080, RST, 1), frag=0x2000)
    wire.send(frame(RS_MAC, SERVER_MAC, first))
    time.sleep(0.1 * PATIENCE)
    check("spoofed fragment with RST: the flow stays", published(m, flow) and flow.talk())
    wrong = bytearray(from_server(flow, ACK, 1, payload=b"payload"))
    wrong[6:12] = mac(OTHER)
    wire.send(bytes(wrong))
    expect("spoofed source MAC address: replies go where they went",
           SERVER_MAC.replace(":", ""), value(m, flow.reply).h_dest.hex())
    elsewhere = bytearray(from_server(flow, ACK, 1, payload=b"payload"))
    elsewhere[0:6] = mac(OTHER)
    segment = tcp(SERVER, ROUTER, flow.port, 8080, ACK, 1, payload=b"payload")
    last_hop = frame(RS_MAC, SERVER_MAC, ipv4(SERVER, ROUTER, TCP, segment, ttl=1))
    watch = raw_socket("client", "c0")
    received(watch)  # what is on its way
    wire.send(last_hop)
    expect("spoofed TTL of 1: not forwarded", [],
           [f for f in received(watch) if f.endswith(b"payload")])
    before = counted("not_host", "rs")
    wire.send(bytes(elsewhere))
    # where the kernel's own flowtable takes it
    check("spoofed destination MAC address: not for the router, passed up",
          wait_for(lambda: counted("not_host", "rs") == before + 1), before)
    check("spoofed TTL, destination: the flow stays", published(m, flow) and flow.talk())
    received(watch)
    wire.send(good)
    expect("the same with nothing spoofed: forwarded", 1,
           sum(f.endswith(b"payload") for f in received(watch)))
    other_device = frame(RC_MAC, CLIENT_MAC,
                         ipv4(SERVER, ROUTER, TCP, tcp(SERVER, ROUTER, flow.port, 8080, RST, 1)))
    raw_socket("client", "c0", receive=False).send(other_device)
    time.sleep(0.1 * PATIENCE)
    check("spoofed addresses from another device: the flow stays",
          published(m, flow) and flow.talk())


def claimed():
    """Where packets for the server go, when another says that he has its address"""
    flow, wire = UdpFlow(), raw_socket("server", "s0")
    claim = (mac(OTHER), address(SERVER)) * 2
    wire.send(frame("ff:ff:ff:ff:ff:ff", OTHER,
                    struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 2, *claim), 0x0806))
    neighbour = wait_for(lambda: OTHER in on("router", f"ip neigh show {SERVER} dev rs"))
    sent = []
    for _ in range(3):
        flow.client.sendto(b"to", (SERVER, flow.port))
        sent += [f[:6].hex(":") for f in received(wire) if f[12:14] == b"\x08\0" and f[23] == UDP]
    on("router", f"ip neigh replace {SERVER} dev rs lladdr {SERVER_MAC} nud reachable")
    return neighbour, sent


def test_neighbour():
    got = claimed()
    on("router", "xdp_ct detach rc rs")
    peer = claimed()
    on("router", "xdp_ct attach rc rs")
    expect("spoofed neighbour: the stack believes it", (True, [OTHER] * 3), peer)
    expect("spoofed neighbour: packets go where they go with a flowtable alone", peer, got)


def test_neighbours():
    """Hosts behind a wire, each with a connection, more than the neighbour table may keep"""
    where = "/proc/sys/net/ipv4/neigh/default/gc_thresh"
    with open("/proc/net/stat/arp_cache", encoding="ascii") as f:
        entries = int(f.readlines()[1].split()[0], 16)
    on("server", "for i in $(seq 10 31); do ip addr add 203.0.113.$i/24 dev s0; done")
    m = router_map()
    lookup = Lookup(m)
    old = run(f"cat {where}2 {where}3").split()
    run(f"echo {entries + 16} > {where}2 && echo {entries + 32} > {where}3")
    try:
        flows = [UdpFlow(server=f"203.0.113.{i}") for i in range(10, 32)]
        check("neighbours: above the soft limit, connections work", all(f.talk() for f in flows))
        found = [bool(lookup(f.key)) for f in flows]
        check("neighbours: flows hold as many as the soft limit has", 12 < sum(found) < 18, found)
        check("neighbours: the others need the stack", all(
            hit or value(m, f.key) is None or value(m, f.key).flags & NO_NEIGH
            for f, hit in zip(flows, found)))
    finally:
        run(f"echo {old[1]} > {where}3 && echo {old[0]} > {where}2")
    check("neighbours: with more room, all are on XDP a second later",
          wait_for(lambda: all(f.talk() and lookup(f.key) for f in flows)))


run_tests(test_container, test_fd, test_values, test_hash, test_flood, test_spoofed,
          test_neighbour, test_neighbours)
