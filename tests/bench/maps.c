// SPDX-License-Identifier: GPL-2.0-only
/*
 * maps FLOWS LOOKUPS RUNS SEED: what a look-up costs, in the router's namespace
 *
 * To be run by 'bench -w ... run', where FLOWS connections of IPv4 UDP are open: makes
 * a flowmap, copies it to a hash map, and prints rows of nanoseconds a look-up,
 * those of an empty loop taken off. Dies unless all hit, or miss. The same
 * look-ups are made first once, so that no flow is due for its refresh; "hit,
 * refresh" is with all that are. Before that: what it takes to read all flows.
 */
#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/bpf_flowmap.h>

#include "bench.h"
#include "maps.skel.h"

#define BATCH	4096	/* of entries */
#define DUMPS	3

static struct maps_bpf *skel;
static __u32 first; /* flow */

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

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

/* Return: entries, in keys[] and values[] */
static __u32 dump_batch(struct bpf_flowmap_key *keys, struct bpf_flowmap_value *values,
			__u32 room)
{
	int map = bpf_map__fd(skel->maps.flowmap), err = 0;
	struct bpf_flowmap_key at;
	__u32 n, done = 0;

	while (!err) {
		n = room - done < BATCH ? room - done : BATCH;
		if (!n)
			break;
		err = bpf_map_lookup_batch(map, done ? &at : NULL, &at, keys + done,
					   values + done, &n, NULL);
		if (err && err != -ENOENT)
			die("BPF_MAP_LOOKUP_BATCH", err);
		done += n;
	}
	return done;
}

/* The same key by key, as bpftool does it */
static __u32 dump_keys(struct bpf_flowmap_key *keys, struct bpf_flowmap_value *values,
		       __u32 room)
{
	int map = bpf_map__fd(skel->maps.flowmap);
	__u32 n = 0;

	while (n < room && !bpf_map_get_next_key(map, n ? keys + n - 1 : NULL, keys + n) &&
	       !bpf_map_lookup_elem(map, keys + n, values + n))
		n++;
	return n;
}

static void dump_row(const char *name, __u32 flows, struct bpf_flowmap_key *keys,
		     struct bpf_flowmap_value *values,
		     __u32 (*dump)(struct bpf_flowmap_key *, struct bpf_flowmap_value *, __u32))
{
	double start;
	int i;

	printf("row kind=dump path=%s flows=%u samples=", name, flows);
	for (i = -1; i < DUMPS; i++) { /* the first is not like the others */
		start = now();
		if (dump(keys, values, 2 * flows) != 2 * flows) {
			fprintf(stderr, "maps: not all of %u flows by %s\n", flows, name);
			exit(1);
		}
		if (i >= 0)
			printf("%s%.1f", i ? "," : "", (now() - start) / flows);
	}
	putchar('\n');
}

/* From the flowmap to the hash map */
static void copy(__u32 flows)
{
	struct bpf_flowmap_key *keys = calloc(2 * flows, sizeof(*keys));
	struct bpf_flowmap_value *values = calloc(2 * flows, sizeof(*values));
	int to = bpf_map__fd(skel->maps.hash), err;
	__u32 i;

	if (!keys || !values)
		die("no memory", 0);
	/* pages that are there */
	memset(keys, 1, 2 * flows * sizeof(*keys));
	memset(values, 1, 2 * flows * sizeof(*values));
	/* of fewer it were the time to walk empty buckets */
	if (flows >= 1000)
		dump_row("batch", flows, keys, values, dump_batch);
	else
		dump_batch(keys, values, 2 * flows);
	if (flows >= 1000 && flows <= 100000) /* of more it takes minutes */
		dump_row("next-key", flows, keys, values, dump_keys);
	for (i = 0; i < 2 * flows; i++) {
		keys[i].len = 46;
		err = bpf_map_update_elem(to, keys + i, values + i, BPF_ANY);
		if (err)
			die("copy", err);
		if (!(values[i].flags & BPF_FLOWMAP_REPLY))
			skel->bss->template = keys[i];
	}
	free(keys);
	free(values);
}

/* Nanoseconds a look-up, of flows that have been looked up within the second, or not */
static double measure(struct bpf_program *prog, __u32 lookups, bool miss, bool idle)
{
	skel->bss->next = first;
	if (idle)
		sleep(2);
	else
		loop(prog, lookups, miss);
	skel->bss->next = first;
	return loop(prog, lookups, miss);
}

int main(int argc, char **argv)
{
	const struct sched_param fifo = { .sched_priority = 50 };
	__u32 flows, lookups, runs, entries, i;
	size_t row;
	int err;

	if (argc != 5) {
		fprintf(stderr, "usage: maps FLOWS LOOKUPS RUNS SEED\n");
		return 2;
	}
	flows = atoi(argv[1]);
	lookups = atoi(argv[2]);
	runs = atoi(argv[3]);
	first = first_flow(atoi(argv[4]), flows);

	skel = maps_bpf__open();
	if (!skel)
		die("maps.bpf.o", 0);
	entries = flows * 2 > 65536 ? flows * 2 : 65536;
	bpf_map__set_max_entries(skel->maps.flowmap, entries);
	bpf_map__set_max_entries(skel->maps.hash, entries);
	err = maps_bpf__load(skel);
	if (err)
		die("maps.bpf.o", err);
	if (sched_setscheduler(0, SCHED_FIFO, &fifo))
		die("SCHED_FIFO", 0);
	copy(flows);
	skel->data->flows = flows;
	skel->data->step = STEP;

	struct {
		const char *name;
		struct bpf_program *prog;
		bool miss;
		bool idle;
	} rows[] = {
		{ "flowmap-hit", skel->progs.loop_flowmap, false, false },
		{ "flowmap-hit+refresh", skel->progs.loop_flowmap, false, true },
		{ "flowmap-miss", skel->progs.loop_flowmap, true, false },
		{ "hash-hit", skel->progs.loop_hash, false, false },
		{ "hash-miss", skel->progs.loop_hash, true, false },
		{ "bpf_xdp_flow_lookup-hit", skel->progs.loop_kfunc, false, false },
		{ "bpf_xdp_flow_lookup-miss", skel->progs.loop_kfunc, true, false },
	};
	for (row = 0; row < sizeof(rows) / sizeof(*rows); row++) {
		if (rows[row].idle && flows < lookups)
			continue; /* not all look-ups are the first */
		printf("row kind=map path=%s flows=%u samples=", rows[row].name, flows);
		for (i = 0; i < runs; i++) {
			double none = loop(skel->progs.loop_none, lookups, rows[row].miss);

			printf("%s%.1f", i ? "," : "",
			       measure(rows[row].prog, lookups, rows[row].miss,
				       rows[row].idle) - none);
		}
		putchar('\n');
	}
	return 0;
}
