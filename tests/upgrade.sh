#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Connections outlive what is done to a router: the program and the module
# replaced, the ruleset reloaded, its conntrack table full, and that it forgets
# all, as when it boots. The cases are in upgrade.py.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

hosts
ruleset
{ echo flush ruleset; on router nft list ruleset; } > /tmp/ruleset
cases python3 "$TESTS/upgrade.py"
cleanup
finish
