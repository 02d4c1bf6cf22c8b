# SPDX-License-Identifier: GPL-2.0
"""Cases of flowmap.sh; the hosts and the ruleset are up"""
import ctypes
import errno
import json
import os
import random
import socket
import struct
import threading
import time

from lib import (ACK, BPF_ANY, BPF_EXIST, BPF_F_LOCK, BPF_F_NUMA_NODE, BPF_F_RDONLY, BPF_NOEXIST,
                 BTF_LOAD, COUNTERS, DELETE, DNAT, FIN, HOOKS, IPS_OFFLOAD, KEY_STACK, LOOKUP,
                 MAP_DELETE_BATCH, MAP_LOOKUP_AND_DELETE_BATCH, MAP_LOOKUP_BATCH, MAP_UPDATE_BATCH,
                 NEEDS_STACK, PATIENCE, PROG_SCHED_ACT, PROG_SCHED_CLS, REPLY, RST, SNAT, TCP, UDP,
                 VALUE_FIELDS, XDP_DROP, Fd, Iterator, Lookup, Map, Prog, bpf, calls, check, credit,
                 csum, expect, fails, ipv4, jeqi, load, mac, make_key, map_by_id, movi, netns,
                 not_ok, on, parse_key, parse_value, run, run_tests, sysctl, tcp, udp, wait_for,
                 with_facts)
from flows import (CLIENT, CLIENT_MAC, RC, RC_MAC, ROUTER, RS, RS_MAC, SERVER, SERVER_MAC, TcpFlow,
                   UdpFlow, conntrack, gone, proc_maps, programs, published, router_map, value)


def same_packet(name, got, old, new, l3check, l4check):
    """The differences turn the checksums of old into those of new"""
    def update(data, at, diff):
        was = struct.unpack_from("!H", data, at)[0]
        swapped = int.from_bytes(diff.to_bytes(2, "little"), "big")
        return (0xffff ^ csum(b"", (0xffff ^ was) + swapped)) % 0xffff
    want = [struct.unpack_from("!H", new, at)[0] % 0xffff for at in (l3check, l4check)]
    return expect(name, want, [update(old, l3check, got.ip_csum_diff),
                               update(old, l4check, got.l4_csum_diff)])


def test_create():
    fails("create: key size 60 is refused", errno.EINVAL, router_map, key_size=60)
    fails("create: key size 68 is refused", errno.EINVAL, router_map, key_size=68)
    fails("create: value size 104 is refused", errno.EINVAL, router_map, value_size=104)
    fails("create: value size 0 is refused", errno.EINVAL, router_map, value_size=0)
    fails("create: max_entries 0 is refused", errno.EINVAL, router_map, max_entries=0)
    fails("create: max_entries 1 is refused", errno.EINVAL, router_map, max_entries=1)
    fails("create: max_entries above the limit is refused", errno.E2BIG, router_map,
          max_entries=0x1000001)
    fails("create: the largest max_entries is refused", errno.E2BIG, router_map,
          max_entries=0xffffffff)
    for bit in [b for b in range(32) if 1 << b not in (1 << 2, 1 << 3, 1 << 4, 1 << 16)]:
        try:
            router_map(flags=1 << bit)
        except OSError as e:
            if e.errno in (errno.EINVAL, errno.EPERM):
                continue
            not_ok(f"create: map flag bit {bit} is refused", e)
            break
        not_ok(f"create: map flag bit {bit} is refused", "got: success")
        break
    else:
        check("create: unknown map flags are refused, each bit", True)
    fails("create: unknown map_extra is refused", errno.EINVAL, router_map, extra=1 << 3)
    fails("create: the highest bit of map_extra is refused", errno.EINVAL, router_map,
          extra=1 << 63)
    fails("create: a device is refused", errno.EINVAL, router_map, ifindex=RC)
    m = router_map(max_entries=2)
    info = m.info()
    expect("create: info tells type, sizes and entries", (65537, 64, 112, 2),
           (info["type"], info["key_size"], info["value_size"], info["max_entries"]))


