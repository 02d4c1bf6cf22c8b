// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a look-up takes by the wall clock, caches included, in user-mode Linux
 *
 * run.sh lays this over the kernel's tree for one build. Flows are opened as
 * nft's flow_offload expression does it, without packets: a conntrack entry,
 * routes, flow_offload_add(); the flowmap hears of them by snoop mode. A hash
 * map gets the same keys and values. Then each is asked for flows in random
 * order. A look-up waits for a word of what the one before it has found: as for
 * packets, which are too far apart for a processor to overlap their look-ups.
 *
 * The machine does other things, too: a sample is the shortest of TURNS turns.
 */
#include <kunit/test.h>
#include <linux/bpf.h>
#include <linux/bpf_flowmap.h>
#include <linux/delay.h>
#include <linux/if.h>
#include <linux/inetdevice.h>
#include <linux/prandom.h>
#include <linux/rtnetlink.h>
#include <net/netfilter/nf_conntrack.h>
#include <net/netfilter/nf_conntrack_core.h>
#include <net/netfilter/nf_conntrack_l4proto.h>
#include <net/netfilter/nf_conntrack_zones.h>
#include <net/netfilter/nf_flow_table.h>
#include <net/route.h>
#include <net/xdp.h>
#include "../../tools/lib/bpf/skel_internal.h"

#define SERVER		htonl(0xc0a80102)	/* 192.168.1.2, behind dummy1 */
#define MASQ		htonl(0xc0a80101)
#define CLIENT		htonl(0x0a000102)	/* 10.0.1.2, behind dummy0 */
#define GATEWAY		htonl(0x0a000101)
#define DPORT		5001
#define MISS		0x4000			/* more: port that no flow has */

#define LOOKUPS		2048
#define TURNS		48
#define RUNS		15

struct um_bench {
	struct kunit *test;
	u32 flows;
	struct net_device *in, *out;
	struct nf_flowtable *ft;
	int flowmap_fd, hash_fd;
	struct bpf_map *flowmap, *hash;
	struct rnd_state rnd;
};

static const struct nf_flowtable_type um_flowtable_type;

static struct net_device *um_device(struct kunit *test, const char *name, __be32 addr)
{
	struct net_device *dev = dev_get_by_name(&init_net, name);
	struct sockaddr_in *sin;
	struct ifreq ifr = {};
	int err;

	KUNIT_ASSERT_NOT_NULL(test, dev);
	rtnl_lock();
	err = dev_change_flags(dev, dev->flags | IFF_UP, NULL);
	/* so that flows need not be marked as the stack's */
	xdp_set_features_flag(dev, NETDEV_XDP_ACT_NDO_XMIT);
	rtnl_unlock();
	KUNIT_ASSERT_EQ(test, err, 0);

	strscpy(ifr.ifr_name, name);
	sin = (struct sockaddr_in *)&ifr.ifr_addr;
	sin->sin_family = AF_INET;
	sin->sin_addr.s_addr = addr;
	KUNIT_ASSERT_EQ(test, devinet_ioctl(&init_net, SIOCSIFADDR, &ifr), 0);
	return dev;
}

static __be16 um_sport(u32 flow)
{
	return htons(flow);
}

static __be16 um_dport(u32 flow)
{
	return htons(DPORT + (flow >> 16));
}

static struct dst_entry *um_route(struct um_bench *b, __be32 daddr)
{
	struct flowi4 fl4 = { .daddr = daddr };
	struct rtable *rt = ip_route_output_key(&init_net, &fl4);

	KUNIT_ASSERT_NOT_ERR_OR_NULL(b->test, rt);
	return &rt->dst;
}

static void um_open(struct um_bench *b, u32 flow)
{
	struct nf_conntrack_tuple orig = {
		.src = { .u3.ip = CLIENT, .u.udp.port = um_sport(flow), .l3num = AF_INET },
		.dst = { .u3.ip = SERVER, .u.udp.port = um_dport(flow),
			 .protonum = IPPROTO_UDP, .dir = IP_CT_DIR_ORIGINAL },
	};
	struct nf_conntrack_tuple reply = {
		.src = { .u3.ip = SERVER, .u.udp.port = um_dport(flow), .l3num = AF_INET },
		.dst = { .u3.ip = MASQ, .u.udp.port = um_sport(flow),
			 .protonum = IPPROTO_UDP, .dir = IP_CT_DIR_REPLY },
	};
	struct nf_flow_route route = {};
	struct flow_offload *fo;
	struct nf_conn *ct;

	ct = nf_conntrack_alloc(&init_net, &nf_ct_zone_dflt, &orig, &reply, GFP_KERNEL);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(b->test, ct);
	refcount_set(&ct->ct_general.use, 1);
	ct->status = IPS_CONFIRMED | IPS_SEEN_REPLY | IPS_ASSURED | IPS_OFFLOAD |
		     IPS_SRC_NAT;

	route.tuple[FLOW_OFFLOAD_DIR_ORIGINAL].dst = um_route(b, SERVER);
	route.tuple[FLOW_OFFLOAD_DIR_ORIGINAL].in.ifindex = b->in->ifindex;
	route.tuple[FLOW_OFFLOAD_DIR_ORIGINAL].xmit_type = FLOW_OFFLOAD_XMIT_NEIGH;
	route.tuple[FLOW_OFFLOAD_DIR_REPLY].dst = um_route(b, CLIENT);
	route.tuple[FLOW_OFFLOAD_DIR_REPLY].in.ifindex = b->out->ifindex;
	route.tuple[FLOW_OFFLOAD_DIR_REPLY].xmit_type = FLOW_OFFLOAD_XMIT_NEIGH;

	fo = flow_offload_alloc(ct);
	KUNIT_ASSERT_NOT_NULL(b->test, fo);
	flow_offload_route_init(fo, &route);
	KUNIT_ASSERT_EQ(b->test, flow_offload_add(b->ft, fo), 0);
	nf_ct_put(ct);
}

