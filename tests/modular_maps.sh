#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Map types in modules: registration, loading on demand, life, and what is
# refused. Two types beside the flowmap: bpf_map_toy, a hash, and bpf_map_bare,
# which can do nothing and is made wrong by its parameters (modules/).

# shellcheck source=tests/lib.sh
. "$(dirname "$0")/lib.sh"

SYS=/sys/kernel/bpf/modular_maps

# shellcheck disable=SC2317 # called by refused and succeeds
bare()
{
	insmod "$(modinfo -n bpf_map_bare)" "$@" # modprobe keeps quiet about EEXIST
}

# Registration: an errno for each mistake
refused "register: a number below the range" "range" bare type=$((0xffff))
refused "register: a number above the range" "range" bare type=$((0x20000))
refused "register: another ABI" "format" bare abi=2
refused "register: an empty name" "Invalid" bare name=
refused "register: a name with a capital" "Invalid" bare name=Bare
refused "register: a name with a slash" "Invalid" bare name=a/b
refused "register: a name with dots" "Invalid" bare name=..
refused "register: a name of 16 letters" "Invalid" bare name=abcdefghijklmnop
refused "register: a capability that there is not" "Invalid" bare cap=64
refused "register: a negative capability" "Invalid" bare cap=-1
refused "register: an unknown flag" "Invalid" bare flags=$((1 << 31))
refused "register: a map flag of the file descriptor" "Invalid" bare map_flags=$((1 << 3))
refused "register: no map_alloc" "Invalid" bare no_alloc=1
refused "register: no map_free" "Invalid" bare no_free=1
refused "register: no map_mem_usage" "Invalid" bare no_mem_usage=1
refused "register: no list of helpers" "Invalid" bare no_helpers=1
refused "register: a helper without its operation" "Invalid" bare helpers=1
refused "register: a helper of other types" "Invalid" bare helpers=51
refused "register: an operation of other types" "Invalid" bare redirect=1
equal "register: nothing of all that is left in sysfs" "" "$(ls $SYS)"
succeeds "register: a name of 15 letters" bare name=abcdefghijklmno
equal "register: its files" "helpers maps module prog_types type" \
	"$(cd $SYS/abcdefghijklmno && echo *)"
rmmod bpf_map_bare
modprobe bpf_map_toy
refused "register: a number that is taken" "exists" bare type=98304
refused "register: a name that is taken" "exists" bare name=toy
rmmod bpf_map_toy
succeeds "register: the mandatory operations are enough" bare
rmmod bpf_map_bare

cases python3 "$TESTS/modular_maps.py"
for m in bpf_map_toy bpf_map_bare nf_flow_table_bpf_flowmap; do
	wait_until rmmod $m
done
equal "unload: all types are gone" "" "$(ls $SYS; lsmod | grep -E 'bpf_map|flowmap')"
finish