def btf(*structs):
    """BTF of structures (size, offsets of their members), types 2 and up"""
    types = struct.pack("=4I", 0, 1 << 24, 1, 8)  # 1: an integer of a byte
    for size, offsets in structs:
        types += struct.pack("=3I", 0, 4 << 24 | len(offsets), size)
        types += b"".join(struct.pack("=3I", 0, 1, 8 * o) for o in offsets)
    data = ctypes.create_string_buffer(
        struct.pack("=HBB5I", 0xeb9f, 1, 0, 24, 0, len(types), len(types), 1) + types + b"\0")
    return Fd(bpf(BTF_LOAD, struct.pack("=QQII", ctypes.addressof(data), 0, len(data) - 1, 0))[0])


def test_btf():
    key = (64, (0, 4, 6, 8, 9, 10, 12, 20, 24, 56, 60, 61, 62))
    value = (112, (0, 4, 8, 14, 20, 22, 24, 32, 34, 36, 38, 40, 72, 76, 80, 84, 86, 87, 88, 96, 104,
                   108))
    good = btf(key, value)
    m = router_map(btf=(good.fd, 2, 3), extra=COUNTERS | RC << 32,
                   flags=BPF_F_NUMA_NODE | BPF_F_RDONLY)
    check("BTF: of the UAPI's structures is taken", m)
    info = m.info()
    expect("BTF: info tells its types, map_extra and the flags that last",
           (2, 3, True, COUNTERS | RC << 32, BPF_F_NUMA_NODE),
           (info["btf_key_type_id"], info["btf_value_type_id"], info["btf_id"] > 0,
            info["map_extra"], info["map_flags"]))
    expect("BTF: and an id, by which all of it is told again", info, map_by_id(info["id"]).info())
    for what, structs in (
            ("a member of the key elsewhere", ((64, (0, 4, 7) + key[1][3:]), value)),
            ("one member fewer in the key", ((64, key[1][:-1]), value)),
            ("a member of the value elsewhere", (key, (112, value[1][:-2] + (100, 108)))),
            ("one member more in the value", (key, (112, value[1] + (110,))))):
        other = btf(*structs)
        fails(f"BTF: {what} is refused", errno.EINVAL, router_map, btf=(other.fd, 2, 3))
    fails("BTF: key and value exchanged are refused", errno.EINVAL, router_map,
          btf=(good.fd, 3, 2))


def test_announce():
    flow = UdpFlow()
    check("before the map: a connection through the masquerade works", flow.talk())
    m = router_map()
    check("announce: a flow that was there before the map is in it, both directions",
          published(m, flow), on("router", "conntrack -L"))
    other = router_map()
    late = UdpFlow()
    check("several maps: each has the flow", published(m, late) and published(other, late))
    with netns("client"):
        foreign = Map()
    expect("namespaces: a map of another has none of it", [], list(foreign.keys()))


def test_snat():
    m, flow = router_map(), UdpFlow()
    ct = conntrack("udp", flow.port)
    v, r = value(m, flow.key), value(m, flow.reply)
    if not check("snat: both directions are published", v and r, list(m.keys())):
        return
    expect("snat: original direction: flags, devices, header, MTU",
           (SNAT, RS, mac(SERVER_MAC), mac(RS_MAC), b"\x08\0", 1500),
           (v.flags, v.ifindex, v.h_dest, v.h_source, v.h_proto, v.mtu))
    expect("snat: reply direction: flags, devices, header, MTU",
           (SNAT | REPLY, RC, mac(CLIENT_MAC), mac(RC_MAC), b"\x08\0", 1500),
           (r.flags, r.ifindex, r.h_dest, r.h_source, r.h_proto, r.mtu))
    expect("snat: what is written is conntrack's reply tuple, mirrored",
           (ct.reply["dst"], ct.reply["dport"], ct.reply["src"], ct.reply["sport"]),
           (v.saddr, str(v.sport), v.daddr, str(v.dport)))
    expect("snat: what is written to the reply is conntrack's original tuple, mirrored",
           (ct.original["dst"], ct.original["dport"], ct.original["src"], ct.original["sport"]),
           (r.saddr, str(r.sport), r.daddr, str(r.dport)))
    expect("snat: conntrack's id", (ct.id, ct.id), (v.ct_id, r.ct_id))
    check("snat: conntrack's status says offloaded", v.ct_status & IPS_OFFLOAD, hex(v.ct_status))
    expect("snat: reserved fields, encapsulations and the rest of the addresses are zero",
           (0, 0, bytes(2), bytes(2), bytes(24)),
           (v.tcp_wscale, v.reserved2, v.encap0, v.encap1, v.addr[8:]))
    payload = random.randbytes(33)
    old = ipv4(CLIENT, SERVER, UDP, udp(CLIENT, SERVER, flow.port, flow.port, payload))
    new = ipv4(v.saddr, v.daddr, UDP, udp(v.saddr, v.daddr, v.sport, v.dport, payload))
    same_packet("snat: checksum differences of the original direction", v, old, new, 10, 26)
    old = ipv4(SERVER, ROUTER, UDP, udp(SERVER, ROUTER, flow.port, v.sport, payload))
    new = ipv4(r.saddr, r.daddr, UDP, udp(r.saddr, r.daddr, r.sport, r.dport, payload))
    same_packet("snat: checksum differences of the reply direction", r, old, new, 10, 26)


