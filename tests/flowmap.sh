#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The flowmap: what it publishes of a flow, for how long, and what it does for
# whom. The cases are in flowmap.py; programs' look-ups come from one that is
# given a key as its frame (lib.py, Lookup).

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

hosts
ruleset
cases python3 "$TESTS/flowmap.py"
cleanup
wait_until rmmod nf_flow_table_bpf_flowmap
equal "the module unloads when all is gone" "" "$(lsmod | grep flowmap)"
finish
