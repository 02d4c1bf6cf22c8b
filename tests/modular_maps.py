# SPDX-License-Identifier: GPL-2.0
"""Cases of modular_maps.sh"""
import errno
import mmap
import os
import random
import resource
import struct
import time

from lib import (BARE, BPF_EXIST, BPF_F_RDONLY_PROG, BPF_F_SLEEPABLE, BPF_F_TOKEN_FD, BPF_NOEXIST,
                 CAP_BPF, CAP_NET_ADMIN, DELETE, ENOTSUPP, EXIT, LOOKUP, MAP_ARRAY,
                 MAP_ARRAY_OF_MAPS, MAP_DELETE_BATCH, MAP_FLOWMAP, MAP_HASH,
                 MAP_LOOKUP_AND_DELETE_BATCH, MAP_LOOKUP_BATCH, MAP_UPDATE_BATCH, MODIFY_RETURN,
                 MODULAR_LOCAL, PROG_KPROBE, PROG_SOCKET_FILTER, PROG_SYSCALL, PROG_TRACING,
                 RAW_TRACEPOINT_OPEN, TOKEN_CREATE, TOY, UPDATE, Fd, Iterator, Lookup, Map,
                 MemoryCgroup, Prog, addi, bare, bpf, btf_id, call, calls, check, child,
                 delete_module, errno_of, expect, fails, insn, jeqi, ld_map, loaded, map_by_id, mov,
                 movi, not_ok, obj_get, program, run, run_tests, skip, storei, syscall, sysfs, toy,
                 unload, wait_for, with_caps)


def number(n):
    return struct.pack("=Q", n)


def held(name, module="bpf_map_toy"):
    try:
        run("rmmod " + module)
    except RuntimeError as e:
        return check(name, "in use" in str(e), e)
    return not_ok(name, "expected: Module is in use\ngot: unloaded")


def log_of(insns, **kwargs):
    """(errno, verifier's log) of a program that should not load"""
    try:
        Prog(insns, **kwargs)
    except OSError as e:
        return e.errno, e.log
    return 0, ""


def test_load():
    fails("load: a number that no module has", errno.EINVAL, Map, type=MODULAR_LOCAL + 6)
    fails("load: a number below the range", errno.EINVAL, Map, type=0xffff)
    fails("load: a number above the range", errno.EINVAL, Map, type=0x20000)
    for what, kwargs in (("no capability", {"caps": ()}),
                         ("CAP_NET_ADMIN alone", {"caps": (CAP_NET_ADMIN,)}),
                         ("all in a user namespace", {"caps": (), "userns": True})):
        expect(f"load: {what} is EPERM", errno.EPERM, with_caps(function=toy, **kwargs))
        check(f"load: {what} loads no module", not loaded("bpf_map_toy"))
    expect("load: CAP_BPF alone gets a toy", 0, with_caps((CAP_BPF,), toy))
    check("load: which loaded the module", loaded("bpf_map_toy"))
    expect("load: CAP_BPF alone gets no flowmap", errno.EPERM, with_caps((CAP_BPF,), Map))
    expect("load: CAP_BPF and CAP_NET_ADMIN get one", 0,
           with_caps((CAP_BPF, CAP_NET_ADMIN), Map))
    check("load: the toy unloads", unload("bpf_map_toy"))


def test_sysfs():
    maps = [toy(), toy()]
    expect("sysfs: type, module, maps", (["98304"], ["bpf_map_toy"], ["2"]),
           tuple(sysfs("toy", a) for a in ("type", "module", "maps")))
    expect("sysfs: helpers and program types",
           (["bpf_map_lookup_elem", "bpf_map_update_elem", "bpf_map_delete_elem"], ["6"]),
           (["bpf_" + h.removeprefix("bpf_") for h in sysfs("toy", "helpers")],
            sysfs("toy", "prog_types")))
    maps.pop().close()
    check("sysfs: a map less", wait_for(lambda: sysfs("toy", "maps") == ["1"]))


def test_life():
    m = toy()
    held("life: a map holds the module")
    m.pin("/sys/fs/bpf/toy")
    m.close()
    held("life: a pinned map does")
    by_id = map_by_id(obj_map_id("/sys/fs/bpf/toy"), key_size=8, value_size=8)
    os.unlink("/sys/fs/bpf/toy")
    held("life: a map found by its id does")
    prog = Prog(calls(by_id, LOOKUP))
    by_id.close()
    held("life: a program with a map does")
    prog.pin("/sys/fs/bpf/prog")
    prog.close()
    held("life: a pinned program does")
    os.unlink("/sys/fs/bpf/prog")
    check("life: with all gone it unloads", unload("bpf_map_toy"))
    check("life: and comes back", toy() and loaded("bpf_map_toy"))
    run("modprobe bpf_map_bare fail=1")
    fails("life: map_alloc() that fails", errno.ENOMEM, bare)
    check("life: keeps nothing", sysfs("bare", "maps") == ["0"] and unload("bpf_map_bare"))