def test_dnat():
    m, flow = router_map(), TcpFlow()
    v, r = value(m, flow.key), value(m, flow.reply)
    if not check("dnat: both directions are published", v and r, list(m.keys())):
        return
    expect("dnat: original direction: flags, device, tuple",
           (DNAT, RC, SERVER, flow.port, CLIENT, 80),
           (v.flags, v.ifindex, v.saddr, v.sport, v.daddr, v.dport))
    expect("dnat: reply direction: flags, device, tuple",
           (DNAT | REPLY, RS, ROUTER, 8080, SERVER, flow.port),
           (r.flags, r.ifindex, r.saddr, r.sport, r.daddr, r.dport))
    expect("dnat: TCP state is ESTABLISHED", (3, 3), (v.tcp_state, r.tcp_state))
    payload = random.randbytes(101)
    old = ipv4(SERVER, ROUTER, TCP, tcp(SERVER, ROUTER, flow.port, 8080, payload=payload))
    new = ipv4(v.saddr, v.daddr, TCP, tcp(v.saddr, v.daddr, v.sport, v.dport, payload=payload))
    same_packet("dnat: checksum differences", v, old, new, 10, 36)


def test_lookup():
    m, flow = router_map(), UdpFlow()
    find = Lookup(m)
    got = find(flow.key)
    check("look-up from a program: the value that user space reads", got == m.lookup(flow.key),
          got)
    expect("look-up from a program: no counters unless asked for", 0, parse_value(got).packets)
    for what, key in {
            "another device": make_key(RS, UDP, CLIENT, flow.port, SERVER, flow.port),
            "another protocol": make_key(RC, TCP, CLIENT, flow.port, SERVER, flow.port),
            "another source port": make_key(RC, UDP, CLIENT, flow.port + 1, SERVER, flow.port),
            "another address": make_key(RC, UDP, CLIENT, flow.port, ROUTER, flow.port),
            "another family": with_facts(flow.key, family=10),
            "an encapsulation": with_facts(flow.key, encap0=b"\x81\0", id0=5),
            "an encapsulation's id alone": with_facts(flow.key, id0=5),
            "a tunnel": with_facts(flow.key, tunnel=1),
            "a reserved field": with_facts(flow.key, reserved=1),
            "an unknown flag": with_facts(flow.key, flags=1 << 7),
            "a packet above the MTU": with_facts(flow.key, len=1501)}.items():
        expect(f"look-up from a program: {what} misses", None, find(key))
    check("look-up from a program: which asks for it gets the value of a packet above the MTU",
          find(with_facts(flow.key, len=1501, flags=KEY_STACK)) and
          not find(with_facts(flow.key, len=1501, flags=KEY_STACK | 1 << 7)))
    check("look-up from a program: a packet of the MTU hits",
          find(with_facts(flow.key, len=1500)))
    check("look-up from a program: bytes behind IPv4 addresses are ignored",
          find(flow.key[:32] + b"\xff" * 24 + flow.key[56:]))
    check("look-up from a program: the flow is there still", published(m, flow))
    # a program's two ways to ask for a flow without an Ethernet address
    on("router", "ip neigh replace 203.0.113.2 dev rs nud stale lladdr 02:00:00:00:02:02")
    check("look-up from a program: a stale neighbour will do", find(flow.key))


