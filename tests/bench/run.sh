#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# run.sh [quick|demo]: make bench, make bench-quick, the end of make demo. Has
# paths.sh measure in the guest, one instruction a nanosecond, on our kernel and,
# without quick, on the unpatched one, and um/run.sh by the clock; a guest under KVM,
# too, where there is KVM. Prints tables; all figures go to build/bench.json, the main
# paths as a chart to build/bench.svg (quick: bench-quick.*). quick fails if it takes
# more than 5 minutes. SEED: which flow comes first.

# shellcheck source=tests/vm/lib.sh
. "$(dirname "$0")/../vm/lib.sh"
set -o pipefail

here=$REPO/tests/bench
log=$LOG/bench.log
seed=${SEED:-1}
make -C "$here" O="$BUILD/bench" > "$log" 2>&1 ||
	die "tests/bench: $(grep -m1 -E 'error:|Error' "$log"), see $log"

# guest VARIANT RUNS PACKETS CONFIG...: see paths.sh
guest()
{
	VM_MEM=${VM_MEM:-4096} "$REPO/tests/vm/run" --icount --kernel "$1" \
		"$here/paths.sh" "$2" "$3" "$seed" "${@:4}"
}

# by_clock: the map's rows under KVM, if tests/vm/run would choose it
by_clock()
{
	if [ "$ACCEL" = kvm ] || { [ -z "$ACCEL" ] &&
				   grep -qwE 'vmx|svm' /proc/cpuinfo && [ -w /dev/kvm ]; }; then
		VM_MEM=${VM_MEM:-4096} "$REPO/tests/vm/run" --smp 1 "$here/paths.sh" 5 20480 \
			"$seed" 4-udp-nat-untagged:1,1000,100000,1000000 |
			sed -n 's/^row kind=map/row kind=kvm/p'
	else
		echo "none kind=kvm this machine has no KVM"
	fi
}

out=$BUILD/bench
case $1 in
demo)
	out=$BUILD/demo
	rows() { guest flowmap 3 6400 4-udp-nat-untagged:1; }
	;;
quick)
	out=$BUILD/bench-quick
	rows() { guest flowmap 3 12800 4-udp-nat-untagged:1,1000 6-udp-nat-untagged:1; }
	;;
"")
	"$REPO/tests/vm/kernel.sh" stock || exit 1
	rows()
	{
		guest flowmap 3 20480 control && guest stock 3 20480 control &&
		for _ in 1 2 3; do # hash tables are seeded anew in each boot
			guest flowmap 3 20480 slow && guest stock 3 20480 slow || return
		done &&
		guest flowmap 3 20480 4-udp-nat-untagged:1,1000,100000,1000000 \
			6-udp-nat-untagged:1,1000 4-tcp-nat-untagged:1 6-tcp-nat-untagged:1 \
			4-udp-plain-untagged:1 6-udp-plain-untagged:1 \
			4-udp-nat-vlan:1 6-udp-nat-vlan:1 &&
		guest stock 3 20480 4-udp-nat-untagged:1,1000 &&
		"$here/um/run.sh" && by_clock &&
		if [ "$(nproc)" -gt 1 ]; then
			VM_THREAD=multi "$REPO/tests/vm/run" "$here/paths.sh" 5 3200 "$seed" \
				4-udp-nat-untagged:1000
		else
			echo "none kind=scaling this machine has one processor"
		fi
	}
	;;
*)
	die "run.sh [quick|demo]"
	;;
esac

rm -f "$out.json" "$out.svg"
{
	echo "info qemu=$(qemu-system-x86_64 --version | awk '{ print $4; exit }')" \
		"gcc=$(gcc -dumpversion) clang=$(clang -dumpversion)" &&
	rows
} | tee "$out.rows" | "$here/report.py" "$out.json.tmp" "$out.dat" || exit 1
mv "$out.json.tmp" "$out.json"
[ "$1" = demo ] && exit
echo "this took $SECONDS s"
gnuplot -e "data='$out.dat'; chart='$out.svg'" "$here/chart.gp" >> "$log" 2>&1 ||
	die "gnuplot: $(tail -1 "$log"), see $log"
[ "$1" != quick ] || [ "$SECONDS" -le 300 ] || die "bench-quick is to take 300 s at most"
