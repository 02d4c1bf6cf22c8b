#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In a guest whose kernel has the patches, but no modular maps

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/../lib.sh"

equal "no registrations" "" "$(ls /sys/kernel/bpf/modular_maps 2> /dev/null)"
equal "no module" "" "$(modinfo -n nf_flow_table_bpf_flowmap 2> /dev/null)"
refused "a flowmap is EINVAL" "EINVAL|Invalid argument" \
	python3 -c 'from lib import Map; Map()'
succeeds "a hash is made" \
	bpftool map create /sys/fs/bpf/m type hash key 64 value 112 entries 1024 name m
hosts
refused "xdp_ct says what is missing" "CONFIG_BPF_MODULAR_MAPS|modular maps" \
	on router xdp_ct attach rc rs
finish