def test_counters():
    m, flow = router_map(extra=COUNTERS), UdpFlow()
    find = Lookup(m)
    before = conntrack("udp", flow.port)
    for size in (100, 200, 300):
        find(with_facts(flow.key, len=size))
    find(with_facts(flow.reply, len=50))
    v, r = value(m, flow.key), value(m, flow.reply)
    expect("counters: packets and bytes of each direction", ((3, 600), (1, 50)),
           ((v.packets, v.bytes), (r.packets, r.bytes)))
    find(with_facts(flow.key, len=9000))
    expect("counters: what is not returned is not counted", 3, value(m, flow.key).packets)
    after = conntrack("udp", flow.port)
    expect("counters: conntrack's accounting has the same",
           (3, 600, 1, 50),
           tuple(int(getattr(after, d)[n]) - int(getattr(before, d)[n])
                 for d in ("original", "reply") for n in ("packets", "bytes")))

    m.update(flow.key, credit(1000, 64000), BPF_EXIST)
    v = value(m, flow.key)
    expect("update: BPF_EXIST credits packets and bytes", (1003, 64600), (v.packets, v.bytes))
    credited = conntrack("udp", flow.port)
    expect("update: conntrack counts them", (1000, 64000), tuple(
        int(credited.original[n]) - int(after.original[n]) for n in ("packets", "bytes")))
    fails("update: BPF_ANY is refused", errno.EOPNOTSUPP, m.update, flow.key, credit(1, 1), BPF_ANY)
    fails("update: BPF_NOEXIST is refused", errno.EOPNOTSUPP, m.update, flow.key, credit(1, 1),
          BPF_NOEXIST)
    fails("update: BPF_F_LOCK is refused", errno.EINVAL, m.update, flow.key, credit(1, 1),
          BPF_EXIST | BPF_F_LOCK)
    fails("update: any other field than the counters is refused", errno.EINVAL, m.update, flow.key,
          credit(1, 1, ifindex=5), BPF_EXIST)
    fails("update: more packets than 32 bits tell are refused", errno.EINVAL, m.update, flow.key,
          credit(1 << 32, 0), BPF_EXIST)
    fails("update: an unknown flow is refused", errno.ENOENT, m.update,
          with_facts(flow.key, ifindex=999), credit(1, 1), BPF_EXIST)
    m.update(flow.key, credit(0xffffffff, 0), BPF_EXIST)
    expect("update: all that 32 bits tell are counted", 1003 + 0xffffffff,
           value(m, flow.key).packets)
    on("router", "ip route replace blackhole 203.0.113.2/32")
    check("update: a stale flow is there", published(m, flow))
    fails("update: but refused", errno.ENOENT, m.update, flow.key, credit(1, 1), BPF_EXIST)
    check("update: and torn down", gone(m, flow))
    on("router", "ip route del 203.0.113.2/32")


def test_life():
    timeout = 2 * PATIENCE
    for proto, kind, other in (("udp", UdpFlow, TcpFlow), ("tcp", TcpFlow, UdpFlow)):
        name = f"life: {proto}"
        sysctl("router", f"net.netfilter.nf_flowtable_{proto}_timeout", timeout)
        m = router_map()
        busy, credited, idle, lasting = kind(), kind(), kind(), other()
        find = Lookup(m)
        start = time.monotonic()
        while time.monotonic() < start + 3 * timeout and find(busy.key) and value(m, credited.key):
            m.update(credited.key, credit(0, 0), BPF_EXIST)
            time.sleep(0.3)
        check(f"{name}: look-ups keep a flow for thrice its time-out",
              time.monotonic() >= start + 3 * timeout, f"gone after {time.monotonic() - start:.1f} s")
        check(f"{name}: so do updates that credit nothing", published(m, credited))
        check(f"{name}: its conntrack entry stays offloaded", conntrack(proto, busy.port).offload)
        check(f"{name}: an idle flow expires", gone(m, idle))
        check(f"{name}: not one of the other protocol", published(m, lasting))
        check(f"{name}: its conntrack entry is not offloaded any more",
              not conntrack(proto, idle.port).offload)
        check(f"{name}: the idle connection works still", idle.talk())
        check(f"{name}: and is published again", wait_for(lambda f=idle: published(m, f)))
        check(f"{name}: user space's reads keep nothing alive",
              wait_for(lambda f=idle: gone(m, f), timeout=6))
        sysctl("router", f"net.netfilter.nf_flowtable_{proto}_timeout", 300)


