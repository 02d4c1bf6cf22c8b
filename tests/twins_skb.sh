#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# twins.sh with xdp_ct in generic mode, for fewer frames

exec "$(dirname "$0")/twins.sh" --skb "${@:-10000}"
