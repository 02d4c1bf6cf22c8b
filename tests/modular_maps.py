# SPDX-License-Identifier: GPL-2.0
"""Cases of modular_maps.sh"""
import errno
import os
import struct
import threading
import traceback

from lib import (BPF_EXIST, BPF_NOEXIST, BPF_F_SLEEPABLE, CAP_BPF, CAP_NET_ADMIN, DELETE,
                 ENOTSUPP, EXIT, LOOKUP, MAP_ARRAY_OF_MAPS, MAP_DELETE_BATCH, MAP_FLOWMAP,
                 MODULAR_LOCAL, PROG_KPROBE, PROG_SOCKET_FILTER, PROG_SYSCALL, UPDATE, Lookup, Map,
                 Prog, addi, call, check, end, expect, fails, jeqi, ld_map, map_by_id, mov, movi,
                 not_ok, obj_get, program, run, storei, wait_for, with_caps)

TOY, BARE = MODULAR_LOCAL, MODULAR_LOCAL + 1
SYS = "/sys/kernel/bpf/modular_maps/"


def toy(key_size=8, value_size=8, max_entries=64, **kwargs):
    return Map(type=TOY, key_size=key_size, value_size=value_size, max_entries=max_entries,
               **kwargs)


def bare(**kwargs):
    return Map(type=BARE, key_size=4, value_size=4, max_entries=1, **kwargs)


def number(n):
    return struct.pack("=Q", n)


def loaded(module):
    with open("/proc/modules", encoding="ascii") as f:
        return any(line.split()[0] == module for line in f)


def unload(module):
    """True if the kernel let go of it; a map is freed from a work queue"""
    def attempt():
        try:
            run("rmmod " + module)
        except RuntimeError:
            return False
        return True
    return wait_for(attempt, timeout=3)


def held(name, module="bpf_map_toy"):
    try:
        run("rmmod " + module)
    except RuntimeError as e:
        return check(name, "in use" in str(e), e)
    return not_ok(name, "expected: Module is in use\ngot: unloaded")


def sysfs(name, attribute):
    with open(SYS + name + "/" + attribute, encoding="ascii") as f:
        return f.read().split()


def log_of(insns, **kwargs):
    """(errno, verifier's log) of a program that should not load"""
    try:
        Prog(insns, **kwargs)
    except OSError as e:
        return e.errno, e.log
    return 0, ""


def calls(m, function, *more):
    """A program that calls a helper with a map and a key of zeros"""
    return program(*[storei(8, 10, -8 * i, 0) for i in range(1, m.key_size // 8 + 1)],
                   ld_map(1, m), mov(2, 10), addi(2, -m.key_size), mov(3, 2), movi(4, 0),
                   call(function), *more, movi(0, 2), EXIT)


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

    errors = []

    def create():
        for _ in range(40):
            try:
                toy().close()
            except OSError as e:
                if e.errno != errno.EINVAL:  # going just now
                    errors.append(e)
    threads = [threading.Thread(target=create) for _ in range(2)]
    for t in threads:
        t.start()
    unloaded = 0
    while any(t.is_alive() for t in threads):
        try:
            run("rmmod bpf_map_toy")
            unloaded += 1
        except RuntimeError:
            pass
    expect("life: creating and unloading at once", [], errors)
    toy()


def obj_map_id(path):
    with_path = obj_get(path)
    return Map(fd=os.dup(with_path.fd)).info()["id"]


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
    fails("toy: look-up and delete, which it lacks", errno.EOPNOTSUPP, m.lookup_and_delete, keys[5])
    info = m.info()
    expect("toy: info", (TOY, 12, 20, 100, "test"),
           tuple(info[n] for n in ("type", "key_size", "value_size", "max_entries", "name")))
    fails("toy: map flags that it does not take", errno.EINVAL, toy, flags=1 << 2)
    fails("toy: map_extra that it does not take", errno.EINVAL, toy, extra=1)
    fails("toy: attributes that it refuses", errno.EINVAL, toy, key_size=0)

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


def test_bare():
    run("modprobe bpf_map_bare")
    m = bare()
    key = bytes(4)
    for name, function, args in (("look-up", m.lookup, (key,)), ("update", m.update, (key, key)),
                                 ("delete", m.delete, (key,)), ("next key", m.next_key, (key,)),
                                 ("look-up and delete", m.lookup_and_delete, (key,))):
        fails(f"bare: {name} is EOPNOTSUPP", errno.EOPNOTSUPP, function, *args)
    fails("bare: a batch of look-ups is ENOTSUPP", ENOTSUPP, m.batch, 1)
    fails("bare: a batch of deletes is ENOTSUPP", ENOTSUPP, m.batch, 1, MAP_DELETE_BATCH)
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
    m.close()
    check("bare: unloads", unload("bpf_map_bare"))


def test_refused():
    m, t = Map(), toy()
    for what, inner in (("flowmap", m), ("toy", t)):
        fails(f"refused: {what} as an inner map", ENOTSUPP, Map, type=MAP_ARRAY_OF_MAPS, key_size=4,
              value_size=4, max_entries=1, inner=inner.fd)
    for what, type_, flags in (("a socket filter", PROG_SOCKET_FILTER, 0),
                               ("a kprobe", PROG_KPROBE, 0),
                               ("a sleepable program", PROG_SYSCALL, BPF_F_SLEEPABLE)):
        err, log = log_of(calls(m, LOOKUP), type=type_, flags=flags)
        check(f"refused: {what} with a flowmap, by the type's name",
              err == errno.EINVAL and "map type flowmap cannot be used by" in log, f"{err} {log}")
    err, log = log_of(calls(m, LOOKUP, jeqi(0, 0, 1), storei(8, 0, 0, 5)))
    check("refused: a program that writes to a flowmap's value",
          err == errno.EACCES and "write into map forbidden" in log, f"{err} {log}")
    err, log = log_of(calls(m, 51))  # bpf_redirect_map
    check("refused: a flowmap for a helper of other types",
          err == errno.EINVAL and "flowmap" in log, f"{err} {log}")
    expect("refused: the type of all this is a flowmap", MAP_FLOWMAP, m.info()["type"])


for test in (test_load, test_sysfs, test_life, test_hash, test_bare, test_refused):
    try:
        test()
    except (OSError, RuntimeError, AttributeError, TypeError):
        not_ok(f"{test.__name__} ends", traceback.format_exc())
end()
