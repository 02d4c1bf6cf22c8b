#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Random sequences of what user space can do with maps of modular types, by two
# processes at once while connections come and go: fuzz_maps.sh [STEPS [SEED]]

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

hosts
ruleset
modprobe -a bpf_map_toy bpf_map_bare nf_flow_table_bpf_flowmap
cases python3 "$TESTS/fuzz_maps.py" "${1:-2000}" "${2:-$RANDOM}"
finish
