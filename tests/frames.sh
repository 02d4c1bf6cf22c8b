#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What xdp_ct does with a frame: BPF_PROG_TEST_RUN on the program that is on the
# router's device gives the verdict and the bytes, exact and without traffic.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

hosts
neighbours
ruleset
succeeds "attach" on router xdp_ct attach rc rs --counters
cases python3 "$TESTS/frames.py"
cleanup
finish
