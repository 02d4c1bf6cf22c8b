#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The kernel's own test cases for a hash map, on the hash that a module brings
# (modules/bpf_map_toy.c). They come from test_maps (bpf/hash_map.c). An argument
# is another type's number; 1 is the kernel's hash. On a kernel with sanitizers those
# two are left out that would take hours, of many processes at once: fuzz_maps and
# modular_maps have some.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

[ $PATIENCE = 1 ] || set -- "${1:-98304}" 7
cases "$BUILD/bpf/hash_map" "${@:-98304}"
finish