def test_race():
    """Several processes create maps while another takes the module away: each
    creation gets a map, or the errno of a type that is going"""
    def create():
        end_at = time.monotonic() + 3
        while time.monotonic() < end_at:
            try:
                m = toy()
            except OSError as e:
                if e.errno != errno.EINVAL:
                    raise
            else:
                m.update(number(1), number(2))
                if m.lookup(number(1)) != number(2):
                    raise OSError(errno.EIO, "lost")
                m.close()
            time.sleep(random.random() / 20)  # so that now and then there is none
    children = [child(create) for _ in range(4)]
    end_at, unloaded = time.monotonic() + 3, 0
    while time.monotonic() < end_at:
        unloaded += not delete_module("bpf_map_toy")
    expect("race: creating in four processes and unloading at once", [0] * 4,
           [errno_of(pid) for pid in children])
    check("race: the module was unloaded meanwhile", unloaded > 0, unloaded)
    toy()
    expect("race: no map is left", ["0"],
           wait_for(lambda: (n := sysfs("toy", "maps")) == ["0"] and n) or sysfs("toy", "maps"))


def address(module):
    with open("/proc/modules", encoding="ascii") as f:
        return next(line.split()[5] for line in f if line.split()[0] == module)


def test_again():
    """The type at another address: what has its old place is another module"""
    m = toy()
    Prog(calls(m, LOOKUP)).test(bytes(64))
    m.close()
    before = address("bpf_map_toy")
    unload("bpf_map_toy")
    # whatever fits takes the place, and the holes beside it
    run("modprobe -a bpf_map_bare nft_limit nft_log nft_quota nft_redir nft_reject_inet "
        "nft_fwd_netdev nft_dup_netdev nf_conntrack_tftp nf_conntrack_sip || true")
    m = toy()
    check("again: the type is at another address", address("bpf_map_toy") != before, before)
    m.update(number(0), number(5))
    expect("again: its maps work", number(5), Lookup(m)(number(0)))
    b = bare()
    fails("again: and so do those of what is there now", errno.EOPNOTSUPP, b.lookup, bytes(4))
    b.close()
    check("again: which unloads", unload("bpf_map_bare"))


def test_failing():
    """A creation that fails after map_alloc(): the map is freed, the module let go"""
    def no_descriptor():
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            toy()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    toy().close()
    fails("failing: a name that there is not", errno.EINVAL, lambda: toy(name="a/b"))
    fails("failing: a BTF that there is not", errno.EBADF, toy, btf=(999, 1, 1))
    fails("failing: no file descriptor left", errno.EMFILE, no_descriptor)
    fails("failing: more memory than there is", errno.ENOMEM, toy, max_entries=1 << 31)
    check("failing: leaves no map", wait_for(lambda: sysfs("toy", "maps") == ["0"]),
          sysfs("toy", "maps"))
    check("failing: and holds no module", unload("bpf_map_toy"))


def test_memory():
    """A map is charged to the memory cgroup of its creator"""
    # large: each CPU has some 256 KB charged in advance. What others put into a
    # flowmap: life.sh
    for what, make, kwargs in (("a toy", toy, {"max_entries": 1 << 14, "value_size": 1000}),
                               ("a flowmap", Map, {"max_entries": 1 << 21})):
        with MemoryCgroup("maps") as cgroup:
            m = cgroup.create(make, **kwargs)
            held, grown = m.memlock(), cgroup.charged()
            check(f"memory: the creator pays for {what}", grown > held * 0.9, f"{grown} of {held}")
            m.close()
            check(f"memory: what {what} took comes back",
                  wait_for(lambda: cgroup.charged() < held / 2), cgroup.charged())


