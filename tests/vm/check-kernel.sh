#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# make check-kernel: what the patches leave as it was. The built kernel against
# the same source and configuration without the patches (stock): the instructions
# of everything on the way of a packet and of a look-up, and what the kernel's own
# test_verifier, test_maps and verifier's programs of test_progs say. And a kernel with the patches but
# CONFIG_BPF_MODULAR_MAPS=n (off). Prints KTAP.

# shellcheck source=tests/vm/lib.sh
. "$(dirname "$0")/lib.sh"

vm=$REPO/tests/vm
out=$BUILD/check-kernel
objects="kernel/bpf/arena kernel/bpf/arraymap kernel/bpf/bloom_filter
	 kernel/bpf/bpf_cgrp_storage kernel/bpf/bpf_local_storage kernel/bpf/bpf_lru_list
	 kernel/bpf/bpf_struct_ops kernel/bpf/bpf_task_storage kernel/bpf/core
	 kernel/bpf/cpumap kernel/bpf/devmap kernel/bpf/dispatcher kernel/bpf/hashtab
	 kernel/bpf/helpers kernel/bpf/local_storage kernel/bpf/lpm_trie kernel/bpf/map_in_map
	 kernel/bpf/percpu_freelist kernel/bpf/queue_stack_maps kernel/bpf/reuseport_array
	 kernel/bpf/ringbuf kernel/bpf/stackmap net/xdp/xskmap net/core/bpf_sk_storage
	 net/core/dev net/core/filter net/core/sock_map net/core/xdp
	 net/bpf/test_run net/sched/act_bpf net/sched/cls_bpf drivers/net/tun
	 drivers/net/veth drivers/net/virtio_net
	 net/ipv4/ip_forward net/ipv4/ip_input net/ipv4/ip_output net/ipv4/route
	 net/netfilter/nf_conntrack_core net/netfilter/nf_conntrack_proto_tcp
	 net/netfilter/nf_conntrack_proto_udp net/netfilter/nf_nat_core
	 net/netfilter/nf_tables_core net/netfilter/nft_masq"
n=0
bad=0

# result STATUS NAME
result()
{
	n=$((n + 1))
	if [ "$1" = 0 ]; then
		echo "ok $n - $2"
	else
		echo "not ok $n - $2"
		bad=1
	fi
}

# same NAME FILE FILE: no difference, of which else the first lines are shown
same()
{
	[ -s "$2" ] && diff "$2" "$3" > "$out/diff"
	result $? "$1"
	head -20 "$out/diff" | sed 's/^/# /'
}

for variant in flowmap stock off; do
	"$vm/kernel.sh" "$variant" || exit 1
done
"$vm/rootfs.sh" && "$vm/progs.sh" || exit 1
make -C "$REPO/tests/bpf" O="$BUILD/bpf" selftests > "$LOG/selftests.log" 2>&1 ||
	die "tests/bpf: $(grep -m1 -E 'error:|Error' "$LOG/selftests.log"), see $LOG/selftests.log"
rm -rf "$out" && mkdir -p "$out" || exit 1

echo "KTAP version 1"
for o in $objects; do
	for variant in flowmap stock; do
		objdump -dr --no-show-raw-insn "$BUILD/kernel/$variant/$o.o" |
			sed '/file format/d' > "$out/$variant.text"
	done
	same "same instructions: $o.c ($(grep -c '>:$' "$out/flowmap.text") functions)" \
		"$out/flowmap.text" "$out/stock.text"
done

# with as little as it takes to tell one case from another
for variant in flowmap stock; do
	"$vm/run" --kernel "$variant" "$REPO/tests/bpf/selftests.sh" > "$out/$variant.log"
	result $? "the kernel's selftests run on the kernel $variant"
done
for t in verifier maps progs; do
	for variant in flowmap stock; do
		grep "^$t: " "$out/$variant.log" > "$out/$variant.$t"
	done
	same "selftests: $t: the same results ($(wc -l < "$out/flowmap.$t") lines)" \
		"$out/flowmap.$t" "$out/stock.$t"
	tail -1 "$out/flowmap.$t" | sed 's/^/# /'
done

! grep -q FLOWMAP=. "$BUILD/kernel/off/.config"
result $? "CONFIG_BPF_MODULAR_MAPS=n: the flowmap cannot be chosen"
"$vm/run" --kernel off "$REPO/tests/bpf/off.sh" > "$out/off.log" 2>&1
result $? "CONFIG_BPF_MODULAR_MAPS=n: boots, and refuses a flowmap by EINVAL"
sed 's/^/# /' "$out/off.log"
echo "1..$n"
exit $bad
