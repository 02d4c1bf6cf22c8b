#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The claims of Documentation/bpf/flowmap_security.rst, each with a case: who may
# do what with a flowmap, what a container sees, what a value tells, and what an
# attacker on the wire gets. The cases are in security.py.

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

hosts
hosts6
ruleset
on router nft add rule inet router prerouting \
	iifname rs ip6 daddr fd00:2::1 tcp dport 8080 dnat ip6 to '[fd00:1::2]:80'
hosts 2 # a container's network, with the same devices and addresses
ruleset router2
succeeds "attach" on router xdp_ct attach rc rs
cases python3 "$TESTS/security.py"
succeeds "detach" on router xdp_ct detach rc rs
cleanup
finish