def with_token(function):
    """Errno of function(token) in a user namespace, all capabilities there, with
    a BPF token that delegates all there is to delegate"""
    to_child, to_parent = os.pipe(), os.pipe()

    def turn(to, come):
        os.write(to, b".")
        os.read(come, 1)

    def user():
        os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS)
        turn(to_parent[1], to_child[0])
        fs = syscall(430, b"bpf", 0)  # fsopen
        os.write(to_parent[1], bytes([fs]))
        os.read(to_child[0], 1)
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY,
                       dir_fd=syscall(432, fs, 0, 0))  # fsmount
        function(bpf(TOKEN_CREATE, struct.pack("=II", 0, root))[0])
    pid = child(user)
    os.read(to_parent[0], 1)
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as f:
            f.write("0 0 1")
    os.write(to_child[1], b".")
    fs = syscall(438, os.pidfd_open(pid), os.read(to_parent[0], 1)[0], 0)  # pidfd_getfd
    for option in ("cmds", "maps", "progs", "attachs"):
        syscall(431, fs, 1, f"delegate_{option}".encode(), b"any", 0)  # fsconfig
    syscall(431, fs, 6, 0, 0, 0)
    os.write(to_child[1], b".")
    return errno_of(pid)


def test_token():
    check("token: the toy unloads", unload("bpf_map_toy"))
    for what, want, make in (("a hash of the kernel, so it is a good one", 0, MAP_HASH),
                             ("no toy", errno.EPERM, TOY),
                             ("no flowmap", errno.EPERM, MAP_FLOWMAP)):
        expect(f"token: {what}", want,
               with_token(lambda token, make=make: Map(type=make, flags=BPF_F_TOKEN_FD,
                                                       token=token)))
    check("token: and loads no module", not loaded("bpf_map_toy"))


def test_lsm():
    """Programs on the hooks of maps refuse modular ones as any others"""
    if not btf_id("FUNC", "security_bpf_map_create"):
        skip("lsm: the hook refuses a toy", "a kernel without CONFIG_SECURITY")
        return
    m = toy()
    ident = m.info()["id"]
    for name, found in (("security_bpf_map_create", 0), ("security_bpf_map", errno.EACCES)):
        prog = Prog([movi(0, -errno.EACCES), EXIT], type=PROG_TRACING, attach=MODIFY_RETURN,
                    attach_btf_id=btf_id("FUNC", name))
        link = Fd(bpf(RAW_TRACEPOINT_OPEN, struct.pack("=QI4x", 0, prog.fd))[0])
        fails(f"lsm: {name} refuses a toy", errno.EACCES, toy)
        fails(f"lsm: {name} refuses a flowmap", errno.EACCES, Map)
        expect(f"lsm: {name}, and a toy that is there by its id", found,
               errno_of(child(map_by_id, ident)))
        link.close()
        check(f"lsm: {name} gone, all is well", toy() and Map() and map_by_id(ident))
    m.close()
    check("lsm: what was refused is freed",
          wait_for(lambda: sysfs("toy", "maps") == ["0"]), sysfs("toy", "maps"))


def obj_map_id(path):
    return obj_get(path, Map).info()["id"]


def test_hash():
    m = toy(key_size=12, value_size=20, max_entries=100)
    keys = [struct.pack("=III", i, i * 7, 1) for i in range(100)]
    for i, k in enumerate(keys):
        m.update(k, struct.pack("=IIIII", i, 0, 0, 0, i))
    expect("toy: what was put in is found", list(range(100)),
           [struct.unpack_from("=I", m.lookup(k))[0] for k in keys])
    fails("toy: one more than max_entries", errno.E2BIG, m.update, bytes(12), bytes(20))
    m.update(keys[5], b"\xff" * 20)
    expect("toy: replaced", b"\xff" * 20, m.lookup(keys[5]))
    fails("toy: BPF_NOEXIST of what is there", errno.EEXIST, m.update, keys[5], bytes(20),
          BPF_NOEXIST)
    fails("toy: BPF_EXIST of what is not", errno.ENOENT, m.update, bytes(12), bytes(20), BPF_EXIST)
    fails("toy: unknown flags", errno.EINVAL, m.update, keys[5], bytes(20), 8)
    expect("toy: next key gives each once", set(keys), set(m.keys()))
    expect("toy: so does a batch", set(keys), {k for k, _ in m.batch(200)})
    m.delete(keys[7])
    fails("toy: deleted", errno.ENOENT, m.lookup, keys[7])
    fails("toy: deleted twice", errno.ENOENT, m.delete, keys[7])
    expect("toy: looked up and deleted", b"\xff" * 20, m.lookup_and_delete(keys[5]))
    fails("toy: looked up and deleted twice", errno.ENOENT, m.lookup_and_delete, keys[5])
    expect("toy: a batch of that, of a part", (30, 68),
           (len(m.batch(30, MAP_LOOKUP_AND_DELETE_BATCH)), len(list(m.keys()))))
    expect("toy: and of the rest", (68, []),
           (len(m.batch(100, MAP_LOOKUP_AND_DELETE_BATCH)), list(m.keys())))
    for key_size, value_size in ((1 << 31, 8), (8, 1 << 31), ((1 << 32) - 1, (1 << 32) - 1)):
        fails(f"toy: a key of {key_size} bytes and a value of {value_size}", errno.E2BIG, toy,
              key_size=key_size, value_size=value_size)
    info = m.info()
    expect("toy: info", (TOY, 12, 20, 100, "test"),
           tuple(info[n] for n in ("type", "key_size", "value_size", "max_entries", "name")))
    fails("toy: map flags that it does not take", errno.EINVAL, toy, flags=1 << 2)
    fails("toy: map_extra that it does not take", errno.EINVAL, toy, extra=1)
    for attribute in ("key_size", "value_size", "max_entries"):
        fails(f"toy: no {attribute}", errno.EINVAL, toy, **{attribute: 0})

    m = toy()
    m.update(number(1), number(11))
    find = Lookup(m)
    expect("toy: a program's look-up: hit and miss", (number(11), None),
           (find(number(1)), find(number(2))))
    check("toy: a program may write to its values",
          Prog(calls(m, LOOKUP, jeqi(0, 0, 1), storei(8, 0, 0, 5))))
    Prog(calls(m, UPDATE)).test(bytes(64))
    expect("toy: a program's update", number(0), m.lookup(number(0)))
    Prog(calls(m, DELETE)).test(bytes(64))
    fails("toy: a program's delete", errno.ENOENT, m.lookup, number(0))