static int um_map(struct um_bench *b, u32 type, struct bpf_map **map)
{
	int fd = skel_map_create(type, "bench", sizeof(struct bpf_flowmap_key),
				 sizeof(struct bpf_flowmap_value), max(2 * b->flows, 65536U));

	KUNIT_ASSERT_GE(b->test, fd, 0);
	*map = bpf_map_get(fd);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(b->test, *map);
	return fd;
}

/* Both directions of all flows. Return: how many */
static u32 um_copy(struct um_bench *b)
{
	struct bpf_flowmap_key key, next;
	u32 n = 0;

	rcu_read_lock();
	while (!b->flowmap->ops->map_get_next_key(b->flowmap, n ? &key : NULL, &next)) {
		void *value = b->flowmap->ops->map_lookup_elem(b->flowmap, &next);

		if (!value || b->hash->ops->map_update_elem(b->hash, &next, value, BPF_ANY))
			break;
		key = next;
		n++;
	}
	rcu_read_unlock();
	return n;
}

/* The next flow, once what @found points to is there */
static __always_inline u32 um_next(struct um_bench *b, const void *found)
{
	u32 none = 0;

	OPTIMIZER_HIDE_VAR(none);
	b->rnd.s1 ^= (found ? *(const u32 *)found : 0) & none;
	return reciprocal_scale(prandom_u32_state(&b->rnd), b->flows);
}

/* Return: nanoseconds; @look_up gives the pointer to what was found */
#define UM_LOOP(b, miss, hits, look_up) ({					\
	u32 i, n = 0;								\
	u64 start;								\
										\
	rcu_read_lock();							\
	start = ktime_get_ns();							\
	for (i = 0; i < LOOKUPS; i++) {						\
		sport = um_sport(flow);						\
		dport = htons(DPORT + (flow >> 16) + ((miss) ? MISS : 0));	\
		found = look_up;						\
		n += !!found;							\
		flow = um_next(b, found);					\
	}									\
	start = ktime_get_ns() - start;						\
	rcu_read_unlock();							\
	hits = n;								\
	start;									\
})

static noinline u64 um_none(struct um_bench *b, bool miss, u32 *hits)
{
	u32 flow = um_next(b, NULL);
	const void *found;
	__be16 sport, dport;

	return UM_LOOP(b, miss, *hits, ({
		OPTIMIZER_HIDE_VAR(sport);
		OPTIMIZER_HIDE_VAR(dport);
		miss ? NULL : (const void *)&b->flows;
	}));
}

/* Of all flows, but for the ports */
static struct bpf_flowmap_key um_key(const struct um_bench *b)
{
	return (struct bpf_flowmap_key) {
		.ifindex = b->in->ifindex,
		.family = AF_INET,
		.l4proto = IPPROTO_UDP,
		.addr.v4 = { .saddr = CLIENT, .daddr = SERVER },
	};
}

static noinline u64 um_map_lookup(struct um_bench *b, struct bpf_map *map, bool miss, u32 *hits)
{
	void *(*lookup)(struct bpf_map *map, void *key) = map->ops->map_lookup_elem;
	struct bpf_flowmap_key key = um_key(b);
	u32 flow = um_next(b, NULL);
	__be16 sport, dport;
	const void *found;

	return UM_LOOP(b, miss, *hits, ({
		key.sport = sport;
		key.dport = dport;
		lookup(map, &key);
	}));
}

static u64 um_flowmap(struct um_bench *b, bool miss, u32 *hits)
{
	return um_map_lookup(b, b->flowmap, miss, hits);
}

static u64 um_hash(struct um_bench *b, bool miss, u32 *hits)
{
	return um_map_lookup(b, b->hash, miss, hits);
}

static noinline u64 um_flowtable(struct um_bench *b, bool miss, u32 *hits)
{
	struct flow_offload_tuple tuple = {
		.src_v4.s_addr = CLIENT,
		.dst_v4.s_addr = SERVER,
		.iifidx = b->in->ifindex,
		.l3proto = AF_INET,
		.l4proto = IPPROTO_UDP,
	};
	u32 flow = um_next(b, NULL);
	__be16 sport, dport;
	const void *found;

	return UM_LOOP(b, miss, *hits, ({
		tuple.src_port = sport;
		tuple.dst_port = dport;
		flow_offload_lookup(b->ft, &tuple);
	}));
}

