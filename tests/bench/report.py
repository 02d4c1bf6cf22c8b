#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""report.py JSON [DATA]: rows of paths.sh, maps.c on standard input to tables

Samples of a row are runs of the same: the median is the figure, and a row whose
samples lie further apart than SPREAD is refused, as are times that are not
instructions. Of instructions that is all samples, of times by the wall clock, in
which the machine does other things, too, the half in the middle. All is written to the file JSON, what the chart shows to DATA.
A line 'none kind=KIND REASON...' says what could not be measured here.
"""
import json
import statistics
import sys

# of the median. What flows cost that end differs from time to time for a cause not known
SPREAD = 0.01
SPREAD_END = 0.35
SPREAD_WALL = 0.3
CLOCK = 0.005  # a nanosecond is an instruction, timer interrupts aside

UNITS = {"path": "instructions a packet", "map": "instructions a look-up",
         "native": "nanoseconds a look-up", "kvm": "nanoseconds a look-up",
         "control": "instructions a flow", "slow": "instructions a packet",
         "dump": "instructions a flow", "memory": "bytes a flow",
         "scaling": "times one processor's packets"}
TITLES = {"map": "the map alone", "native": "look-ups in user-mode Linux, caches included",
          "kvm": "look-ups in a guest under KVM, caches included",
          "control": "a flow is opened, and ended",
          "slow": "the slow path, nobody snooping, median of several boots", "dump": "all flows are read",
          "memory": "memory", "scaling": "two processors"}
ORDER = ["floor", "xdp_ct", "xdp_ct+refresh", "xdp_ct+counters", "xdp-forward",
         "xdp-forward-fib", "forward", "flowtable", "conntrack"]
NO_BAR = ("xdp_ct+refresh", "xdp-forward-fib")  # in the chart
WALL = ("native", "kvm", "scaling")
SLOW = ("forward", "conntrack", "open,0-maps")
CONFIG = ("family", "proto", "nat", "tag")
MAIN = ("ipv4", "udp", "nat", "untagged")


def fail(text):
    sys.exit(f"error: {text}")


refused = []


def make_row(fields):
    name = " ".join(fields.values())
    samples = [float(s) for s in fields.pop("samples").split(",") if s]
    if not samples:
        fail(f"{name}: no samples")
    row = {k: int(v) if v.isdigit() else v for k, v in fields.items()}
    row.setdefault("kind", "path")
    row.setdefault("kernel", "flowmap")
    row["unit"] = UNITS[row["kind"]]
    row["value"] = round(statistics.median(samples), 2)
    row["samples"] = samples
    name = " ".join(fields.values())
    print("  " + name, row["value"], file=sys.stderr, flush=True)
    judge(row, name)
    return row


def judge(row, name):
    """Refuse a row whose samples lie too far apart"""
    samples, wall = row["samples"], row["kind"] in WALL
    bound = SPREAD_WALL if wall else SPREAD_END if row["path"].startswith("end") else SPREAD
    if wall:
        low, _, high = statistics.quantiles(samples, n=4)
    else:
        low, high = min(samples), max(samples)
    spread = row["spread"] = round((high - low) / (row["value"] or 1), 4)
    if spread > bound:
        refused.append(f"{name}: runs differ by {spread:.1%}, over {bound:.0%}: {samples}")


def merged(rows):
    """What was measured in several boots is one row, a sample for each"""
    first = {}
    for r in rows:
        if r["kind"] != "slow":
            continue
        key = (r["kernel"],) + same(r)
        if key in first:
            first[key]["samples"].append(r["value"])
        else:
            r["samples"] = [r["value"]]
            first[key] = r
    for r in first.values():
        r["value"] = round(statistics.median(r["samples"]), 2)
        judge(r, f"{r['kernel']} {r['path']} {r['flows']}, boots")
    kept = {id(r) for r in first.values()}
    return [r for r in rows if r["kind"] != "slow" or id(r) in kept]


def read():
    info, rows, missing = {}, [], []
    for line in sys.stdin:
        kind, *fields = line.split()
        if kind == "info":
            info.update(f.split("=", 1) for f in fields)
            if abs(float(info.get("clock", 1)) - 1) > CLOCK:
                fail(f"an instruction takes {info['clock']} ns: "
                     "boot the guest with tests/vm/run --icount")
        elif kind == "row":
            rows.append(make_row(dict(f.split("=", 1) for f in fields)))
        elif kind == "none":
            missing.append({"kind": fields[0].split("=")[1], "value": None,
                            "reason": " ".join(fields[1:])})
        else:
            print(line, end="", file=sys.stderr)
    rows = merged(rows)
    if refused or not rows:
        fail("\n".join(refused) or "no rows")
    return info, rows, missing


def table(head, lines):
    width = [max(len(row[i]) for row in [head] + lines) for i in range(len(head))]
    for row in [head] + lines:
        print(("  " + row[0].ljust(width[0]) +
               "".join("  " + c.rjust(w) for c, w in zip(row[1:], width[1:]))).rstrip())


def config_of(row):
    return tuple(row[k] for k in CONFIG)


def cells_of(rows):
    return {(r["path"], r["flows"]): r["value"] for r in rows}


def paths(rows):
    for config in dict.fromkeys(map(config_of, rows)):
        mine = [r for r in rows if config_of(r) == config]
        floor = next(r["value"] for r in mine if r["path"] == "floor")
        flows = sorted({r["flows"] for r in mine})
        cells = cells_of(mine)
        for r in mine:
            r["above_floor"] = round(r["value"] - floor, 1)
        family, proto, nat, tag = config
        print(f"\n{family.replace('ipv', 'IPv')} {proto.upper()}"
              f"{' NAT' if nat == 'nat' else ''}{', VLAN tag' if tag == 'vlan' else ''}: "
              "instructions a packet, and above the floor")
        table(["flows"] + [f for n in flows for f in (f"{n:,}", "")],
              [[p] + [f for n in flows
                      for f in ((f"{cells[p, n]:.0f}", f"+{cells[p, n] - floor:.0f}")
                                if (p, n) in cells else ("", ""))]
               for p in ORDER if any((p, n) in cells for n in flows)])


def others(kind, rows, missing):
    mine = [r for r in rows if r["kind"] == kind]
    if mine:
        print(f"\n{TITLES[kind]}: {UNITS[kind]}")
        flows = sorted({r["flows"] for r in mine})
        cells = cells_of(mine)
        digits = 2 if kind == "scaling" else 1
        table(["flows"] + [f"{n:,}" for n in flows],
              [[p] + [f"{cells[p, n]:.{digits}f}" if (p, n) in cells else "" for n in flows]
               for p in dict.fromkeys(r["path"] for r in mine)])
    for m in missing:
        if m["kind"] == kind:
            print(f"\n{TITLES[kind]}: not measured: {m['reason']}")


def same(r):
    """What makes a row of two kernels the same"""
    return (r["kind"], r["path"], r["flows"]) + tuple(r.get(k) for k in CONFIG)


def kernels(stock, ours):
    """The slow path of the unpatched kernel against ours, with nobody snooping"""
    ours = {same(r): r for r in ours}
    lines = []
    for r in stock:
        mine = ours.get(same(r))
        if not mine or (r["kind"] == "path" and r["path"] in SLOW): # "slow" has more boots
            continue
        mine["against_stock"] = round(mine["value"] / r["value"], 4)
        lines.append([r["path"], f"{r['flows']:,}", f"{r['value']:.1f}",
                      f"{mine['value']:.1f}", f"{mine['against_stock']:.3f}"])
    if lines:
        print("\nnobody snoops: the unpatched kernel, ours, and times")
        table(["", "flows", "unpatched", "ours", "times"], lines)


def goals(rows):
    """What must come out, as far as these rows say"""
    path = {config_of(r): {} for r in rows if r["kind"] == "path"}
    for r in rows:
        if r["kind"] == "path":
            path[config_of(r)][r["path"], r["flows"]] = r.get("above_floor", 0)
    alone = cells_of(r for r in rows if r["kind"] == "map")
    native = cells_of(r for r in rows if r["kind"] == "native")
    control = cells_of(r for r in rows if r["kind"] == "control")
    memory = [r["value"] for r in rows if r["kind"] == "memory"]
    found = []

    def goal(text, bound, figure, digits=0):
        try:
            value = figure()
        except (KeyError, ValueError):
            return
        state = "met" if value <= bound else f"missed by {value - bound:.{digits + 1}f}"
        found.append({"goal": text, "at_most": bound, "value": round(value, digits + 1)})
        lines.append([text, f"{bound:.{digits}f}", f"{value:.{digits}f}", state])

    lines = []
    four, six = path.get(MAIN, {}), path.get(("ipv6",) + MAIN[1:], {})
    for n in sorted({k[1] for k in four}):
        goal(f"xdp_ct above the floor, IPv4 UDP NAT, {n:,}", 375, lambda: four["xdp_ct", n])
    for n in sorted({k[1] for k in six}):
        goal(f"the same, IPv6, {n:,}", 450, lambda: six["xdp_ct", n])
    goal("counters", 60, lambda: max(p["xdp_ct+counters", n] - p["xdp_ct", n]
                                     for p in path.values() for name, n in p if name == "xdp_ct"))
    for n in sorted({k[1] for k in alone}):
        goal(f"hit against the hash map's, {n:,}", 1,
             lambda: alone["flowmap-hit", n] / alone["hash-hit", n], 2)
    for n in sorted({k[1] for k in native}):
        goal(f"the same by the clock, caches included, {n:,}", 1,
             lambda: native["flowmap-hit", n] / native["hash-hit", n], 2)
    goal("hit, 1,000,000 against 1,000", 1.1,
         lambda: alone["flowmap-hit", 1000000] / alone["flowmap-hit", 1000], 2)
    goal("a flow opened, one map against none", 1.1,
         lambda: control["open,1-maps", 20000] / control["open,0-maps", 20000], 2)
    goal("slow path, against the unpatched kernel", 1,
         lambda: round(max(r["against_stock"] for r in rows if r["path"] in SLOW and
                           r["kind"] in ("slow", "control") and "against_stock" in r), 2), 2)
    goal("memory a flow", 384, lambda: max(memory))
    if lines:
        print("\ngoals")
        table(["", "at most", "is", ""], lines)
    return found


def chart_data(rows, name):
    """A line for each path, of the main traffic: instructions by number of flows"""
    mine = cells_of(r for r in rows if r["kind"] == "path" and config_of(r) == MAIN)
    flows = sorted({n for _, n in mine})
    with open(name, "w", encoding="ascii") as f:
        f.write("path " + " ".join(f'"{n:,}"' for n in flows) + "\n")
        for p in ORDER:
            if p not in NO_BAR and any((p, n) in mine for n in flows):
                f.write(p + " " + " ".join(str(mine.get((p, n), "NaN")) for n in flows) + "\n")


def main():
    info, rows, missing = read()
    ours = [r for r in rows if r["kernel"] == "flowmap"]
    paths([r for r in ours if r["kind"] == "path"])
    for kind in TITLES:
        others(kind, ours, missing)
    kernels([r for r in rows if r["kernel"] == "stock"], ours)
    found = goals(ours) if any(r["kind"] != "path" for r in ours) else []
    with open(sys.argv[1], "w", encoding="ascii") as f:
        json.dump({"info": info, "spread_bound": {"instructions": SPREAD, "end": SPREAD_END,
                                                     "wall": SPREAD_WALL}, "goals": found,
                   "rows": rows + missing}, f, indent=1)
        f.write("\n")
    if len(sys.argv) > 2:
        chart_data(ours, sys.argv[2])
    print("\n" + ", ".join(f"{k} {v}" for k, v in info.items()))


main()
