#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Flows under VLANs, PPPoE, bridges and bonds, IPv4 and IPv6, NATed, by xdp_ct on
# the physical devices: each pair of encapsulations, the client's and the
# server's, is a run of encap.py with hosts of its own. encap.sh [PAIR...]

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

[ $# -gt 0 ] || set -- plain:plain vlan:qinq qinq:pppoe-vlan bridge:vlan bridge-pvid:pppoe \
	bridge-tagged:bridge bridge-trunk:plain bond:vlan-bridge
for pair; do
	hosts
	cases python3 "$TESTS/encap.py" "${pair%:*}" "${pair#*:}"
	cleanup
done
finish
