#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Two at once, in forced order: one is held inside the flowmap (kprobe_hold, in
# tests/modules/) while the other changes what it rests on. The cases are in
# races.py; the last one deletes the router.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

hosts
ruleset
cases python3 "$TESTS/races.py"
cleanup
wait_until rmmod nf_flow_table_bpf_flowmap
equal "the module unloads when all is gone" "" "$(lsmod | grep flowmap)"
finish