def close(flow, name):
    """By FIN or RST. Return: conntrack's state of the connection then"""
    if name == "RST":
        flow.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    flow.server.close()
    flow.client.close()
    time.sleep(0.5)
    ct = conntrack("tcp", flow.port)
    return ct and (ct.line.split()[3], ct.offload)


def test_teardown():
    usual = {name: close(TcpFlow(), name) for name in ("FIN", "RST")}
    m = router_map()
    find = Lookup(m)
    for name, flag in (("FIN", FIN | ACK), ("RST", RST)):
        flow = TcpFlow()
        key = with_facts(flow.key, tcp_flags=ACK)
        if not check(f"{name}: a look-up with ACK hits before", find(key)):
            continue
        expect(f"{name}: the look-up returns NULL", None, find(with_facts(key, tcp_flags=flag)))
        check(f"{name}: both directions are gone", gone(m, flow))
        ct = conntrack("tcp", flow.port)
        check(f"{name}: the conntrack entry is not offloaded any more", not ct.offload, ct.line)
        if name == "FIN":  # after data conntrack knows a RST's number better than without
            check("FIN: data still passes", flow.talk())
        expect(f"{name}: the real one takes conntrack to the state that it has without a map",
               usual[name], close(flow, name))

    flow = UdpFlow()
    got = parse_value(m.lookup_and_delete(flow.key))
    check("look-up and delete: gives the value and ends the flow",
          (got.saddr, got.ifindex) == (ROUTER, RS) and gone(m, flow), got)
    fails("look-up and delete: what is gone is not found", errno.ENOENT, m.lookup_and_delete,
          flow.key)
    flow = UdpFlow()
    m.delete(flow.key)
    check("delete: both directions are gone", gone(m, flow))
    check("delete: the conntrack entry is not offloaded any more",
          not conntrack("udp", flow.port).offload)
    fails("delete: what is gone is not found", errno.ENOENT, m.delete, flow.key)
    check("delete: the connection goes on, and is published again",
          flow.talk() and wait_for(lambda: published(m, flow)))


def test_dump():
    on("router", "conntrack -F 2>/dev/null")
    m = router_map()
    flows = [UdpFlow() for _ in range(40)]
    keys = list(m.keys())
    want = {with_facts(k, len=0) for f in flows for k in (f.key, f.reply)}
    check("dump: next key gives every entry once, facts zero",
          len(keys) == len(set(keys)) and want <= set(keys),
          f"expected: {len(want)}\ngot: {len(keys)}, {len(want & set(keys))} of them right")
    batch = dict(m.batch(200, MAP_LOOKUP_BATCH))
    check("dump: a batch has the same keys, with their values",
          set(batch) == set(keys) and all(len(v) == 112 for v in batch.values()), len(batch))
    # others are flows of before, on their way out
    expect("dump: every key's value can be read", len(want),
           sum(value(m, k) is not None for k in want))
    after = m.next_key(keys[10])
    m.delete(keys[10])
    expect("dump: next key of an entry that has gone goes on behind it",
           after if parse_key(after).sport != parse_key(keys[10]).dport else m.next_key(after),
           m.next_key(keys[10]))


def test_batches():
    on("router", "conntrack -F 2>/dev/null")
    m = router_map()
    wait_for(lambda: not list(m.keys()))
    flows = [UdpFlow() for _ in range(12)]
    expect("batch: deleted by their keys", 4,
           len(m.batch(4, MAP_DELETE_BATCH, [f.key for f in flows[:4]])))
    check("batch: these flows are gone, the others are not",
          all(gone(m, f) for f in flows[:4]) and all(published(m, f) for f in flows[4:]))
    fails("batch: updates are refused", errno.EOPNOTSUPP, m.batch, 1, MAP_UPDATE_BATCH,
          [flows[5].key])
    # with one direction of a flow the other goes
    taken, last = [], None
    while last != []:
        last = m.batch(5, MAP_LOOKUP_AND_DELETE_BATCH)
        taken += [parse_key(k).sport for k, v in last if parse_value(v).dport]
    expect("batch: look-up and delete gives each flow once, until none is left",
           ({f.port for f in flows[4:]}, 8, []), (set(taken), len(taken), list(m.keys())))


