#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# A flow's life in the map beside conntrack's: states, accounting, zones, and what
# many flows, maps and CPUs at once make of it. The cases are in life.py.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

hosts
hosts6
ruleset
cases python3 "$TESTS/life.py"
cleanup
finish