/* Look all flows up, so that none is due for its refresh */
static void um_touch(struct um_bench *b)
{
	struct bpf_flowmap_key key = um_key(b);
	u32 flow;

	rcu_read_lock();
	for (flow = 0; flow < b->flows; flow++) {
		key.sport = um_sport(flow);
		key.dport = um_dport(flow);
		b->flowmap->ops->map_lookup_elem(b->flowmap, &key);
	}
	rcu_read_unlock();
}

static const struct {
	const char *name;
	u64 (*run)(struct um_bench *b, bool miss, u32 *hits);
	bool miss;
} um_rows[] = {
	{ "flowmap-hit",		um_flowmap,	false },
	{ "flowmap-miss",		um_flowmap,	true },
	{ "hash-hit",			um_hash,	false },
	{ "hash-miss",			um_hash,	true },
	{ "flow_offload_lookup-hit",	um_flowtable,	false },
	{ "flow_offload_lookup-miss",	um_flowtable,	true },
};

/* Picoseconds a look-up, the loop taken off */
static u64 um_measure(struct um_bench *b, int row)
{
	u64 none = U64_MAX, took = U64_MAX;
	bool miss = um_rows[row].miss;
	u32 hits;
	int i;

	for (i = 0; i < TURNS; i++) {
		none = min(none, um_none(b, miss, &hits));
		took = min(took, um_rows[row].run(b, miss, &hits));
		KUNIT_ASSERT_EQ(b->test, hits, miss ? 0 : LOOKUPS);
	}
	return div_u64((took - none) * 1000, LOOKUPS);
}

static void um_print(const char *name, u32 flows, const u64 *samples, int n)
{
	char line[512];
	int i, at = 0;

	for (i = 0; i < n; i++)
		at += scnprintf(line + at, sizeof(line) - at, "%s%llu.%llu", i ? "," : "",
				samples[i] / 1000, samples[i] % 1000 / 100);
	pr_info("row kind=native path=%s flows=%u samples=%s\n", name, flows, line);
}

static void um_flows(struct kunit *test, u32 flows)
{
	static u64 samples[ARRAY_SIZE(um_rows)][RUNS];
	struct um_bench bench = { .test = test, .flows = flows }, *b = &bench;
	u32 flow;
	int i, row;

	prandom_seed_state(&b->rnd, 1);
	b->in = dev_get_by_name(&init_net, "dummy0");
	b->out = dev_get_by_name(&init_net, "dummy1");
	b->ft = kzalloc(sizeof(*b->ft), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, b->ft);
	b->ft->type = &um_flowtable_type;
	write_pnet(&b->ft->net, &init_net);
	KUNIT_ASSERT_EQ(test, nf_flow_table_init(b->ft), 0);
	b->flowmap_fd = um_map(b, BPF_MAP_TYPE_FLOWMAP, &b->flowmap);
	b->hash_fd = um_map(b, BPF_MAP_TYPE_HASH, &b->hash);

	for (flow = 0; flow < flows; flow++)
		um_open(b, flow);
	KUNIT_ASSERT_EQ(test, um_copy(b), 2 * flows);

	for (i = 0; i < RUNS; i++) {
		for (row = 0; row < ARRAY_SIZE(um_rows); row++) {
			if (um_rows[row].run == um_flowmap)
				um_touch(b);
			samples[row][i] = um_measure(b, row);
			cond_resched();
		}
	}
	for (row = 0; row < ARRAY_SIZE(um_rows); row++)
		um_print(um_rows[row].name, flows, samples[row], RUNS);

	/* each the first of its flow in more than a second */
	for (i = 0; i < RUNS && flows > 10 * LOOKUPS * TURNS; i++) {
		msleep(1100);
		samples[0][i] = um_measure(b, 0);
	}
	if (i)
		um_print("flowmap-hit+refresh", flows, samples[0], i);

	bpf_map_put(b->flowmap);
	bpf_map_put(b->hash);
	close_fd(b->flowmap_fd);
	close_fd(b->hash_fd);
	nf_flow_table_free(b->ft);
	rcu_barrier();
	kfree(b->ft);
	dev_put(b->in);
	dev_put(b->out);
}

static void um_lookups(struct kunit *test)
{
	u32 flows;

	dev_put(um_device(test, "dummy0", GATEWAY));
	dev_put(um_device(test, "dummy1", MASQ));
	nf_conntrack_max = 4000000;
	nf_udp_pernet(&init_net)->offload_timeout = 86400 * HZ;
	for (flows = 1; flows <= 1000000; flows *= flows == 1 ? 1000 : flows == 1000 ? 100 : 10)
		um_flows(test, flows);
}

static struct kunit_case um_cases[] = {
	KUNIT_CASE_SLOW(um_lookups),
	{}
};

static struct kunit_suite um_suite = {
	.name = "flowmap_lookups",
	.test_cases = um_cases,
};

kunit_test_suite(um_suite);

MODULE_LICENSE("GPL");