def test_programs():
    """What programs do beside look-ups: tests/bpf/flowmap.bpf.c"""
    on("router", "conntrack -F 2>/dev/null")
    m = router_map(extra=COUNTERS)
    wait_for(lambda: not list(m.keys()))
    flows = [UdpFlow() for _ in range(20)]
    count, delete, credit_, stop = programs(m)
    expect("programs: for_each has both directions of a flow, once", [2] * 20,
           [count(f.key) for f in flows])
    expect("programs: for_each stops when it is told to", 1, stop(flows[0].key))
    expect("programs: update credits packets and bytes", (0, (5, 500)),
           (credit_(flows[3].key),
            (v := value(m, flows[3].key)) and (v.packets, v.bytes)))
    expect("programs: delete ends a flow", (0, True, True),
           (delete(flows[3].key), gone(m, flows[3]), published(m, flows[4])))
    expect("programs: neither finds what is gone", [-errno.ENOENT] * 2,
           [p(flows[3].key) for p in (credit_, delete)])
    expect("iterator: gives what look-ups give", dict(m.batch(100)), dict(Iterator(m)))
    flow = flows[5]
    for type_ in (PROG_SCHED_CLS, PROG_SCHED_ACT):
        Prog(calls(m, LOOKUP, key=flow.key), type=type_).test(bytes(64))
    v = value(m, flow.key)
    expect("programs: those of tc look up as well, and are counted", (2, 200),
           (v.packets, v.bytes))
    Prog(calls(m, DELETE, key=flow.key), type=PROG_SCHED_CLS).test(bytes(64))
    check("programs: and delete", gone(m, flow) and published(m, flows[6]))


def test_freeze():
    m, flow = router_map(extra=COUNTERS), UdpFlow()
    m.freeze()
    fails("frozen: no update by user space", errno.EPERM, m.update, flow.key, credit(1, 1),
          BPF_EXIST)
    fails("frozen: no delete", errno.EPERM, m.delete, flow.key)
    fails("frozen: no look-up and delete", errno.EPERM, m.lookup_and_delete, flow.key)
    check("frozen: look-ups go on, and count",
          Lookup(m)(flow.key) and value(m, flow.key).packets == 1)
    late = UdpFlow()
    check("frozen: flows come", published(m, late))
    on("router", "conntrack -F 2>/dev/null")
    check("frozen: and go", wait_for(lambda: gone(m, late)))


def test_bpftool():
    """bpftool map dump by the BTF of xdp_ct"""
    on("router", "xdp_ct attach rc rs --counters")
    flow = UdpFlow()
    dump = json.loads(run("bpftool -j map dump name flowmap"))
    found = [e["formatted"] for e in dump if e["formatted"]["key"]["ifindex"] == RC and
             socket.ntohs(e["formatted"]["key"]["sport"]) == flow.port]
    if check("bpftool: the dump has the flow", len(found) == 1, dump[:1]):
        k, v = found[0]["key"], found[0]["value"]
        expect("bpftool: by names, with what it is",
               (socket.AF_INET, UDP, SNAT, RS, list(SERVER_MAC.split(":")), 1500),
               (k["family"], k["l4proto"], v["flags"], v["ifindex"],
                [f"{b:02x}" for b in v["h_dest"]], v["mtu"]))
        expect("bpftool: all fields of the value",
               [n for n in VALUE_FIELDS if not n.startswith(("encap", "id"))],
               [n for n in v if n != "encap"])
    on("router", "xdp_ct detach")