def test_iterator():
    """Iterator programs, which see copies"""
    m = toy(key_size=8, value_size=24, max_entries=500)
    it = Iterator(m)
    expect("iterator: of an empty toy nothing", [], list(it))
    want = {number(i): number(i) * 3 for i in range(500)}
    for k, v in want.items():
        m.update(k, v)
    expect("iterator: each element of a toy once", sorted(want.items()), sorted(it))
    # some gone between two reads: the rest is still seen
    seen = []
    for k, v in it:
        seen.append(k)
        if len(seen) == 1:
            for gone in list(want)[::2]:
                m.delete(gone)
    check("iterator: under deletion, what stays is seen", set(list(want)[1::2]) <= set(seen),
          f"{len(seen)} of {len(want)}")
    m.close()
    held("iterator: a linked program holds the module")
    expect("iterator: and the map", 250, len(list(it)))
    it.close()
    it.prog.close()
    check("iterator: unlinked, the module unloads", unload("bpf_map_toy"))
    run("modprobe bpf_map_bare")
    b = bare()
    fails("iterator: over a type without next key", errno.EOPNOTSUPP, lambda: list(Iterator(b)))
    b.close()
    check("iterator: which unloads", unload("bpf_map_bare"))


def test_bare():
    run("modprobe bpf_map_bare")
    m = bare()
    key = bytes(4)
    for name, function, args in (("look-up", m.lookup, (key,)), ("update", m.update, (key, key)),
                                 ("delete", m.delete, (key,)), ("next key", m.next_key, (key,)),
                                 ("look-up and delete", m.lookup_and_delete, (key,))):
        fails(f"bare: {name} is EOPNOTSUPP", errno.EOPNOTSUPP, function, *args)
    for name, cmd in (("look-ups", MAP_LOOKUP_BATCH), ("updates", MAP_UPDATE_BATCH),
                      ("deletes", MAP_DELETE_BATCH),
                      ("look-up and delete", MAP_LOOKUP_AND_DELETE_BATCH)):
        fails(f"bare: a batch of {name} is EOPNOTSUPP", errno.EOPNOTSUPP, m.batch, 1, cmd)
    fails("bare: mmap() is EOPNOTSUPP", errno.EOPNOTSUPP, mmap.mmap, m.fd, mmap.PAGESIZE)
    err, log = log_of(program(ld_map(1, m, value=True), movi(0, 0), EXIT))
    check("bare: a program that wants a value's address is refused",
          err == errno.EINVAL and "no direct value access" in log, f"{err} {log}")
    for name, function in (("bpf_map_lookup_elem", LOOKUP), ("bpf_map_update_elem", UPDATE),
                           ("bpf_map_delete_elem", DELETE)):
        insns = program(storei(8, 10, -8, 0), ld_map(1, m), mov(2, 10), addi(2, -8), mov(3, 2),
                        movi(4, 0), call(function), movi(0, 2), EXIT)
        err, log = log_of(insns)
        check(f"bare: a program with {name} is refused, by the type's name",
              err == errno.EINVAL and "map type bare does not support helper" in log,
              f"{err} {log}")
    check("bare: bpftool shows it", f"type {BARE}" in (t := run("bpftool map show")), t)
    with open(f"/proc/self/fdinfo/{m.fd}", encoding="ascii") as f:
        text = f.read()
    check("bare: fdinfo shows it", f"map_type:\t{BARE}\n" in text and "max_entries:\t1\n" in text,
          text)
    def sleepable():
        return log_of(program(ld_map(1, m), movi(0, 0), EXIT), type=PROG_SYSCALL,
                      flags=BPF_F_SLEEPABLE)
    err, log = sleepable()
    check("bare: a sleepable program is refused, by the type's name",
          err == errno.EINVAL and "map type bare cannot be used by sleepable programs" in log,
          f"{err} {log}")
    m.close()
    check("bare: unloads", unload("bpf_map_bare"))
    run("modprobe bpf_map_bare flags=4")
    m = bare()
    expect("bare: a type that says that it can is used by sleepable programs", 0, sleepable()[0])
    m.close()
    check("bare: which goes with its maps", unload("bpf_map_bare"))


