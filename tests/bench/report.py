#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""report.py JSON: rows of paths.sh and maps.sh on standard input to a table

Samples of a row are runs of the same: the median is the figure, and a row whose
samples lie further apart than SPREAD is refused, as are times that are not
instructions. All is written to the file JSON.
"""
import json
import statistics
import sys

SPREAD = 0.01  # (largest - smallest) / median
CLOCK = 0.005  # a nanosecond is an instruction, timer interrupts aside

UNITS = {"path": "instructions a packet", "map": "instructions a look-up",
         "control": "instructions a flow", "memory": "bytes a flow"}


def fail(text):
    sys.exit(f"error: {text}")


def read():
    info, rows = {}, []
    for line in sys.stdin:
        kind, *fields = line.split()
        if kind not in ("info", "row"):
            print(line, end="", file=sys.stderr)
            continue
        fields = dict(f.split("=", 1) for f in fields)
        if kind == "info":
            info.update(fields)
            continue
        samples = [float(s) for s in fields.pop("samples").split(",")]
        row = {k: int(v) if v.isdigit() else v for k, v in fields.items()}
        row.setdefault("kind", "path")
        row["unit"] = UNITS[row["kind"]]
        row["value"] = round(statistics.median(samples), 1)
        row["samples"] = samples
        rows.append(row)
        print("  " + " ".join(fields.values()), row["value"], file=sys.stderr, flush=True)
        spread = (max(samples) - min(samples)) / row["value"]
        if spread > SPREAD:
            fail(f"{' '.join(fields.values())}: runs differ by {spread:.1%}, over "
                 f"{SPREAD:.0%}: {samples}")
    if not rows:
        fail("no rows")
    return info, rows


def table(head, lines):
    width = [max(len(row[i]) for row in [head] + lines) for i in range(len(head))]
    for row in [head] + lines:
        print("  " + row[0].ljust(width[0]) +
              "".join("  " + c.rjust(w) for c, w in zip(row[1:], width[1:])))


def paths(rows):
    configs = dict.fromkeys((r["family"], r["proto"], r["nat"], r["tag"]) for r in rows)
    for config in configs:
        mine = [r for r in rows if (r["family"], r["proto"], r["nat"], r["tag"]) == config]
        floor = next(r["value"] for r in mine if r["path"] == "floor")
        flows = sorted({r["flows"] for r in mine})
        cells = {(r["path"], r["flows"]): r["value"] for r in mine}
        for r in mine:
            r["above_floor"] = round(r["value"] - floor, 1)
        family, proto, nat, tag = config
        print(f"\n{family.replace('ipv', 'IPv')} {proto.upper()}"
              f"{' NAT' if nat == 'nat' else ''}{', VLAN tag' if tag == 'vlan' else ''}: "
              "instructions a packet, and above the floor")
        order = ["floor", "xdp_ct", "xdp_ct+counters", "xdp-forward", "forward",
                 "flowtable", "conntrack"]
        table(["flows"] + [f for n in flows for f in (f"{n:,}", "")],
              [[p] + [f for n in flows
                      for f in ((f"{cells[p, n]:.0f}", f"+{cells[p, n] - floor:.0f}")
                                if (p, n) in cells else ("", ""))]
               for p in order if any((p, n) in cells for n in flows)])


def others(kind, rows):
    if not rows:
        return
    print(f"\n{kind}: {UNITS[kind]}")
    flows = sorted({r["flows"] for r in rows})
    cells = {(r["path"], r["flows"]): r["value"] for r in rows}
    table(["flows"] + [f"{n:,}" for n in flows],
          [[p] + [f"{cells[p, n]:.1f}" if (p, n) in cells else "" for n in flows]
           for p in dict.fromkeys(r["path"] for r in rows)])


def main():
    info, rows = read()
    clock = float(info["clock"])
    if abs(clock - 1) > CLOCK:
        fail(f"an instruction takes {clock} ns: boot the guest with tests/vm/run --icount")
    paths([r for r in rows if r["kind"] == "path"])
    for kind in list(UNITS)[1:]:
        others(kind, [r for r in rows if r["kind"] == kind])
    with open(sys.argv[1], "w", encoding="ascii") as f:
        json.dump({"info": info, "spread_bound": SPREAD, "rows": rows}, f, indent=1)
        f.write("\n")
    print("\n" + ", ".join(f"{k} {v}" for k, v in info.items()))


main()