def test_limit():
    m = router_map(max_entries=8)
    before = {parse_key(k).ifindex for k in m.keys()}
    on("router", "conntrack -F 2>/dev/null")
    wait_for(lambda: not list(m.keys()))
    flows = [UdpFlow() for _ in range(10)]
    inside = [f for f in flows if published(m, f)]
    expect("limit: four flows fill a map of eight entries", (4, 8),
           (len(inside), len(list(m.keys()))))
    check("limit: no flow is there by half",
          all(published(m, f) or gone(m, f) for f in flows), before)
    check("limit: connections without room work", all(f.talk() for f in flows))
    with netns("router"):
        ident, entries, most, full = next(p for p in proc_maps() if p[0] == m.info()["id"])
    check("limit: they are counted", (entries, most) == (8, 8) and full >= 6,
          (ident, entries, most, full))
    m.delete(inside[0].key)
    late = UdpFlow()
    check("limit: room is used again", published(m, late))


def test_stale():
    m = router_map(extra=COUNTERS)
    find = Lookup(m)
    for name, command, undo in (
            ("route replaced", "ip route replace 203.0.113.2/32 via 203.0.113.9 dev rs",
             "ip route del 203.0.113.2/32"),
            ("route to nowhere", "ip route replace blackhole 203.0.113.2/32",
             "ip route del 203.0.113.2/32"),
            ("policy rule added", "ip rule add to 203.0.113.2 lookup 77", "ip rule del to 203.0.113.2"),
            ("neighbour moved", "ip neigh replace 203.0.113.2 dev rs lladdr 02:00:00:00:02:99",
             "ip neigh replace 203.0.113.2 dev rs lladdr 02:00:00:00:02:02 nud reachable"),
            ("neighbour deleted", "ip neigh del 203.0.113.2 dev rs", "true"),
            ("link down", "ip link set dev rs down", "ip link set dev rs up"),
            ("MTU changed", "ip link set dev rs mtu 1400", "ip link set dev rs mtu 1500"),
            ("address changed", "ip link set dev rs address 02:00:00:00:02:77",
             "ip link set dev rs address 02:00:00:00:02:01"),
            ("conntrack -D", "conntrack -D -p udp --orig-src 10.0.1.2", "true"),
            ("flow table deleted", "nft delete rule inet router forward handle "
             "$(nft -a list chain inet router forward | sed -n 's/.*flow add.*handle //p') && "
             "nft delete flowtable inet router ft",
             "nft add flowtable inet router ft '{ hook ingress priority filter; "
             "devices = { rc, rs }; }' && "
             "nft add rule inet router forward ct state established flow add @ft")):
        flow = UdpFlow()
        if not check(f"stale: {name}: a hit before", find(flow.key) and find(flow.reply)):
            continue
        on("router", command)
        expect(f"stale: {name}: the next packet goes to the stack", None, find(flow.key))
        on("router", undo)
        check(f"stale: {name}: undone, the connection works and is published",
              wait_for(lambda f=flow: f.talk() and (v := find(f.key)) and
                       parse_value(v).h_dest == mac(SERVER_MAC), timeout=8),
              on("router", "ip neigh; ip route; ip link; conntrack -L 2>&1"))

    flow = UdpFlow()
    first = value(m, flow.key).ct_id
    on("router", "conntrack -D -p udp --orig-src 10.0.1.2 2>/dev/null")
    check("stale: a connection in the place of one that was deleted is published",
          wait_for(lambda: flow.talk() and (v := value(m, flow.key)) and v.ct_id != first and
                   v.ct_id == conntrack("udp", flow.port).id))

    flow = UdpFlow()
    on("router", f"conntrack -U -p udp --orig-src 10.0.1.2 --orig-port-src {flow.port} "
       "--mark 77 2>/dev/null")
    got = find(flow.key)
    expect("stale: a changed mark is in the next value", 77, got and parse_value(got).ct_mark)

    # a real packet, by a program that drops what has this mark
    flow = UdpFlow()
    mark = f"conntrack -U -p udp --orig-port-src {flow.port} 2>/dev/null --mark "
    prog = Prog(calls(m, LOOKUP, jeqi(0, 0, 3), load(4, 1, 0, 76), movi(0, XDP_DROP),
                      jeqi(1, 77, 1), key=flow.key))
    prog.pin("/sys/fs/bpf/mark")
    on("router", "ip link set dev rc xdpgeneric pinned /sys/fs/bpf/mark")
    os.unlink("/sys/fs/bpf/mark")
    check("stale: before the mark, packets pass a program that heeds it",
          flow.talk() and published(m, flow))
    on("router", mark + "77")
    check("stale: it drops the next packet after", not flow.talk())
    on("router", mark + "0")
    check("stale: none without the mark", wait_for(flow.talk))
    on("router", "ip link set dev rc xdpgeneric off")


