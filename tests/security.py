# SPDX-License-Identifier: GPL-2.0
"""Cases of security.sh; the hosts, the ruleset and xdp_ct are up"""
import ctypes
import errno
import json
import os
import random
import re
import socket
import struct
import time

from lib import (ACK, BPF_EXIST, BPF_F_RDONLY, BPF_F_WRONLY, DELETE, EXIT, FIN, MODULE, NO_NEIGH,
                 PATIENCE, RST, SYN, TCP, UDP, XDP_REDIRECT, Fields, Lookup, Map, Prog, address,
                 calls, check, counted, credit, expect, fails, frame, ip_frame, ipv4, l4, mac,
                 make_key, map_by_id, map_ids, movi, netns, obj_get, on, prog_of_device, program,
                 raw_socket, received, run, run_tests, sysfs, tcp, udp, udp_socket, wait_for)
from flows import (CLIENT, CLIENT_MAC, IP, IP6, RC, RC_MAC, RS_MAC, SERVER, SERVER_MAC, TcpFlow,
                   UdpFlow, conntrack, gone, open_flow, proc_maps, published, router_map,
                   udp_frames, value)

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
           in_container(lambda: [os.getuid(), "table inet t" in run(
               "nft add table inet t && nft list ruleset")]))
    expect("container: creates no map", "EPERM", in_container(lambda: Map().fd))
    expect("container: loads no program", "EPERM",
           in_container(lambda: Prog(program(movi(0, 2), EXIT)).fd))
    expect("container: finds no map by its id", "EPERM",
           in_container(lambda: map_by_id(m.info()["id"]).fd))
    expect("container: lists no maps", "EPERM", in_container(map_ids))
    expect("container: opens no pinned map", "EACCES",
           in_container(lambda: obj_get("/sys/fs/bpf/flowmap").fd))
    os.chmod("/sys/fs/bpf/flowmap", 0o444)

    def by_pin(flags, use):
        pinned = obj_get("/sys/fs/bpf/flowmap", Map, flags)
        return bool(use(pinned))
    expect("container: opens one that all may read, reads, and deletes nothing",
           [True, "EPERM", "EACCES"],
           [in_container(by_pin, BPF_F_RDONLY, lambda p: p.lookup(flow.key)),
            in_container(by_pin, BPF_F_RDONLY, lambda p: p.delete(flow.key)),
            in_container(by_pin, 0, lambda p: p.lookup(flow.key))])
    os.unlink("/sys/fs/bpf/flowmap")
    expect("container: sees no map in its own /proc/net", [], in_container(proc_maps))
    expect("container: but how many there are on the machine, in sysfs",
           sysfs("flowmap", "maps"), in_container(sysfs, "flowmap", "maps"))

    before = entries(m)
    with netns("router2"):
        inner = Map()
    expect("container: sees the map that the host has made there", [inner.info()["id"]],
           in_container(lambda: [line[0] for line in proc_maps()], ns="router2"))
    inside = udp_socket("client2", CLIENT, flow.port), udp_socket("server2", SERVER, flow.port)
    inside[0].sendto(b"to", (SERVER, flow.port))
    inside[1].sendto(b"from", inside[1].recvfrom(9)[1])
    inside[0].recv(9)
    check("container: its connections are in its map",
          wait_for(lambda: len(list(inner.keys())) == 2))
    expect("container: and in no other namespace's", before, entries(m))
    with netns("router2"):
        verdict, _ = prog_of_device("router", "rc").test(udp_frames(flow.port, flow.port)[0], RC)
    expect("container: a program goes by its map, wherever its device is", XDP_REDIRECT, verdict)
    on("router2", "conntrack -F 2>/dev/null; nft flush ruleset")
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
    Prog(calls(reader, DELETE, key=flow.key)).test(bytes(64))
    check("descriptor: a program is not bound by it", gone(m, flow))
    check("descriptor: (the flow comes back)", flow.talk() and published(m, flow))
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
    expect("values: conntrack ids are those that user space gets",
           [conntrack(("udp", "tcp")[f is flows[-1]], f.port).id for f in flows],
           [value(m, f.key).ct_id for f in flows])


def seed_of(m):
    """The secret of its hash, as the kernel's own memory has it"""
    layout = run(f"bpftool btf dump file /sys/kernel/btf/{MODULE} format raw")
    offset = int(re.search(r"STRUCT 'flowmap' .*\n(?:\t.*\n)*?\t'seed' .*bits_offset=(\d+)",
                           layout)[1]) // 8
    where = "/sys/kernel/tracing/"
    with open(where + "kprobe_events", "w", encoding="ascii") as f:
        f.write(f"p:seed {MODULE}:flowmap_delete_elem " +
                " ".join(f"w{i}=+{offset + 8 * i}(%di):x64" for i in range(17)))
    run(f"echo > {where}trace && echo 1 > {where}events/kprobes/seed/enable")
    fails("hash: (a call that shows the seed)", errno.ENOENT, m.delete, bytes(m.key_size))
    with open(where + "trace", encoding="ascii") as f:
        found = re.findall(r"w\d+=0x(\w+)", f.read())
    run(f"echo 0 > {where}events/kprobes/seed/enable && echo > {where}kprobe_events")
    return [int(w, 16) for w in found]


