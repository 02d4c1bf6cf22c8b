// SPDX-License-Identifier: GPL-2.0-only
/*
 * maps FLOWS LOOKUPS RUNS: what a look-up costs, in the router's namespace
 *
 * To be run where 'bench setup' has opened FLOWS connections of IPv4 UDP: makes
 * a flowmap, copies it to a hash map, and prints rows of nanoseconds a look-up,
 * those of an empty loop taken off. Dies unless all hit, or miss. Each look-up
 * is the first of its flow in a second, if there are as many flows.
 */
#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/bpf_flowmap.h>

#include "bench.h"
#include "maps.skel.h"

#define STEP	7919

static struct maps_bpf *skel;

static void die(const char *what, int err)
{
	fprintf(stderr, "maps: %s: %s\n", what, strerror(err < 0 ? -err : errno));
	exit(1);
}

static double loop(struct bpf_program *prog, __u32 lookups, bool miss)
{
	struct xdp_md ctx = { .data_end = 64, .ingress_ifindex = if_nametoindex("r0") };
	__u8 data[64] = {};
	int err;

	LIBBPF_OPTS(bpf_test_run_opts, run, .data_in = data, .data_size_in = sizeof(data),
		    .ctx_in = &ctx, .ctx_size_in = sizeof(ctx), .repeat = 1);

	skel->bss->miss = miss;
	skel->data->lookups = lookups;
	err = bpf_prog_test_run_opts(bpf_program__fd(prog), &run);
	if (err)
		die("BPF_PROG_TEST_RUN", err);
	if (skel->bss->hits != (miss && prog != skel->progs.loop_none ? 0 : lookups)) {
		fprintf(stderr, "maps: %s%s: %u of %u look-ups hit\n",
			bpf_program__name(prog), miss ? ", misses" : "", skel->bss->hits,
			lookups);
		exit(1);
	}
	return (double)(skel->bss->end - skel->bss->start) / lookups;
}

static void copy(__u32 flows)
{
	struct bpf_flowmap_key key, *last = NULL;
	int from = bpf_map__fd(skel->maps.flowmap), to = bpf_map__fd(skel->maps.hash), err;
	struct bpf_flowmap_value value;
	__u32 n = 0;

	while (!bpf_map_get_next_key(from, last, &key)) {
		struct bpf_flowmap_key with_facts = key;

		err = bpf_map_lookup_elem(from, &key, &value);
		with_facts.len = 46;
		if (!err)
			err = bpf_map_update_elem(to, &with_facts, &value, BPF_ANY);
		if (err)
			die("copy", err);
		if (!(value.flags & BPF_FLOWMAP_REPLY)) {
			n++;
			skel->bss->template = with_facts;
		}
		last = &key;
	}
	if (n != flows) {
		fprintf(stderr, "maps: %u flows, not %u\n", n, flows);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	const struct sched_param fifo = { .sched_priority = 50 };
	__u32 flows, lookups, runs, entries, i;
	int err, miss;
	size_t p;

	if (argc != 4) {
		fprintf(stderr, "usage: maps FLOWS LOOKUPS RUNS\n");
		return 2;
	}
	flows = atoi(argv[1]);
	lookups = atoi(argv[2]);
	runs = atoi(argv[3]);

	skel = maps_bpf__open();
	if (!skel)
		die("maps.bpf.o", 0);
	entries = flows * 2 > 65536 ? flows * 2 : 65536;
	bpf_map__set_max_entries(skel->maps.flowmap, entries);
	bpf_map__set_max_entries(skel->maps.hash, entries);
	err = maps_bpf__load(skel);
	if (err)
		die("maps.bpf.o", err);
	copy(flows);
	skel->data->flows = flows;
	skel->data->step = STEP;
	if (sched_setscheduler(0, SCHED_FIFO, &fifo))
		die("SCHED_FIFO", 0);

	struct {
		const char *name;
		struct bpf_program *prog;
	} progs[] = {
		{ "flowmap", skel->progs.loop_flowmap },
		{ "hash", skel->progs.loop_hash },
		{ "bpf_xdp_flow_lookup", skel->progs.loop_kfunc },
	};
	for (p = 0; p < sizeof(progs) / sizeof(*progs); p++) {
		for (miss = 0; miss < 2; miss++) {
			printf("row kind=map path=%s-%s flows=%u samples=", progs[p].name,
			       miss ? "miss" : "hit", flows);
			for (i = 0; i < runs; i++) {
				double none = loop(skel->progs.loop_none, lookups, miss);

				sleep(2); /* all flows are due for a refresh */
				printf("%s%.1f", i ? "," : "",
				       loop(progs[p].prog, lookups, miss) - none);
			}
			putchar('\n');
		}
	}
	return 0;
}