def test_hooks():
    """Chains of the netdev family, which see all packets of a device"""
    m = router_map(extra=COUNTERS)
    find = Lookup(m)

    def needs(flow):
        value = find(with_facts(flow.key, flags=KEY_STACK))
        return value and parse_value(value).flags & NEEDS_STACK

    for where in ("ingress device rc", "egress device rs"):
        flow = UdpFlow()
        check(f"hooks: {where}: a hit before", find(flow.key))
        on("router", f"nft 'add table netdev t; add chain netdev t c {{ type filter hook {where} "
           "priority 0; }'")
        time.sleep(1.1)
        find(flow.key)
        expect(f"hooks: {where}: a second later its flow has gone", None, find(flow.key))
        flow.talk()
        expect(f"hooks: {where}: it needs the stack", (None, HOOKS), (find(flow.key), needs(flow)))
        check(f"hooks: {where}: the other direction does not", find(flow.reply))
        on("router", "nft delete table netdev t")
        check(f"hooks: {where}: without the chain it is back",
              wait_for(lambda f=flow: f.talk() and find(f.key)))
    m.close()


def test_removal():
    """While packets and look-ups go on"""
    m = router_map(extra=COUNTERS)
    find = Lookup(m)
    flows = [UdpFlow() for _ in range(4)]
    stop = threading.Event()
    seen = [0, 0]

    def talk():
        for f in flows:
            f.client.settimeout(0.05)
            f.server.settimeout(0.05)
        while not stop.is_set():
            for f in flows:
                seen[0] += f.talk()

    def look():
        while not stop.is_set():
            for f in flows:
                seen[1] += find(f.key) is not None

    threads = [threading.Thread(target=t) for t in (talk, look)]
    for t in threads:
        t.start()
    ruleset = on("router", "nft list ruleset")
    with open("/tmp/ruleset", "w", encoding="ascii") as f:
        f.write("flush ruleset\n" + ruleset)
    for _ in range(10):
        on("router", "nft flush ruleset")
        empty = wait_for(lambda: not list(m.keys()))
        time.sleep(0.1)
        on("router", "nft -f /tmp/ruleset && conntrack -F 2>/dev/null")
        time.sleep(0.2)
    check("removal: flushing the ruleset empties the map", empty)
    before = list(seen)
    back = wait_for(lambda: seen[0] > before[0] + 20 and seen[1] > before[1] + 20, timeout=10)
    check("removal: with the ruleset back, packets pass and look-ups hit", back,
          f"{before} {seen}")
    on("router", "ip link del dev rs")
    check("removal: deleting a device takes its flows away",
          wait_for(lambda: not list(m.keys())), len(list(m.keys())))
    expect("removal: no look-up hits then", [None] * 4, [find(f.key) for f in flows])
    stop.set()
    for t in threads:
        t.join()
    run("ip link add s1 netns server type veth peer name rs netns router")
    on("router", "ip addr add 203.0.113.1/24 dev rs && ip link set dev rs up")
    on("server", "ip addr add 203.0.113.2/24 dev s1 && ip link set dev s1 up")
    m.close()

    run("ip netns add gone")
    on("gone", "ip link set dev lo up && sysctl -qw net.ipv4.ip_forward=1 && "
       "ip link add a0 type veth peer name a1 && ip link set a0 up && ip link set a1 up")
    with netns("gone"):
        orphan = Map()
    run("ip netns del gone")
    expect("removal: a map outlives its namespace, empty", [], list(orphan.keys()))
    fails("removal: and finds nothing", errno.ENOENT, orphan.lookup, flows[0].key)
    with netns("router"):
        orphan = Map()
    run("ip netns pids router | xargs -r kill; ip netns del router")
    check("removal: a namespace with flows goes, and its map empties",
          wait_for(lambda: not list(orphan.keys())))


run_tests(test_create, test_btf, test_announce, test_snat, test_dnat, test_lookup, test_counters,
          test_life, test_teardown, test_dump, test_batches, test_programs, test_freeze,
          test_bpftool, test_limit, test_stale, test_hooks, test_removal)
