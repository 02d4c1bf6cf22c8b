# SPDX-License-Identifier: GPL-2.0
#
# Of the data races that a kernel with KCSAN reports (kernel.kcsan.config), between
# two lines of =, those whose two stacks have neither our functions nor those of the
# flowtable that we change are for others
/==========$|==========\r$/ {
	if (!inside) {
		inside = 1
		block = ""
	} else {
		inside = 0
		if (block !~ /KCSAN: / ||
		    block ~ /flowmap|modular_map|flow_snoop|flow_offload|flow_table|flow_announce|toy_/)
			printf "%s", block
	}
	next
}
inside { block = block $0 "\n"; next }
{ print }
END { if (inside) printf "%s", block }
