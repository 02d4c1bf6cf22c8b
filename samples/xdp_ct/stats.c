// SPDX-License-Identifier: GPL-2.0-only
/*
 * xdp_ct stats: what the program counts, in all or each second
 *
 * The reasons have their names in the BTF of the program that counts, which may
 * be older or newer than this.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <bpf/btf.h>
#include <bpf/libbpf.h>

#include "xdp_ct.h"

struct count {			/* as in xdp_ct.bpf.c */
	__u64	packets;
	__u64	bytes;
};

static const char *reason_name(const struct btf *btf, __u32 reason, char *name, size_t size)
{
	static const char prefix[] = "FLOWMAP_";
	const struct btf_type *type;
	int id = btf ? btf__find_by_name_kind(btf, "flowmap_reason", BTF_KIND_ENUM) : -1;
	const char *s = NULL;
	char *c;

	type = id < 0 ? NULL : btf__type_by_id(btf, id);
	if (type && reason < btf_vlen(type))
		s = btf__name_by_offset(btf, btf_enum(type)[reason].name_off);
	if (!s || strncmp(s, prefix, strlen(prefix)))
		snprintf(name, size, "reason_%u", reason);
	else
		snprintf(name, size, "%s", s + strlen(prefix));
	for (c = name; *c; c++)
		if (*c >= 'A' && *c <= 'Z')
			*c += 'a' - 'A';
	return name;
}

/* {"forwarded": {"packets": ..., "bytes": ...}, "miss": ...}: those not 0, and what is
 * forwarded if it is counted
 */
static json_object *device_stats(const struct device *d)
{
	bool counted = d->flowmap.map_extra & BPF_FLOWMAP_COUNTERS;
	int cpus = libbpf_num_possible_cpus(), cpu;
	json_object *json = json_object_new_object();
	struct bpf_map_info info;
	struct count *counts;
	struct btf *btf;
	char name[64];
	__u32 reason;

	if (cpus < 0 || map_info(d->stats_fd, &info) || info.value_size != sizeof(*counts))
		return json;
	counts = calloc(cpus, sizeof(*counts));
	btf = btf__load_from_kernel_by_id(info.btf_id);
	for (reason = 0; counts && reason < info.max_entries; reason++) {
		json_object *one;

		if (bpf_map_lookup_elem(d->stats_fd, &reason, counts))
			break;
		for (cpu = 1; cpu < cpus; cpu++) {
			counts[0].packets += counts[cpu].packets;
			counts[0].bytes += counts[cpu].bytes;
		}
		if (reason ? !counts[0].packets : !counted)
			continue;
		one = json_object_new_object();
		add_number(one, "packets", counts[0].packets);
		add_number(one, "bytes", counts[0].bytes);
		json_object_object_add(json, reason_name(btf, reason, name, sizeof(name)), one);
	}
	btf__free(btf);
	free(counts);
	return json;
}

/* {"eth0": ..., "eth1": ...} */
static json_object *stats_get(void)
{
	struct device *devices;
	json_object *json;
	int num, i;

	num = devices_open(&devices, opt.names, opt.num_names);
	if (num < 0)
		return NULL;
	json = json_object_new_object();
	for (i = 0; i < num; i++) {
		if (devices[i].prog_fd < 0) {
			error("%s: xdp_ct is not attached: see xdp_ct status", devices[i].name);
			json_object_put(json);
			json = NULL;
			break;
		}
		json_object_object_add(json, devices[i].name, device_stats(&devices[i]));
	}
	devices_close(devices, num);
	if (!num) {
		error("xdp_ct is on no device of this network namespace: xdp_ct attach DEV");
		json_object_put(json);
		return NULL;
	}
	return json;
}

static __u64 member(json_object *json, const char *dev, const char *reason, const char *what)
{
	if (!json_object_object_get_ex(json, dev, &json) ||
	    !json_object_object_get_ex(json, reason, &json) ||
	    !json_object_object_get_ex(json, what, &json))
		return 0;
	return json_object_get_int64(json);
}

/* More than before; all, if a device's program and so its counters are new */
static __u64 since(json_object *now, json_object *before, const char *dev, const char *reason,
		   const char *what)
{
	__u64 a = member(before, dev, reason, what), b = member(now, dev, reason, what);

	return b < a ? b : b - a;
}

/* Totals, or with what was before, a second's of so many */
static void stats_print(json_object *now, json_object *before, double seconds)
{
	const char *per = before ? "/s" : "";

	json_object_object_foreach(now, dev, reasons) {
		__u64 bytes = since(now, before, dev, "forwarded", "bytes");
		__u64 aborted = since(now, before, dev, "aborted", "packets") / seconds + 0.5;
		__u64 packets = since(now, before, dev, "forwarded", "packets") / seconds + 0.5;
		bool none = true;

		if (!json_object_object_get_ex(reasons, "forwarded", NULL))
			printf("%s: forwarded not counted (attach --counters)", dev);
		else if (before)
			printf("%s: forwarded %llu packets/s %.0f bit/s", dev, packets,
			       bytes * 8 / seconds);
		else
			printf("%s: forwarded %llu packets %llu bytes", dev, packets, bytes);
		printf(" passed%s", per);
		json_object_object_foreach(reasons, reason, unused) {
			(void)unused;
			packets = since(now, before, dev, reason, "packets") / seconds + 0.5;
			if (!packets || !strcmp(reason, "forwarded") || !strcmp(reason, "aborted"))
				continue;
			printf(" %s %llu", reason, packets);
			none = false;
		}
		printf("%s dropped%s", none ? " 0" : "", per);
		printf(aborted ? " aborted %llu\n" : " %llu\n", aborted);
	}
	fflush(stdout);
}

static double clock_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

int stats(void)
{
	json_object *before = NULL, *now = stats_get();
	double then = 0, time;

	while (now) {
		time = clock_now();
		if (opt.json)
			print_json(json_object_get(now));
		else if (!opt.watch || before)
			stats_print(now, before, before ? time - then : 1);
		json_object_put(before);
		before = now;
		then = time;
		if (!opt.watch)
			break;
		sleep(1);
		now = stats_get();
	}
	json_object_put(before);
	return now ? 0 : -1;
}
