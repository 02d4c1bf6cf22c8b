# SPDX-License-Identifier: GPL-2.0
#
# Of the data races that a kernel with KCSAN reports (kernel.kcsan.config), those that
# our functions have no part in are for others
/KCSAN: /{
/flowmap\|modular_map\|flow_snoop\|toy_/!d
}