def test_refused():
    m, t = Map(), toy(value_size=64)
    for what, inner in (("flowmap", m), ("toy", t)):
        fails(f"refused: {what} as an inner map", ENOTSUPP, Map, type=MAP_ARRAY_OF_MAPS, key_size=4,
              value_size=4, max_entries=1, inner=inner.fd)
    one, other = (Map(type=MAP_HASH, key_size=8, value_size=64, max_entries=64) for _ in range(2))
    outer = Map(type=MAP_ARRAY_OF_MAPS, key_size=4, value_size=4, max_entries=1, inner=one.fd)
    outer.update(bytes(4), struct.pack("=i", other.fd))
    fails("refused: a toy in the place of a hash", errno.EINVAL, outer.update, bytes(4),
          struct.pack("=i", t.fd))
    for what, type_, flags in (("a socket filter", PROG_SOCKET_FILTER, 0),
                               ("a kprobe", PROG_KPROBE, 0),
                               ("a program that may sleep", PROG_SYSCALL, BPF_F_SLEEPABLE)):
        err, log = log_of(calls(m, LOOKUP), type=type_, flags=flags)
        check(f"refused: {what} with a flowmap, by the type's name",
              err == errno.EINVAL and "map type flowmap cannot be used by" in log, f"{err} {log}")
    # sched_cls, sched_act, xdp: none of which can be sleepable
    expect("refused: by all but networking programs", ["3", "4", "6"],
           sysfs("flowmap", "prog_types"))
    text = Map(type=MAP_ARRAY, key_size=4, value_size=8, max_entries=1, flags=BPF_F_RDONLY_PROG)
    text.freeze()
    for what, code in (
            ("stores to", [storei(8, 0, 0, 5)]),
            ("adds atomically to", [movi(1, 1), insn(0xdb, 0, 1)]),
            ("has bpf_fib_lookup() write to",
             [mov(1, 6), mov(2, 0), movi(3, 64), movi(4, 0), call(69)]),
            ("has bpf_snprintf_btf() write to",
             [mov(1, 0), movi(2, 8), storei(8, 10, -16, 0), storei(8, 10, -8, 1), mov(3, 10),
              addi(3, -16), movi(4, 16), movi(5, 0), call(149)]),
            ("has bpf_snprintf() write to",
             [mov(1, 0), movi(2, 8), ld_map(3, text, value=True), movi(4, 0), movi(5, 0),
              call(165)])):
        (err, log), other = (
            log_of(program(mov(6, 1), *calls(of, LOOKUP, jeqi(0, 0, len(program(*code))), *code)))
            for of in (m, t))
        check(f"refused: a program that {what} a flowmap's value",
              err == errno.EACCES and "write into map forbidden" in log, f"{err} {log}")
        expect(f"refused: but not one that {what} a toy's", (0, ""), other)
    err, log = log_of(calls(m, 51))  # bpf_redirect_map
    check("refused: a flowmap for a helper of other types",
          err == errno.EINVAL and "flowmap" in log, f"{err} {log}")
    expect("refused: the type of all this is a flowmap", MAP_FLOWMAP, m.info()["type"])


run_tests(test_load, test_sysfs, test_life, test_race, test_again, test_failing, test_memory,
          test_token, test_lsm, test_hash, test_iterator, test_bare, test_refused)
