// SPDX-License-Identifier: GPL-2.0-only
/*
 * Look-ups in a loop: in a flowmap, in a hash map with the same keys and values,
 * by the kernel's bpf_xdp_flow_lookup(), and none, for what the loop costs
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/bpf_flowmap.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "bench.h"

#define AF_INET		2

struct {
	__uint(type, BPF_MAP_TYPE_FLOWMAP);
	__type(key, struct bpf_flowmap_key);
	__type(value, struct bpf_flowmap_value);
	__uint(max_entries, 65536);
} flowmap SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct bpf_flowmap_key);
	__type(value, struct bpf_flowmap_value);
	__uint(max_entries, 65536);
} hash SEC(".maps");

struct bpf_flowtable_opts___local {
	__s32 error;
};

/* libbpf wants it complete */
struct flow_offload_tuple_rhash {
	__u32 unknown;
};

struct flow_offload_tuple_rhash *
bpf_xdp_flow_lookup(struct xdp_md *ctx, struct bpf_fib_lookup *tuple,
		    struct bpf_flowtable_opts___local *opts, __u32 size) __ksym;

/* the key of a flow, ports aside */
struct bpf_flowmap_key template;
__u32 flows = 1, step = 1, lookups = 1, next, hits;
bool miss;
__u64 start, end;

struct state {
	struct bpf_flowmap_key key;
	struct bpf_fib_lookup tuple;
	struct xdp_md *ctx;
};

static __always_inline void next_key(__be16 *sport, __be16 *dport)
{
	__u32 flow = next;

	next = (flow + step) % flows;
	*sport = bpf_htons(SPORT + flow % PORTS);
	*dport = bpf_htons(DPORT + flow / PORTS + (miss ? 0x4000 : 0));
}

static long one_none(__u32 i, struct state *s)
{
	next_key(&s->key.sport, &s->key.dport);
	hits++;
	return 0;
}

static long one_flowmap(__u32 i, struct state *s)
{
	next_key(&s->key.sport, &s->key.dport);
	if (bpf_map_lookup_elem(&flowmap, &s->key))
		hits++;
	return 0;
}

static long one_hash(__u32 i, struct state *s)
{
	next_key(&s->key.sport, &s->key.dport);
	if (bpf_map_lookup_elem(&hash, &s->key))
		hits++;
	return 0;
}

static long one_kfunc(__u32 i, struct state *s)
{
	struct bpf_flowtable_opts___local opts = {};

	next_key(&s->tuple.sport, &s->tuple.dport);
	if (bpf_xdp_flow_lookup(s->ctx, &s->tuple, &opts, sizeof(opts)))
		hits++;
	return 0;
}

#define LOOP(name)						\
SEC("xdp")							\
int loop_##name(struct xdp_md *ctx)				\
{								\
	struct state s = { .key = template, .ctx = ctx };	\
								\
	s.tuple.family = AF_INET;				\
	s.tuple.l4_protocol = template.l4proto;			\
	s.tuple.ipv4_src = template.addr.v4.saddr;		\
	s.tuple.ipv4_dst = template.addr.v4.daddr;		\
	s.tuple.ifindex = template.ifindex;			\
	hits = 0;						\
	start = bpf_ktime_get_ns();				\
	bpf_loop(lookups, one_##name, &s, 0);			\
	end = bpf_ktime_get_ns();				\
	return XDP_PASS;					\
}

LOOP(none)
LOOP(flowmap)
LOOP(hash)
LOOP(kfunc)

char _license[] SEC("license") = "GPL";
