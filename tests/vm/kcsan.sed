# SPDX-License-Identifier: GPL-2.0
#
# Of the data races that a kernel with KCSAN reports (kernel.kcsan.config), those that
# neither our functions nor those of the flowtable that we change have a part in are
# for others
/KCSAN: /{
/flowmap\|modular_map\|flow_snoop\|flow_offload\|flow_table\|flow_announce\|toy_/!d
}
