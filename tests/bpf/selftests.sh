#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In a guest: the kernel's own test_verifier and test_maps, and what the verifier says
# of the programs that its test_progs has for it, as built by the Makefile here;
# tests/vm/check-kernel.sh compares what two kernels print.

cd "${FLOWMAP_BUILD:?}/bpf" || exit 1
sysctl -qw kernel.unprivileged_bpf_disabled=0
ulimit -l unlimited
# all that the two say must end with what they say at their end
./test_verifier 2>&1 | grep -aE '^#[0-9]+/[up] |^Summary' | sed 's/^/verifier: /' |
	tee /tmp/verifier
./test_maps 2>&1 | grep -aE 'PASS|FAIL|OK|SKIP' | sed 's/^/maps: /' | tee /tmp/maps
./veristat -e file,prog,verdict,insns,states -s file,prog -o csv progs/*.bpf.o 2>&1 |
	sed 's/^/progs: /'
tail -n 1 /tmp/verifier | grep -q Summary && tail -n 1 /tmp/maps | grep -q 'test_maps: OK'