def bucket(seed, count, key):
    """Where a key is, as the comment on the hash in the flowmap has it"""
    def total(seed, data):
        return sum(s * w for s, w in zip(seed, struct.unpack(f"={len(data) // 4}I", data)))
    words = key[:32]
    if key[8] == socket.AF_INET6:
        words = key[:24] + struct.pack("=Q", total(seed[9:], key[24:56]) % (1 << 64))
    h = (seed[0] + total(seed[1:9], words)) % (1 << 64) >> 32
    return ((h ^ h >> 15) * 0x61c88647 % (1 << 32)) * count >> 32


def test_hash():
    """Connections whose keys are chosen to collide, by who knows a map's seed"""
    first, second = router_map(max_entries=1024), router_map(max_entries=1024)
    seeds, count = [seed_of(m) for m in (first, second)], 512
    check("hash: each map has a seed of its own", len(set(seeds[0] + seeds[1])) == 34)
    for ip in (IP, IP6):
        keys = {p: make_key(RC, UDP, ip.client, p, ip.server, 53) for p in range(1024, 65536)}
        chosen = [p for p in keys if bucket(seeds[0], count, keys[p]) == 100][:60]

        def there(port, ip=ip, keys=keys):
            return all(value(m, keys[port]) for m in (first, second)) or open_flow(port, ip=ip)
        check(f"hash: both maps have the flows{ip.over}",
              wait_for(lambda chosen=chosen, there=there: all([there(p) for p in chosen])))
        for name, m, seed in (("one", first, seeds[0]), ("the other", second, seeds[1])):
            order = [bucket(seed, count, k) for k in m.keys()]
            check(f"hash: buckets of {name}{ip.over} are where its seed says",
                  len(order) >= 2 * len(chosen) and order == sorted(order), order)
        places = {bucket(seeds[1], count, keys[p]) for p in chosen}  # by chance: 57
        check(f"hash: keys{ip.over} that share a bucket of one map are all over the other",
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


def from_server(flow, flags=ACK, seq=1, ack=0, to=RS_MAC, by=SERVER_MAC, first=False, **ip):
    """A frame of the server's side of the connection, by whoever is on its wire; of
    a fragmented packet the first"""
    src, dst = flow.ip.server, flow.ip.router
    proto, packet = TCP, tcp(src, dst, flow.port, 8080, flags, seq, ack, b"payload")
    if first and flow.ip is IP6:
        proto, packet = socket.IPPROTO_FRAGMENT, struct.pack("!BBHI", TCP, 0, 1, 7) + packet
    elif first:
        ip["frag"] = 0x2000
    return ip_frame(to, by, src, dst, proto, packet, **ip)


def after(flags, ip, reason=None, m=None):
    """What conntrack says of a connection after such a spoofed packet; with a map, that
    it has left XDP, if it has a FIN or RST, for the reason"""
    flow = TcpFlow(ip)
    before = reason and published(m, flow) and counted(reason, "rs")
    raw_socket("server", "s0", receive=False).send(
        from_server(flow, flags, 0x12345678, 0x23456789))
    time.sleep(0.1 * PATIENCE)
    left = reason and before is not False and counted(reason, "rs") == before + 1 and \
        (gone if flags & (FIN | RST) else published)(m, flow)
    alive = flow.talk() and flow.talk()
    ct = conntrack("tcp", flow.port)
    return Fields(left=left, alive=alive, state=ct.offload or ct.line.split()[3])


def test_spoofed():
    m = router_map()
    kinds = {"RST": (RST, "tcp_close"), "RST and ACK": (RST | ACK, "tcp_close"),
             "FIN": (FIN | ACK, "tcp_close"), "SYN": (SYN, "tcp_flags"),
             "SYN and ACK": (SYN | ACK, "tcp_flags"),
             "RST, FIN, SYN": (RST | FIN | SYN, "tcp_flags")}
    every = {name + ip.over: (flags, ip, reason) for ip in (IP, IP6)
             for name, (flags, reason) in kinds.items()}
    got = {name: after(*kind, m) for name, kind in every.items()}
    on("router", "xdp_ct detach rc rs")
    peer = {name: after(*kind[:2]) for name, kind in every.items()}
    on("router", "xdp_ct attach rc rs")
    for name, result in got.items():
        does = "leaves" if every[name][0] & (FIN | RST) else "stays in"
        check(f"spoofed {name}: is passed up, the flow {does} the map", result.left)
        check(f"spoofed {name}: the connection goes on", result.alive)
        expect(f"spoofed {name}: conntrack's state is as with a flowtable alone",
               peer[name].state, result.state)
    for ip in (IP, IP6):
        spoofed(m, TcpFlow(ip), ip.over)


def spoofed(m, flow, over):
    """Frames that are not what the server sends, on its wire and on another"""
    def stays():
        return published(m, flow) and flow.talk()

    wire, watch = raw_socket("server", "s0", receive=False), raw_socket("client", "c0")

    def arrived(data):
        received(watch)  # what is on its way
        wire.send(data)
        return sum(f.endswith(b"payload") for f in received(watch))

    if flow.ip is IP:
        broken = bytearray(from_server(flow))
        broken[14 + 8] = 1  # TTL, and with it the header's checksum
        expect("spoofed TTL and header checksum: not forwarded", 0, arrived(bytes(broken)))
        check("spoofed TTL and header checksum: the flow stays", stays())
    wire.send(from_server(flow, RST, first=True))
    time.sleep(0.1 * PATIENCE)
    check(f"spoofed fragment with RST{over}: the flow stays", stays())
    expect(f"spoofed source MAC address{over}: forwarded", 1, arrived(from_server(flow, by=OTHER)))
    expect(f"spoofed source MAC address{over}: replies go where they went",
           SERVER_MAC.replace(":", ""), value(m, flow.reply).h_dest.hex())
    expect(f"spoofed TTL of 1{over}: not forwarded", 0, arrived(from_server(flow, ttl=1)))
    before = counted("not_host", "rs")
    expect(f"spoofed destination MAC address{over}: the kernel's own flowtable takes it", 1,
           arrived(from_server(flow, to=OTHER)))
    expect(f"spoofed destination MAC address{over}: as it is passed up", before + 1,
           counted("not_host", "rs"))
    check(f"spoofed TTL, destination{over}: the flow stays", stays())
    expect(f"the same with nothing spoofed{over}: forwarded", 1, arrived(from_server(flow)))
    raw_socket("client", "c0", receive=False).send(
        from_server(flow, RST, to=RC_MAC, by=CLIENT_MAC))
    time.sleep(0.1 * PATIENCE)
    check(f"spoofed addresses from another device{over}: the flow stays", stays())


def claim(server):
    """That another has its address: an answer that nobody has asked for"""
    if ":" not in server:
        body = (mac(OTHER) + address(server)) * 2
        return frame("ff:ff:ff:ff:ff:ff", OTHER,
                     struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + body, 0x0806)
    body = struct.pack("!BBHI", 136, 0, 0, 1 << 29) + address(server) + b"\2\1" + mac(OTHER)
    return ip_frame("33:33:00:00:00:01", OTHER, server, "ff02::1", socket.IPPROTO_ICMPV6,
                    l4(server, "ff02::1", socket.IPPROTO_ICMPV6, body, 2), ttl=255)


def claimed(ip, m=None):
    """Where packets for the server go, when another says that he has its address"""
    # the server asks nobody for a while, which would tell the router where he is
    on("server", f"ip neigh replace {ip.router} dev s0 lladdr {RS_MAC} nud permanent")
    flow = UdpFlow(ip=ip)
    if m:
        missed = counted("miss")
        check(f"spoofed neighbour{ip.over}: packets go by XDP before",
              published(m, flow) and flow.talk() and counted("miss") == missed)
    wire = raw_socket("server", "s0")
    wire.send(claim(ip.server))
    neighbour = wait_for(lambda: OTHER in on("router", f"ip neigh show {ip.server} dev rs"))
    sent = []
    for _ in range(3):
        flow.client.sendto(b"to", (ip.server, flow.port))
        sent += [f[:6].hex(":") for f in received(wire) if f.endswith(b"to")]
    on("router", f"ip neigh replace {ip.server} dev rs lladdr {SERVER_MAC} nud reachable")
    on("server", f"ip neigh del {ip.router} dev s0")
    return neighbour, sent


def test_neighbour():
    got = [claimed(ip, router_map()) for ip in (IP, IP6)]
    on("router", "xdp_ct detach rc rs")
    peer = [claimed(ip) for ip in (IP, IP6)]
    on("router", "xdp_ct attach rc rs")
    for i, ip in enumerate((IP, IP6)):
        expect(f"spoofed neighbour{ip.over}: the stack believes it", (True, [OTHER] * 3), peer[i])
        expect(f"spoofed neighbour{ip.over}: packets go where they go with a flowtable alone",
               peer[i], got[i])


def test_neighbours():
    """Hosts behind a wire, each with a connection, more than the neighbour table may keep"""
    m = router_map()
    lookup = Lookup(m)
    for ip, cache, where in ((IP, "arp", "ipv4"), (IP6, "ndisc", "ipv6")):
        for name in run("ip netns list | cut -d' ' -f1").split():
            on(name, "ip -4 neigh flush all nud all; ip -6 neigh flush all nud all")
        UdpFlow(ip=ip)
        where = f"/proc/sys/net/{where}/neigh/default/gc_thresh"
        with open(f"/proc/net/stat/{cache}_cache", encoding="ascii") as f:
            entries = int(f.readlines()[1].split()[0], 16)
        servers = [ip.server[:-1] + str(i) for i in range(10, 32)]
        on("server", " && ".join(f"ip addr add {s}/{64 if ':' in s else 24} dev s0" +
                                 " nodad" * (":" in s) for s in servers))
        old = run(f"cat {where}2 {where}3").split()
        run(f"echo {entries + 16} > {where}2 && echo {entries + 32} > {where}3")
        try:
            flows = [UdpFlow(ip=Fields(ip, server=s)) for s in servers]
            check(f"neighbours{ip.over}: above the soft limit, connections work",
                  all(f.talk() for f in flows))
            found = [bool(lookup(f.key)) for f in flows]
            # of IPv6, groups of multicast are neighbours as well
            check(f"neighbours{ip.over}: flows hold as many as the soft limit has",
                  (4 if ip is IP6 else 12) < sum(found) < 18, found)
            check(f"neighbours{ip.over}: the others need the stack", all(
                hit or value(m, f.key) is None or value(m, f.key).flags & NO_NEIGH
                for f, hit in zip(flows, found)))
        finally:
            run(f"echo {old[1]} > {where}3 && echo {old[0]} > {where}2")
        check(f"neighbours{ip.over}: with more room, all are on XDP a second later",
              wait_for(lambda flows=flows: all(f.talk() and lookup(f.key) for f in flows)))


def test_neighbours_elsewhere():
    """They may be another namespace's: connections work, without XDP"""
    where = "/proc/sys/net/ipv4/neigh/default/gc_thresh2"
    old = run(f"cat {where}").strip()
    on("server", "ip addr add 203.0.113.40/24 dev s0")
    m, ip = router_map(), Fields(IP, server="203.0.113.40")
    try:
        on("router2", "for i in $(seq 100 199); do ip neigh add 10.0.1.$i dev rc "
           "lladdr 02:00:00:00:09:09 nud reachable; done")
        run(f"echo 80 > {where}")
        flow = UdpFlow(ip=ip)
        check("neighbours of a container: too many, others' connections work",
              flow.talk() and flow.talk())
        check("neighbours of a container: those to new hosts without XDP",
              Lookup(m)(flow.key) is None and value(m, flow.key).flags & NO_NEIGH)
    finally:
        on("router2", "ip neigh flush dev rc nud all")
        run(f"echo {old} > {where}")
    check("neighbours of a container: with XDP when they have gone",
          wait_for(lambda: flow.talk() and Lookup(m)(flow.key)))


def test_around():
    """What is set on a device behind XDP does not see what goes by XDP"""
    m, flow = router_map(), UdpFlow()
    on("router", "tc qdisc add dev rc clsact && "
       # of IPv4's UDP: TC_ACT_SHOT, else TC_ACT_UNSPEC
       "tc filter add dev rc ingress bpf da bytecode "
       "'4,48 0 0 23,21 0 1 17,6 0 0 2,6 0 0 4294967295'")
    check("around: an offloaded connection goes around a filter of tc",
          published(m, flow) and flow.talk())
    on("router", "xdp_ct detach rc rs")
    check("around: which a flowtable alone does not", not flow.talk())
    on("router", "tc qdisc del dev rc clsact && xdp_ct attach rc rs")
    check("around: without the filter it goes on", flow.talk())

    on("router", "{ echo flush ruleset; nft list ruleset; } > /tmp/rules && "
       "nft 'delete flowtable inet router ft { hook ingress priority filter; devices = { rs }; }'")
    check("around: a flowtable without the device of the replies has the connection, too",
          wait_for(lambda: flow.talk() and published(m, flow)))
    on("router", "nft insert rule inet router forward iifname rs meta l4proto udp drop")
    check("around: replies go around a rule that drops them", flow.talk() and flow.talk())
    on("router", "xdp_ct detach rc rs")
    check("around: which a flowtable alone does not", not flow.talk())
    on("router", "nft -f /tmp/rules && xdp_ct attach rc rs")


run_tests(test_container, test_fd, test_values, test_hash, test_flood, test_spoofed,
          test_neighbour, test_neighbours, test_neighbours_elsewhere, test_around)
