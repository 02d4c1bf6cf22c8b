// SPDX-License-Identifier: GPL-2.0-only
/*
 * BPF_MAP_TYPE_FLOWMAP: the flows of a namespace's flowtables as a BPF map
 *
 * The map snoops: each flow that a flowtable takes is published as two
 * entries, one a direction, each with all that a program needs to forward a
 * packet. Who adds entries is the flowtable, never the map's user.
 *
 * What an entry says of the packet's way (addresses, ports, devices, Ethernet
 * header, MTU) never changes while it is published, so that no reader sees
 * half of a change. When it stops being true the flow is torn down: the next
 * packet goes to the stack, whose ruleset offloads the connection again, and
 * this publishes what is true then. Only single words change in place: the
 * counters, the time of last use, and what conntrack says of the connection.
 *
 * Look-ups from programs are the packet's event. They trust nothing that may
 * have aged: the route by dst_check(), as the flowtable does, the neighbour by
 * its state and address, conntrack by its status, and the way through a bridge
 * or a PPPoE session by resolving it again. Devices are watched by a notifier,
 * which has torn their flows down before the command that changed them
 * returns. A flow that packets use is refreshed, and its neighbour
 * probed if need be, once a second.
 *
 * Concurrency: buckets are chains that are read under RCU and changed under
 * flowmap->lock, with bottom halves disabled. Chains are kept in the order of
 * their keys, so that whoever iterates can go on behind a key that has gone,
 * and sees what is there throughout exactly once.
 *
 * Life: a published flow (struct flowmap_flow) is unlinked when the flowtable
 * tears its flow down and freed a grace period later. It borrows the flow,
 * the route and the conntrack entry, which the flowtable frees a grace period
 * after the teardown as well; it owns a reference on each neighbour. The
 * notifier sees to it that no neighbour is held once its device goes.
 * A map does not hold its network namespace: when that exits, the map empties
 * and stays empty.
 */
#include <linux/bpf.h>
#include <linux/bpf_modular_maps.h>
#include <linux/btf.h>
#include <linux/hash.h>
#include <linux/if_arp.h>
#include <linux/if_ether.h>
#include <linux/if_pppox.h>
#include <linux/if_vlan.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_flow_table_snoop.h>
#include <linux/proc_fs.h>
#include <linux/random.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>
#include <linux/unaligned.h>
#include <net/checksum.h>
#include <net/dst.h>
#include <net/ip.h>
#include <net/ip6_route.h>
#include <net/net_namespace.h>
#include <net/neighbour.h>
#include <net/netfilter/nf_conntrack.h>
#include <net/netfilter/nf_conntrack_acct.h>
#include <net/netfilter/nf_conntrack_zones.h>
#include <net/netfilter/nf_flow_table.h>
#include <net/tcp.h>
#include <uapi/linux/bpf_flowmap.h>

/* Sixteen million entries: 64 MiB of buckets */
#define FLOWMAP_MAX_ENTRIES	0x1000000
#define FLOWMAP_MAP_FLAGS	BPF_F_NUMA_NODE
#define FLOWMAP_FAMILIES	(BPF_FLOWMAP_IPV4 | BPF_FLOWMAP_IPV6)
#define FLOWMAP_DEVICE		((u64)S32_MAX << BPF_FLOWMAP_DEVICE_SHIFT)
#define FLOWMAP_MAP_EXTRA	(BPF_FLOWMAP_COUNTERS | FLOWMAP_FAMILIES | FLOWMAP_DEVICE)
#define FLOWMAP_KEY_FLAGS	(BPF_FLOWMAP_KEY_STACK | BPF_FLOWMAP_KEY_SKB)
/* Of tcp_flags and flags, as one word */
#define FLOWMAP_KEY_SPECIAL	cpu_to_be16((TCPHDR_FIN | TCPHDR_RST) << 8 | U8_MAX)

/* What is matched of a key, as words: device and ports; family, protocol and
 * outer encapsulation; inner encapsulation and tunnel; addresses of IPv4, or
 * a hash of those of IPv6
 */
#define FLOWMAP_WORDS		4
#define FLOWMAP_WORDS32		(2 * FLOWMAP_WORDS)
#define FLOWMAP_V6_WORDS32	8

static_assert(sizeof(struct bpf_flowmap_key) == 64);
static_assert(sizeof(struct bpf_flowmap_value) == 112);
static_assert(offsetof(struct bpf_flowmap_key, addr) == 3 * sizeof(u64));
static_assert(offsetof(struct bpf_flowmap_key, flags) ==
	      offsetof(struct bpf_flowmap_key, tcp_flags) + 1);

/**
 * struct flowmap_entry - one direction of a published flow
 * @next:  next in the bucket
 * @words: what is matched
 * @neigh: the next hop, NULL where there is none to watch
 * @stamp: jiffies of the last refresh
 * @dir:   direction, index in flowmap_flow.entry
 * @into:  flowmap_flow, how many bytes: @dir times a size, without the product
 * @tuple: the direction's in flow_offload.tuplehash, in the same way
 * @more:  what a packet costs more than a look-up
 * @value: what programs get
 */
struct flowmap_entry {
	struct flowmap_entry __rcu *next;
	u64 words[FLOWMAP_WORDS];
	struct neighbour *neigh;
	u32 stamp;
	u8 dir;
	u8 into;
	u8 tuple;
	u8 more;
	struct bpf_flowmap_value value;
};

/* flowmap_entry.more: packets are counted in the value, in conntrack, or in both */
#define FLOWMAP_COUNT_VALUE	BIT(0)
#define FLOWMAP_COUNT_CT	BIT(1)
#define FLOWMAP_COUNT		(FLOWMAP_COUNT_VALUE | FLOWMAP_COUNT_CT)
/* and the path is resolved again, the other direction's, or both: no notifier tells of
 * their changes, and by what ends there the packet may not have come
 */
#define FLOWMAP_WATCH		BIT(2)
#define FLOWMAP_WATCH_BACK	BIT(3)
#define FLOWMAP_WATCH_PATHS	(FLOWMAP_WATCH | FLOWMAP_WATCH_BACK)

struct flowmap_flow {
	struct flowmap_entry entry[FLOW_OFFLOAD_DIR_MAX];
	struct flow_offload *flow;
	struct nf_conn *ct;
	struct rcu_head rcu;
};

static_assert(sizeof(struct flowmap_entry) <= U8_MAX); /* flowmap_entry.into */
static_assert(sizeof(struct flow_offload_tuple_rhash) <= U8_MAX); /* .tuple */

/**
 * struct flowmap - a map
 * @map:      the map
 * @num:      number of buckets
 * @seed:     secret of the hash
 * @buckets:  the entries
 * @snooper:  how flows come in and go
 * @list:     in flowmaps
 * @lock:     for changes of the buckets and of what is below
 * @closed:   no more flows: the map or its namespace goes
 * @changes:  of devices; a flow that was filled in before one is not published
 * @entries:  entries that are published
 * @full:     flows that stayed on the slow path for want of room or memory
 */
struct flowmap {
	struct bpf_map map;
	u32 num;
	u64 seed[1 + FLOWMAP_WORDS32 + FLOWMAP_V6_WORDS32];
	struct flowmap_entry __rcu **buckets;

	struct nf_flow_snooper snooper ____cacheline_aligned_in_smp;
	struct list_head list;
	/* for changes of the buckets and of what is below */
	spinlock_t lock;
	bool closed;
	u32 changes;
	u32 entries;
	u64 full;
};

static DEFINE_MUTEX(flowmaps_mutex);
static LIST_HEAD(flowmaps);
static struct kmem_cache *flowmap_cache __read_mostly;

static struct flowmap *to_flowmap(const struct bpf_map *map)
{
	return container_of(map, struct flowmap, map);
}

static struct flowmap_flow *flowmap_flow_of(struct flowmap_entry *e)
{
	return (void *)e - e->into;
}

static const struct flow_offload_tuple *flowmap_tuple(const struct flowmap_entry *e,
						      const struct flow_offload *flow)
{
	const struct flow_offload_tuple_rhash *th = (const void *)flow->tuplehash + e->tuple;

	return &th->tuple;
}

/* Keys
 *
 * The hash is multilinear (Lemire and Kaser, "Strongly universal string
 * hashing is fast"): seed[0] + sum of seed[i + 1] * word[i], of which the
 * upper half counts. For a secret seed any two keys collide with the chance
 * of random numbers, whoever chose them. But keys that differ by a few bits of
 * a port have sums in a row, and some seeds put rows into few buckets; so they
 * are mixed in the end, one to one, which leaves that chance what it is.
 */

static __always_inline u32 flowmap_mix(u32 hash)
{
	return (hash ^ hash >> 15) * GOLDEN_RATIO_32;
}

static u64 flowmap_sum(const u64 *seed, const u32 *words, unsigned int n)
{
	u64 sum = 0;

	while (n--)
		sum += *seed++ * *words++;
	return sum;
}

static __always_inline void
flowmap_key_words(const struct flowmap *fm, const struct bpf_flowmap_key *k,
		  u64 words[FLOWMAP_WORDS])
{
	const u8 *p = (const u8 *)k;

	words[0] = get_unaligned((const u64 *)p);
	words[1] = get_unaligned((const u64 *)p + 1);
	words[2] = get_unaligned((const u64 *)p + 2);
	words[3] = get_unaligned((const u64 *)p + 3);
	if (unlikely(k->family == AF_INET6))
		words[3] = flowmap_sum(fm->seed + 1 + FLOWMAP_WORDS32,
				       (const u32 *)&k->addr, FLOWMAP_V6_WORDS32);
}

static __always_inline struct flowmap_entry __rcu **
flowmap_bucket(const struct flowmap *fm, const u64 words[FLOWMAP_WORDS])
{
	u64 hash = fm->seed[0];
	int i;

#pragma GCC unroll 4
	for (i = 0; i < FLOWMAP_WORDS; i++) {
		hash += fm->seed[2 * i + 1] * (u32)words[i];
		hash += fm->seed[2 * i + 2] * (u32)(words[i] >> 32);
	}
	return &fm->buckets[reciprocal_scale(flowmap_mix(hash >> 32), fm->num)];
}

/* The addresses that a direction matches are those that the other writes */
static const union bpf_flowmap_addrs *flowmap_mirror(struct flowmap_entry *e)
{
	return &flowmap_flow_of(e)->entry[!e->dir].value.addr;
}

static int flowmap_cmp_v6(struct flowmap_entry *e, const struct bpf_flowmap_key *k)
{
	const union bpf_flowmap_addrs *mirror = flowmap_mirror(e);
	int cmp = memcmp(mirror->v6.daddr, k->addr.v6.saddr, 16);

	return cmp ? cmp : memcmp(mirror->v6.saddr, k->addr.v6.daddr, 16);
}

/* The order of entries in a bucket */
static int flowmap_cmp(struct flowmap_entry *e, const struct bpf_flowmap_key *k,
		       const u64 words[FLOWMAP_WORDS])
{
	int i;

	for (i = 0; i < FLOWMAP_WORDS; i++)
		if (e->words[i] != words[i])
			return e->words[i] < words[i] ? -1 : 1;
	return k->family == AF_INET6 ? flowmap_cmp_v6(e, k) : 0;
}

#define flowmap_deref(p) \
	rcu_dereference_check(p, rcu_read_lock_bh_held())

static __always_inline struct flowmap_entry *
flowmap_find(const struct flowmap *fm, const struct bpf_flowmap_key *k)
{
	u64 words[FLOWMAP_WORDS];
	struct flowmap_entry *e;

	flowmap_key_words(fm, k, words);
	for (e = flowmap_deref(*flowmap_bucket(fm, words)); e;
	     e = flowmap_deref(e->next)) {
		if (e->words[0] == words[0] && e->words[3] == words[3] &&
		    e->words[1] == words[1] && e->words[2] == words[2] &&
		    (likely(k->family != AF_INET6) || !flowmap_cmp_v6(e, k)))
			return e;
	}
	return NULL;
}

static void flowmap_key_from_tuple(struct bpf_flowmap_key *k,
				   const struct flow_offload_tuple *tuple)
{
	int i;

	memset(k, 0, sizeof(*k));
	/* what the flowtable hashes, and no more: the rest may change */
	k->ifindex = tuple->iifidx;
	k->sport = tuple->src_port;
	k->dport = tuple->dst_port;
	k->family = tuple->l3proto;
	k->l4proto = tuple->l4proto;
	for (i = 0; i < tuple->encap_num; i++) {
		k->encap[i].proto = tuple->encap[i].proto;
		k->encap[i].id = tuple->encap[i].id;
	}
	if (k->family == AF_INET6) {
		memcpy(k->addr.v6.saddr, &tuple->src_v6, sizeof(tuple->src_v6));
		memcpy(k->addr.v6.daddr, &tuple->dst_v6, sizeof(tuple->dst_v6));
	} else {
		k->addr.v4.saddr = tuple->src_v4.s_addr;
		k->addr.v4.daddr = tuple->dst_v4.s_addr;
	}
}

static void flowmap_key_from_entry(struct bpf_flowmap_key *k, struct flowmap_entry *e)
{
	const union bpf_flowmap_addrs *mirror = flowmap_mirror(e);

	memset(k, 0, sizeof(*k));
	memcpy(k, e->words, 3 * sizeof(u64));
	if (k->family == AF_INET6) {
		memcpy(k->addr.v6.saddr, mirror->v6.daddr, sizeof(k->addr.v6.saddr));
		memcpy(k->addr.v6.daddr, mirror->v6.saddr, sizeof(k->addr.v6.daddr));
	} else {
		k->addr.v4.saddr = mirror->v4.daddr;
		k->addr.v4.daddr = mirror->v4.saddr;
	}
}

/* Values */

static void flowmap_sync_ct(struct bpf_flowmap_value *v, const struct nf_conn *ct)
{
	/* without IPS_DYING: that must always be news to a look-up */
	WRITE_ONCE(v->ct_status, (u32)READ_ONCE(ct->status) & ~IPS_DYING);
#ifdef CONFIG_NF_CONNTRACK_MARK
	WRITE_ONCE(v->ct_mark, READ_ONCE(ct->mark));
#endif
	if (nf_ct_protonum(ct) == IPPROTO_TCP)
		WRITE_ONCE(v->tcp_state, READ_ONCE(ct->proto.tcp.state));
}

/* Fixed by the handshake. A connection that conntrack has picked up later may
 * have any; it is marked as if both sides had offered SACK, but no scaling.
 */
static u8 flowmap_tcp_wscale(const struct nf_conn *ct, enum flow_offload_tuple_dir dir)
{
	const struct ip_ct_tcp_state *seen = ct->proto.tcp.seen;
	u8 both = seen[0].flags & seen[1].flags;

	if (nf_ct_protonum(ct) != IPPROTO_TCP)
		return 0;
	if (both & IP_CT_TCP_FLAG_WINDOW_SCALE)
		return seen[dir].td_scale;
	return both & IP_CT_TCP_FLAG_SACK_PERM ? TCP_MAX_WSCALE : 0;
}

static __wsum flowmap_csum_diff(const void *old, const void *new, int len)
{
	return csum_sub(csum_partial(new, len, 0), csum_partial(old, len, 0));
}

/* Folded, but not complemented: what a program adds to ~check */
static u16 flowmap_csum_fold(__wsum sum)
{
	return (__force u16)~csum_fold(sum);
}

static void flowmap_fill_nat(struct bpf_flowmap_value *v,
			     const struct bpf_flowmap_key *k,
			     const struct flow_offload *flow,
			     const struct flow_offload_tuple *other)
{
	int len = k->family == AF_INET6 ? sizeof(v->addr.v6) : sizeof(v->addr.v4);

	v->sport = other->dst_port;
	v->dport = other->src_port;
	if (k->family == AF_INET6) {
		memcpy(v->addr.v6.saddr, &other->dst_v6, sizeof(other->dst_v6));
		memcpy(v->addr.v6.daddr, &other->src_v6, sizeof(other->src_v6));
	} else {
		v->addr.v4.saddr = other->dst_v4.s_addr;
		v->addr.v4.daddr = other->src_v4.s_addr;
	}
	if (test_bit(NF_FLOW_SNAT, &flow->flags))
		v->flags |= BPF_FLOWMAP_SNAT;
	if (test_bit(NF_FLOW_DNAT, &flow->flags))
		v->flags |= BPF_FLOWMAP_DNAT;
	if (v->flags & (BPF_FLOWMAP_SNAT | BPF_FLOWMAP_DNAT)) {
		__wsum addrs = flowmap_csum_diff(&k->addr, &v->addr, len);
		__wsum ports = flowmap_csum_diff(&k->sport, &v->sport,
						 2 * sizeof(v->sport));

		if (k->family == AF_INET)
			v->ip_csum_diff = flowmap_csum_fold(addrs);
		v->l4_csum_diff = flowmap_csum_fold(csum_add(addrs, ports));
	}
}

static bool flowmap_maps_priorities(const struct net_device *vlan)
{
#if IS_ENABLED(CONFIG_VLAN_8021Q)
	return vlan_dev_priv(vlan)->nr_egress_mappings;
#else
	return false;
#endif
}

/* From the device of the route down to the one that frames leave by, with
 * the encapsulations on the way. @watch: somebody on it may change his mind
 */
static const struct net_device *
flowmap_fill_path(struct bpf_flowmap_value *v, const struct net_device *dev, bool *watch)
{
	struct net_device_path_stack stack;
	int i, n = 0;

	if (dev_fill_forward_path(dev, v->h_dest, &stack) < 0) {
		*watch = true;
		return NULL;
	}

	for (i = 0; i < stack.num_paths; i++) {
		const struct net_device_path *path = &stack.path[i];
		struct bpf_flowmap_encap push = {};

		switch (path->type) {
		case DEV_PATH_ETHERNET:
			if (is_zero_ether_addr(v->h_source))
				ether_addr_copy(v->h_source, path->dev->dev_addr);
			return path->dev;
		case DEV_PATH_PPPOE:
			*watch = true;
			ether_addr_copy(v->h_dest, path->encap.h_dest);
			push.proto = path->encap.proto;
			push.id = path->encap.id;
			break;
		case DEV_PATH_VLAN:
			/* the tag's priority would depend on the packet */
			if (flowmap_maps_priorities(path->dev))
				return NULL;
			if (is_zero_ether_addr(v->h_source))
				ether_addr_copy(v->h_source, path->dev->dev_addr);
			push.proto = path->encap.proto;
			push.id = path->encap.id;
			break;
		case DEV_PATH_BRIDGE:
			*watch = true;
			if (is_zero_ether_addr(v->h_source))
				ether_addr_copy(v->h_source, path->dev->dev_addr);
			if (path->bridge.vlan_mode == DEV_PATH_BR_VLAN_UNTAG) {
				if (!n--)
					return NULL;
				v->encap[0] = v->encap[1];
				memset(&v->encap[1], 0, sizeof(v->encap[1]));
			} else if (path->bridge.vlan_mode == DEV_PATH_BR_VLAN_TAG) {
				push.proto = path->bridge.vlan_proto;
				push.id = path->bridge.vlan_id;
			} else if (path->bridge.vlan_mode != DEV_PATH_BR_VLAN_KEEP) {
				return NULL;
			}
			break;
		default:
			return NULL;
		}
		if (!push.proto)
			continue;
		if (n++ == BPF_FLOWMAP_ENCAP_MAX)
			return NULL;
		/* the path goes inwards out, a frame outwards in */
		v->encap[1] = v->encap[0];
		v->encap[0] = push;
	}
	return NULL;
}

static int flowmap_encap_len(const struct bpf_flowmap_value *v)
{
	int i, len = 0;

	for (i = 0; i < BPF_FLOWMAP_ENCAP_MAX; i++) {
		if (v->encap[i].proto == htons(ETH_P_PPP_SES))
			len += PPPOE_SES_HLEN;
		else if (v->encap[i].proto)
			len += VLAN_HLEN;
	}
	return len;
}

/* XDP redirects no longer frame than one of the MTU with one tag, see
 * xdp_ok_fwd_dev(); the stack sends longer ones
 */
static void flowmap_limit_mtu(struct bpf_flowmap_value *v, const struct net_device *dev)
{
	int mtu = (int)READ_ONCE(dev->mtu) + VLAN_HLEN - flowmap_encap_len(v);

	if (mtu < v->mtu)
		v->mtu = max(mtu, 0);
}

/* By @dev, and to the neighbour if there is one. Return: watch the path */
static bool flowmap_fill_way(struct bpf_flowmap_value *v, const struct net_device *dev,
			     struct neighbour *neigh)
{
	const struct net_device *egress;
	bool watch = false;

	if (neigh)
		neigh_ha_snapshot(v->h_dest, neigh, dev);
	egress = flowmap_fill_path(v, dev, &watch);
	/* in another namespace its number is somebody else's; it may move back */
	if (egress && !net_eq(dev_net(egress), dev_net(dev))) {
		watch = true;
		egress = NULL;
	}
	if (!egress) {
		eth_zero_addr(v->h_source);
		memset(v->encap, 0, sizeof(v->encap));
		v->ifindex = dev->ifindex;
		v->flags |= BPF_FLOWMAP_NO_ETHER;
		return watch;
	}
	flowmap_limit_mtu(v, egress);
	v->ifindex = egress->ifindex;
	if (egress->type != ARPHRD_ETHER)
		v->flags |= BPF_FLOWMAP_NO_ETHER;
	else if (!(egress->xdp_features & NETDEV_XDP_ACT_NDO_XMIT))
		v->flags |= BPF_FLOWMAP_NO_XMIT;
	return watch;
}

/* A neighbour that is held is not collected: above the table's soft limit those
 * that are left are for others
 */
static struct neighbour *flowmap_hold_neigh(const struct dst_entry *dst, const void *daddr)
{
	struct neighbour *neigh = dst_neigh_lookup(dst, daddr);

	if (!neigh || (READ_ONCE(neigh->nud_state) & NUD_PERMANENT) ||
	    atomic_read(&neigh->tbl->gc_entries) <= READ_ONCE(neigh->tbl->gc_thresh2))
		return neigh;
	neigh_release(neigh);
	return NULL;
}

static void flowmap_fill_route(struct flowmap_entry *e, const struct dst_entry *dst,
			       const struct flow_offload_tuple *other)
{
	struct bpf_flowmap_value *v = &e->value;

	if (dst->lwtstate) {
		v->flags |= BPF_FLOWMAP_TUNNEL;
		v->ifindex = dst->dev->ifindex;
		return;
	}
	if (dst->dev->addr_len == ETH_ALEN) {
		e->neigh = flowmap_hold_neigh(dst, &other->src_v4);
		if (!e->neigh || !(READ_ONCE(e->neigh->nud_state) & NUD_VALID))
			v->flags |= BPF_FLOWMAP_NO_NEIGH;
	}
	if (flowmap_fill_way(v, dst->dev, e->neigh))
		e->more |= FLOWMAP_WATCH;
}

/* Has a chain been put before the stack's way in, or behind its way out? The
 * flowtable's own hook has no type.
 */
static bool flowmap_hooks(const struct nf_hook_entries *e)
{
	struct nf_hook_ops **ops;
	int i;

	if (!e)
		return false;
	ops = nf_hook_entries_get_hook_ops(e);
	for (i = 0; i < e->num_hook_entries; i++)
		if (READ_ONCE(ops[i])->hook_ops_type != NF_HOOK_OP_UNDEFINED)
			return true;
	return false;
}

static bool flowmap_ingress_hooked(const struct net_device *dev)
{
#ifdef CONFIG_NETFILTER_INGRESS
	return dev && flowmap_hooks(flowmap_deref(dev->nf_hooks_ingress));
#else
	return false;
#endif
}

static bool flowmap_egress_hooked(const struct net_device *dev)
{
#ifdef CONFIG_NETFILTER_EGRESS
	return dev && flowmap_hooks(flowmap_deref(dev->nf_hooks_egress));
#else
	return false;
#endif
}

/* The device of the route that packets of this tuple take: a VLAN, PPPoE or a
 * bridge above the one that frames leave by
 */
static const struct net_device *flowmap_route_dev(const struct flow_offload_tuple *tuple)
{
	return tuple->dst_cache ? tuple->dst_cache->dev : NULL;
}

/* Netdev chains see each packet on its way through the stack */
static bool flowmap_hooked(struct flowmap_flow *ff, enum flow_offload_tuple_dir dir)
{
	const struct flow_offload_tuple *tuple = &ff->flow->tuplehash[dir].tuple;
	const struct flow_offload_tuple *other = &ff->flow->tuplehash[!dir].tuple;
	struct net *net = nf_ct_net(ff->ct);

	return flowmap_ingress_hooked(dev_get_by_index_rcu(net, tuple->iifidx)) ||
	       flowmap_ingress_hooked(flowmap_route_dev(other)) ||
	       flowmap_egress_hooked(flowmap_route_dev(tuple)) ||
	       flowmap_egress_hooked(dev_get_by_index_rcu(net, ff->entry[dir].value.ifindex));
}

static void flowmap_fill_entry(struct flowmap *fm, struct flowmap_flow *ff,
			       enum flow_offload_tuple_dir dir)
{
	const struct flow_offload_tuple *tuple = &ff->flow->tuplehash[dir].tuple;
	const struct flow_offload_tuple *other = &ff->flow->tuplehash[!dir].tuple;
	struct flowmap_entry *e = &ff->entry[dir];
	struct bpf_flowmap_value *v = &e->value;
	struct bpf_flowmap_key k;

	flowmap_key_from_tuple(&k, tuple);
	flowmap_key_words(fm, &k, e->words);
	e->dir = dir;
	e->into = dir * sizeof(*e);
	e->tuple = dir * sizeof(*ff->flow->tuplehash);
	e->stamp = (u32)jiffies;
	if (fm->map.map_extra & BPF_FLOWMAP_COUNTERS)
		e->more |= FLOWMAP_COUNT_VALUE;
	if (nf_conn_acct_find(ff->ct))
		e->more |= FLOWMAP_COUNT_CT;

	v->flags = dir == FLOW_OFFLOAD_DIR_REPLY ? BPF_FLOWMAP_REPLY : 0;
	v->h_proto = k.family == AF_INET6 ? htons(ETH_P_IPV6) : htons(ETH_P_IP);
	v->mtu = tuple->mtu;
	/* a hash: once is enough for both directions */
	v->ct_id = dir == FLOW_OFFLOAD_DIR_REPLY ? ff->entry[!dir].value.ct_id :
		   ntohl((__force __be32)nf_ct_get_id(ff->ct));
	v->ct_zone = nf_ct_zone(ff->ct)->id;
	v->tcp_wscale = flowmap_tcp_wscale(ff->ct, dir);
	v->last_used = (u32)ktime_get_seconds();
	flowmap_sync_ct(v, ff->ct);
	flowmap_fill_nat(v, &k, ff->flow, other);

	switch (tuple->xmit_type) {
	case FLOW_OFFLOAD_XMIT_NEIGH:
	case FLOW_OFFLOAD_XMIT_DIRECT:
		/* IPv6 heeds a learned path MTU when it forwards, IPv4 does not */
		if (k.family == AF_INET6)
			v->mtu = min(v->mtu, dst_mtu(tuple->dst_cache));
		flowmap_fill_route(e, tuple->dst_cache, other);
		break;
	case FLOW_OFFLOAD_XMIT_XFRM:
		v->flags |= BPF_FLOWMAP_XFRM;
		break;
	default:
		v->flags |= BPF_FLOWMAP_TUNNEL;
		break;
	}
	if (flowmap_hooked(ff, dir))
		v->flags |= BPF_FLOWMAP_HOOKS;
}

/* Flows come and go */

static void flowmap_free_flow_rcu(struct rcu_head *rcu)
{
	struct flowmap_flow *ff = container_of(rcu, struct flowmap_flow, rcu);
	int dir;

	for (dir = 0; dir < FLOW_OFFLOAD_DIR_MAX; dir++)
		if (ff->entry[dir].neigh)
			neigh_release(ff->entry[dir].neigh);
	kmem_cache_free(flowmap_cache, ff);
}

#define flowmap_locked(fm, p) \
	rcu_dereference_protected(p, lockdep_is_held(&(fm)->lock))

/* Return: NULL, or the entry that has the place already */
static struct flowmap_entry *flowmap_link(struct flowmap *fm, struct flowmap_entry *new)
{
	struct flowmap_entry __rcu **pos = flowmap_bucket(fm, new->words);
	struct bpf_flowmap_key k;
	struct flowmap_entry *e;
	int cmp = 1;

	flowmap_key_from_entry(&k, new);
	for (; (e = flowmap_locked(fm, *pos)); pos = &e->next) {
		cmp = flowmap_cmp(e, &k, new->words);
		if (cmp >= 0)
			break;
	}
	if (e && !cmp)
		return e;
	RCU_INIT_POINTER(new->next, e);
	rcu_assign_pointer(*pos, new);
	fm->entries++;
	return NULL;
}

static void flowmap_unlink(struct flowmap *fm, struct flowmap_entry *old)
{
	struct flowmap_entry __rcu **pos = flowmap_bucket(fm, old->words);
	struct flowmap_entry *e;

	for (; (e = flowmap_locked(fm, *pos)); pos = &e->next) {
		if (e != old)
			continue;
		/* readers on @old still go on by its next */
		rcu_assign_pointer(*pos, flowmap_locked(fm, old->next));
		fm->entries--;
		return;
	}
}

/* Both directions, or none. Teardown sets its bit before it takes the lock:
 * either it is seen here, or teardown sees the entries. For -EEXIST, @old is
 * the flow that is in the way; the caller is in an RCU read section.
 */
static int flowmap_publish(struct flowmap *fm, struct flowmap_flow *ff, u32 changes,
			   struct flow_offload **old)
{
	struct flowmap_entry *other;
	int err = 0;

	spin_lock_bh(&fm->lock);
	if (fm->closed || test_bit(NF_FLOW_TEARDOWN, &ff->flow->flags)) {
		err = -ESTALE;
	} else if (fm->changes != changes) {
		err = -EAGAIN;
	} else if (fm->entries + FLOW_OFFLOAD_DIR_MAX > fm->map.max_entries) {
		err = -ENOSPC;
		fm->full++;
	} else {
		other = flowmap_link(fm, &ff->entry[FLOW_OFFLOAD_DIR_ORIGINAL]);
		if (!other) {
			other = flowmap_link(fm, &ff->entry[FLOW_OFFLOAD_DIR_REPLY]);
			if (other)
				flowmap_unlink(fm, &ff->entry[FLOW_OFFLOAD_DIR_ORIGINAL]);
		}
		if (other) {
			err = -EEXIST;
			*old = flowmap_flow_of(other)->flow;
		}
	}
	spin_unlock_bh(&fm->lock);
	return err;
}

/* Return: was it here? */
static bool flowmap_drop(struct flowmap *fm, const struct flow_offload *flow)
{
	struct flowmap_flow *ff = NULL;
	struct bpf_flowmap_key k;
	struct flowmap_entry *e;

	flowmap_key_from_tuple(&k, &flow->tuplehash[FLOW_OFFLOAD_DIR_ORIGINAL].tuple);

	spin_lock_bh(&fm->lock);
	e = flowmap_find(fm, &k);
	if (e && flowmap_flow_of(e)->flow == flow) {
		ff = flowmap_flow_of(e);
		flowmap_unlink(fm, &ff->entry[FLOW_OFFLOAD_DIR_ORIGINAL]);
		flowmap_unlink(fm, &ff->entry[FLOW_OFFLOAD_DIR_REPLY]);
	}
	spin_unlock_bh(&fm->lock);

	if (ff)
		call_rcu(&ff->rcu, flowmap_free_flow_rcu);
	return ff;
}

static void flowmap_snoop_teardown(struct nf_flow_snooper *snooper,
				   struct flow_offload *flow)
{
	flowmap_drop(container_of(snooper, struct flowmap, snooper), flow);
}

/* For who is to find it gone: whoever has begun the flow's teardown before may not
 * have come to this map yet. Return: was it here?
 */
static bool flowmap_teardown(struct flowmap *fm, struct flow_offload *flow)
{
	bool found = flowmap_drop(fm, flow);

	flow_offload_teardown(flow);
	return found;
}

/* Is it for a map of this family and device? */
static bool flowmap_wants(const struct flowmap *fm, const struct flow_offload *flow)
{
	const struct flow_offload_tuple *orig = &flow->tuplehash[FLOW_OFFLOAD_DIR_ORIGINAL].tuple;
	const struct flow_offload_tuple *reply = &flow->tuplehash[FLOW_OFFLOAD_DIR_REPLY].tuple;
	u64 family = orig->l3proto == NFPROTO_IPV6 ? BPF_FLOWMAP_IPV6 : BPF_FLOWMAP_IPV4;
	int ifindex = fm->map.map_extra >> BPF_FLOWMAP_DEVICE_SHIFT;

	if ((fm->map.map_extra & FLOWMAP_FAMILIES) && !(fm->map.map_extra & family))
		return false;
	return !ifindex || orig->iifidx == ifindex || reply->iifidx == ifindex;
}

static void flowmap_snoop_add(struct nf_flow_snooper *snooper, struct flow_offload *flow)
{
	struct flowmap *fm = container_of(snooper, struct flowmap, snooper);
	struct flow_offload *old;
	struct flowmap_flow *ff;
	u32 changes;
	int dir, err;

	if (!flowmap_wants(fm, flow))
		return;
	ff = bpf_modular_map_cache_alloc(&fm->map, flowmap_cache,
					 GFP_ATOMIC | __GFP_ZERO | __GFP_NOWARN);
	if (!ff) {
		spin_lock_bh(&fm->lock);
		fm->full++;
		spin_unlock_bh(&fm->lock);
		return;
	}
	/* before anything of a device is read; pairs with flowmap_netdev_event() */
	changes = smp_load_acquire(&fm->changes);
	ff->flow = flow;
	ff->ct = flow->ct;
	flowmap_fill_entry(fm, ff, FLOW_OFFLOAD_DIR_ORIGINAL);
	flowmap_fill_entry(fm, ff, FLOW_OFFLOAD_DIR_REPLY);
	for (dir = 0; dir < FLOW_OFFLOAD_DIR_MAX; dir++)
		if (ff->entry[!dir].more & FLOWMAP_WATCH)
			ff->entry[dir].more |= FLOWMAP_WATCH_BACK;

	err = flowmap_publish(fm, ff, changes, &old);
	/* the same connection, whose entry conntrack has dropped, the flowtable not yet */
	if (err == -EEXIST && nf_ct_is_dying(old->ct)) {
		flow_offload_teardown(old);
		err = flowmap_publish(fm, ff, changes, &old);
	}
	if (!err)
		return;
	/* one direction may have been seen for a moment */
	call_rcu(&ff->rcu, flowmap_free_flow_rcu);
	/* a device has changed meanwhile: to be offloaded, and filled in, anew */
	if (err == -EAGAIN)
		flow_offload_teardown(flow);
}

/* Call @fn for each entry; it may unlink it */
static void flowmap_walk(struct flowmap *fm,
			 void (*fn)(struct flowmap *fm, struct flowmap_entry *e, void *data),
			 void *data)
{
	struct flowmap_entry *e;
	u32 i;

	for (i = 0; i < fm->num; i++) {
		if (!(i % 1024))
			cond_resched();
		if (!rcu_access_pointer(fm->buckets[i]))
			continue;
		rcu_read_lock();
		for (e = rcu_dereference(fm->buckets[i]); e; e = rcu_dereference(e->next))
			fn(fm, e, data);
		rcu_read_unlock();
	}
}

static void flowmap_forget(struct flowmap *fm, struct flowmap_entry *e, void *data)
{
	flowmap_drop(fm, flowmap_flow_of(e)->flow);
}

/* Let go of all flows, and take no more; while the snooper is registered, so
 * that the flow of an entry that is found here is still there
 */
static void flowmap_close(struct flowmap *fm)
{
	spin_lock_bh(&fm->lock);
	fm->closed = true;
	spin_unlock_bh(&fm->lock);
	flowmap_walk(fm, flowmap_forget, NULL);
}

static void flowmap_snoop_net_exit(struct nf_flow_snooper *snooper)
{
	flowmap_close(container_of(snooper, struct flowmap, snooper));
}

static const struct nf_flow_snoop_ops flowmap_snoop_ops = {
	.add		= flowmap_snoop_add,
	.teardown	= flowmap_snoop_teardown,
	.net_exit	= flowmap_snoop_net_exit,
};

static bool flowmap_leaves_by(const struct flowmap_entry *e,
			      const struct flow_offload_tuple *tuple,
			      const struct net_device *dev)
{
	if (e->neigh && e->neigh->dev == dev)
		return true;
	if (tuple->dst_cache && tuple->dst_cache->dev == dev)
		return true;
	if (tuple->xmit_type == FLOW_OFFLOAD_XMIT_DIRECT && tuple->out.ifidx == dev->ifindex)
		return true;
	/* a VLAN on the way may be any of those on the device below */
	if (e->value.encap[0].proto && is_vlan_dev(dev))
		dev = vlan_dev_real_dev(dev);
	return e->value.ifindex == dev->ifindex;
}

static void flowmap_dev_gone(struct flowmap *fm, struct flowmap_entry *e, void *data)
{
	struct flow_offload *flow = flowmap_flow_of(e)->flow;
	const struct flow_offload_tuple *tuple = flowmap_tuple(e, flow);
	const struct net_device *dev = data;

	if (tuple->iifidx == dev->ifindex || flowmap_leaves_by(e, tuple, dev))
		flowmap_teardown(fm, flow);
}

/* What was published of the device may not be so any more */
static int flowmap_netdev_event(struct notifier_block *nb, unsigned long event, void *ptr)
{
	struct net_device *dev = netdev_notifier_info_to_dev(ptr);
	struct flowmap *fm;

	switch (event) {
	case NETDEV_CHANGE:
		/* a VLAN device may have a new map of priorities */
		if (netif_carrier_ok(dev) && !is_vlan_dev(dev))
			return NOTIFY_DONE;
		break;
	case NETDEV_DOWN:
	case NETDEV_UNREGISTER:
	case NETDEV_CHANGEMTU:
	case NETDEV_CHANGEADDR:
	case NETDEV_CHANGENAME:
	case NETDEV_CHANGEUPPER:
	case NETDEV_XDP_FEAT_CHANGE:
		break;
	default:
		return NOTIFY_DONE;
	}

	mutex_lock(&flowmaps_mutex);
	list_for_each_entry(fm, &flowmaps, list) {
		if (READ_ONCE(fm->snooper.net) != dev_net(dev))
			continue;
		spin_lock_bh(&fm->lock);
		/* after what has changed; pairs with flowmap_snoop_add() */
		smp_store_release(&fm->changes, fm->changes + 1);
		spin_unlock_bh(&fm->lock);
		flowmap_walk(fm, flowmap_dev_gone, dev);
	}
	mutex_unlock(&flowmaps_mutex);
	return NOTIFY_DONE;
}

static struct notifier_block flowmap_netdev_notifier = {
	.notifier_call	= flowmap_netdev_event,
};

/* Packets */

/* Something conntrack says has changed. Return: true if the entry is dying */
static noinline bool flowmap_ct_changed(struct flowmap_entry *e, const struct nf_conn *ct)
{
	flowmap_sync_ct(&e->value, ct);
	return nf_ct_is_dying(ct);
}

static bool flowmap_ct_stale(struct flowmap_entry *e, const struct nf_conn *ct)
{
	bool same = READ_ONCE(e->value.ct_status) == (u32)READ_ONCE(ct->status);

#ifdef CONFIG_NF_CONNTRACK_MARK
	same &= READ_ONCE(e->value.ct_mark) == READ_ONCE(ct->mark);
#endif
	return unlikely(!same) && flowmap_ct_changed(e, ct);
}

static bool flowmap_neigh_usable(const struct neighbour *neigh)
{
	return (READ_ONCE(neigh->nud_state) & NUD_VALID) && !READ_ONCE(neigh->dead);
}

/* May it be resolved by now? If there is none, for want of room, each second */
static bool flowmap_neigh_again(const struct flowmap_entry *e)
{
	return e->neigh ? flowmap_neigh_usable(e->neigh) :
	       (u32)jiffies - READ_ONCE(e->stamp) >= HZ;
}

static bool flowmap_neigh_moved(const struct flowmap_entry *e)
{
	bool same;

	/* data_race(): half an address is another one, too */
	same = data_race(ether_addr_equal_unaligned(e->neigh->ha, e->value.h_dest));
	return READ_ONCE(e->neigh->dead) || !same;
}

static bool flowmap_path_changed(struct flowmap_entry *e)
{
	struct flow_offload *flow = flowmap_flow_of(e)->flow;
	const struct bpf_flowmap_value *v = &e->value;
	struct bpf_flowmap_value now = {};

	guard(rcu)(); /* drivers run programs with bottom halves disabled only */
	flowmap_fill_way(&now, flowmap_tuple(e, flow)->dst_cache->dev, e->neigh);
	return now.flags != (v->flags & (BPF_FLOWMAP_NO_ETHER | BPF_FLOWMAP_NO_XMIT)) ||
	       now.ifindex != v->ifindex ||
	       !ether_addr_equal_unaligned(now.h_dest, v->h_dest) ||
	       !ether_addr_equal_unaligned(now.h_source, v->h_source) ||
	       memcmp(now.encap, v->encap, sizeof(v->encap));
}

static noinline bool flowmap_paths_changed(struct flowmap_entry *e)
{
	return ((e->more & FLOWMAP_WATCH) && flowmap_path_changed(e)) ||
	       ((e->more & FLOWMAP_WATCH_BACK) &&
		flowmap_path_changed(&flowmap_flow_of(e)->entry[!e->dir]));
}

/* A route that has a path MTU already gets a lower one in place, as it gets mtu6 */
static bool flowmap_mtu_fell(struct flowmap_entry *e)
{
	const struct dst_entry *dst = flowmap_tuple(e, flowmap_flow_of(e)->flow)->dst_cache;
	u32 mtu;

	if (!dst || (e->value.flags & BPF_FLOWMAP_XFRM))
		return false;
	if (e->value.h_proto == htons(ETH_P_IPV6))
		mtu = min(ip6_dst_mtu_maybe_forward(dst, true), dst_mtu(dst));
	else
		mtu = ip_dst_mtu_maybe_forward(dst, true);
	return mtu < e->value.mtu;
}

static noinline void flowmap_refresh(struct flowmap_entry *e)
{
	WRITE_ONCE(e->stamp, (u32)jiffies);
	WRITE_ONCE(e->value.last_used, (u32)ktime_get_seconds());
	flowmap_sync_ct(&e->value, flowmap_flow_of(e)->ct);
	nf_flow_snoop_refresh(flowmap_flow_of(e)->flow);
	/* as neigh_output() would: a stale neighbour is probed. By its timer, not
	 * from here, where a lock of the device may be held (tc)
	 */
	if (e->neigh)
		neigh_event_send_probe(e->neigh, NULL, false);
	/* nobody tells of chains, path MTUs and priorities set by ioctl: from the next packet on */
	if (flowmap_hooked(flowmap_flow_of(e), e->dir) || flowmap_mtu_fell(e) ||
	    (e->value.encap[0].proto && flowmap_path_changed(e)))
		flow_offload_teardown(flowmap_flow_of(e)->flow);
}

static noinline void flowmap_count(struct flowmap_entry *e, u32 packets, u64 bytes)
{
	struct bpf_flowmap_value *v = &e->value;

	if (e->more & FLOWMAP_COUNT_VALUE) {
		atomic64_add(packets, (atomic64_t *)&v->packets);
		atomic64_add(bytes, (atomic64_t *)&v->bytes);
	}
	if (e->more & FLOWMAP_COUNT_CT) {
		struct nf_conn_acct *acct = nf_conn_acct_find(flowmap_flow_of(e)->ct);

		atomic64_add(packets, &acct->counter[e->dir].packets);
		atomic64_add(bytes, &acct->counter[e->dir].bytes);
	}
}

/* The packet, or the flow, is out of the ordinary. Return: what the look-up
 * returns, ERR_PTR(-EAGAIN) to go on as usual
 */
static noinline void *flowmap_lookup_special(struct flowmap_entry *e,
					     const struct bpf_flowmap_key *k)
{
	u32 needs = e->value.flags & BPF_FLOWMAP_NEEDS_STACK;

	if (k->flags & ~FLOWMAP_KEY_FLAGS)
		return NULL;
	if (k->flags & BPF_FLOWMAP_KEY_SKB)
		needs &= ~BPF_FLOWMAP_NO_XMIT;
	if ((needs || k->len > e->value.mtu) && (k->flags & BPF_FLOWMAP_KEY_STACK))
		return &e->value;
	if (k->len > e->value.mtu)
		return NULL;
	if (k->tcp_flags & (TCPHDR_FIN | TCPHDR_RST)) {
		flow_offload_teardown(flowmap_flow_of(e)->flow);
		return NULL;
	}
	if (!needs)
		return ERR_PTR(-EAGAIN);
	/* resolved by now, another path, no chain: to be published anew */
	if (((needs & BPF_FLOWMAP_NO_NEIGH) && flowmap_neigh_again(e)) ||
	    ((needs & BPF_FLOWMAP_HOOKS) && !flowmap_hooked(flowmap_flow_of(e), e->dir)) ||
	    flowmap_paths_changed(e))
		flow_offload_teardown(flowmap_flow_of(e)->flow);
	return NULL;
}

/* Has something that the entry rests on changed? */
static __always_inline bool flowmap_stale(struct flowmap_entry *e,
					  const struct flowmap_flow *ff)
{
	const struct flow_offload_tuple *tuple = flowmap_tuple(e, ff->flow);

	if (flowmap_ct_stale(e, ff->ct))
		return true;
	if (tuple->dst_cache && !dst_check(tuple->dst_cache, tuple->dst_cookie))
		return true;
	if (e->neigh && unlikely(flowmap_neigh_moved(e)))
		return true;
	return unlikely(e->more & FLOWMAP_WATCH_PATHS) && flowmap_paths_changed(e);
}

static void *flowmap_lookup_elem(struct bpf_map *map, void *key)
{
	const struct bpf_flowmap_key *k = key;
	struct flowmap_flow *ff;
	struct flowmap_entry *e;

	e = flowmap_find(to_flowmap(map), k);
	if (!e)
		return NULL;

	if (unlikely((get_unaligned((const __be16 *)&k->tcp_flags) & FLOWMAP_KEY_SPECIAL) ||
		     (e->value.flags & BPF_FLOWMAP_NEEDS_STACK) ||
		     k->len > e->value.mtu)) {
		void *ret = flowmap_lookup_special(e, k);

		if (ret != ERR_PTR(-EAGAIN))
			return ret;
	}

	ff = flowmap_flow_of(e);
	if (unlikely(flowmap_stale(e, ff))) {
		flow_offload_teardown(ff->flow);
		return NULL;
	}
	if (e->neigh && unlikely(!flowmap_neigh_usable(e->neigh))) {
		/* through a bridge the flowtable asks no neighbour */
		if (e->more & FLOWMAP_WATCH)
			flow_offload_teardown(ff->flow);
		return NULL;
	}

	if (unlikely((u32)jiffies - READ_ONCE(e->stamp) >= HZ))
		flowmap_refresh(e);
	if (unlikely(e->more & FLOWMAP_COUNT))
		flowmap_count(e, 1, k->len);
	return &e->value;
}

/* User space */

static void *flowmap_lookup_elem_sys(struct bpf_map *map, void *key)
{
	struct flowmap_entry *e = flowmap_find(to_flowmap(map), key);

	if (!e)
		return NULL;
	flowmap_sync_ct(&e->value, flowmap_flow_of(e)->ct);
	return &e->value;
}

/* Credit packets that others forwarded: a NIC, say */
static long flowmap_update_elem(struct bpf_map *map, void *key, void *value, u64 flags)
{
	struct bpf_flowmap_value credit = *(const struct bpf_flowmap_value *)value;
	struct flowmap_entry *e;
	u64 packets, bytes;

	if (flags != BPF_EXIST)
		return -EOPNOTSUPP;
	packets = credit.packets;
	bytes = credit.bytes;
	credit.packets = 0;
	credit.bytes = 0;
	if (memchr_inv(&credit, 0, sizeof(credit)) || packets > U32_MAX)
		return -EINVAL;

	e = flowmap_find(to_flowmap(map), key);
	if (!e)
		return -ENOENT;
	if (flowmap_stale(e, flowmap_flow_of(e))) {
		flow_offload_teardown(flowmap_flow_of(e)->flow);
		return -ENOENT;
	}
	flowmap_count(e, packets, bytes);
	flowmap_refresh(e);
	return 0;
}

static long flowmap_delete_elem(struct bpf_map *map, void *key)
{
	struct flowmap *fm = to_flowmap(map);
	struct flowmap_entry *e = flowmap_find(fm, key);

	return e && flowmap_teardown(fm, flowmap_flow_of(e)->flow) ? 0 : -ENOENT;
}

static int flowmap_get_next_key(struct bpf_map *map, void *key, void *next)
{
	struct flowmap *fm = to_flowmap(map);
	struct flowmap_entry __rcu **bucket = fm->buckets;
	struct flowmap_entry *e = NULL;
	u64 words[FLOWMAP_WORDS];

	if (key) {
		flowmap_key_words(fm, key, words);
		bucket = flowmap_bucket(fm, words);
		for (e = flowmap_deref(*bucket); e; e = flowmap_deref(e->next))
			if (flowmap_cmp(e, key, words) > 0)
				break;
		bucket++;
	}
	for (; !e && bucket < &fm->buckets[fm->num]; bucket++)
		e = flowmap_deref(*bucket);
	if (!e)
		return -ENOENT;
	flowmap_key_from_entry(next, e);
	return 0;
}

static long flowmap_for_each(struct bpf_map *map, bpf_callback_t callback,
			     void *ctx, u64 flags)
{
	struct flowmap *fm = to_flowmap(map);
	struct bpf_flowmap_key k;
	struct flowmap_entry *e;
	u32 i, done = 0;

	if (flags)
		return -EINVAL;

	for (i = 0; i < fm->num; i++) {
		for (e = flowmap_deref(fm->buckets[i]); e; e = flowmap_deref(e->next)) {
			flowmap_key_from_entry(&k, e);
			flowmap_sync_ct(&e->value, flowmap_flow_of(e)->ct);
			done++;
			if (callback((u64)(long)map, (u64)(long)&k,
				     (u64)(long)&e->value, (u64)(long)ctx, 0))
				return done;
		}
	}
	return done;
}

/* The map */

static int flowmap_alloc_check(union bpf_attr *attr)
{
	if (attr->key_size != sizeof(struct bpf_flowmap_key) ||
	    attr->value_size != sizeof(struct bpf_flowmap_value) ||
	    attr->max_entries < FLOW_OFFLOAD_DIR_MAX ||
	    attr->map_extra & ~FLOWMAP_MAP_EXTRA)
		return -EINVAL;
	return attr->max_entries > FLOWMAP_MAX_ENTRIES ? -E2BIG : 0;
}

static void flowmap_free(struct bpf_map *map)
{
	struct flowmap *fm = to_flowmap(map);

	flowmap_close(fm);
	nf_flow_snoop_unregister(&fm->snooper);
	mutex_lock(&flowmaps_mutex);
	list_del(&fm->list);
	mutex_unlock(&flowmaps_mutex);
	bpf_map_area_free(fm->buckets);
	bpf_modular_map_free(map);
}

static bool flowmap_has_dev(struct net *net, int ifindex)
{
	bool found;

	rcu_read_lock();
	found = dev_get_by_index_rcu(net, ifindex);
	rcu_read_unlock();
	return found;
}

static struct bpf_map *flowmap_alloc(union bpf_attr *attr)
{
	int ifindex = attr->map_extra >> BPF_FLOWMAP_DEVICE_SHIFT;
	struct net *net = current->nsproxy->net_ns;
	struct flowmap *fm;
	struct bpf_map *map;

	if (ifindex && !flowmap_has_dev(net, ifindex))
		return ERR_PTR(-ENODEV);
	map = bpf_modular_map_alloc(attr, sizeof(*fm));
	if (IS_ERR(map))
		return map;
	fm = to_flowmap(map);
	/* half as many buckets as entries: chains of two in a full map */
	fm->num = attr->max_entries / 2;
	fm->buckets = bpf_map_area_alloc((u64)fm->num * sizeof(*fm->buckets), map->numa_node);
	if (!fm->buckets) {
		bpf_modular_map_free(map);
		return ERR_PTR(-ENOMEM);
	}
	get_random_bytes(fm->seed, sizeof(fm->seed));
	spin_lock_init(&fm->lock);

	mutex_lock(&flowmaps_mutex);
	list_add(&fm->list, &flowmaps);
	mutex_unlock(&flowmaps_mutex);
	fm->snooper.ops = &flowmap_snoop_ops;
	nf_flow_snoop_register(&fm->snooper, net);
	return map;
}

static u64 flowmap_mem_usage(const struct bpf_map *map)
{
	const struct flowmap *fm = to_flowmap(map);

	return sizeof(*fm) + (u64)fm->num * sizeof(*fm->buckets) +
	       (u64)READ_ONCE(fm->entries) / FLOW_OFFLOAD_DIR_MAX *
	       kmem_cache_size(flowmap_cache);
}

/* Members of the UAPI's structures: a program that was built for others would
 * misread every value
 */
static const u8 flowmap_key_members[] = {
	offsetof(struct bpf_flowmap_key, ifindex),
	offsetof(struct bpf_flowmap_key, sport),
	offsetof(struct bpf_flowmap_key, dport),
	offsetof(struct bpf_flowmap_key, family),
	offsetof(struct bpf_flowmap_key, l4proto),
	offsetof(struct bpf_flowmap_key, reserved),
	offsetof(struct bpf_flowmap_key, encap),
	offsetof(struct bpf_flowmap_key, tunnel),
	offsetof(struct bpf_flowmap_key, addr),
	offsetof(struct bpf_flowmap_key, len),
	offsetof(struct bpf_flowmap_key, tcp_flags),
	offsetof(struct bpf_flowmap_key, flags),
	offsetof(struct bpf_flowmap_key, reserved2),
};

static const u8 flowmap_value_members[] = {
	offsetof(struct bpf_flowmap_value, flags),
	offsetof(struct bpf_flowmap_value, ifindex),
	offsetof(struct bpf_flowmap_value, h_dest),
	offsetof(struct bpf_flowmap_value, h_source),
	offsetof(struct bpf_flowmap_value, h_proto),
	offsetof(struct bpf_flowmap_value, mtu),
	offsetof(struct bpf_flowmap_value, encap),
	offsetof(struct bpf_flowmap_value, ip_csum_diff),
	offsetof(struct bpf_flowmap_value, l4_csum_diff),
	offsetof(struct bpf_flowmap_value, sport),
	offsetof(struct bpf_flowmap_value, dport),
	offsetof(struct bpf_flowmap_value, addr),
	offsetof(struct bpf_flowmap_value, ct_status),
	offsetof(struct bpf_flowmap_value, ct_mark),
	offsetof(struct bpf_flowmap_value, ct_id),
	offsetof(struct bpf_flowmap_value, ct_zone),
	offsetof(struct bpf_flowmap_value, tcp_state),
	offsetof(struct bpf_flowmap_value, tcp_wscale),
	offsetof(struct bpf_flowmap_value, packets),
	offsetof(struct bpf_flowmap_value, bytes),
	offsetof(struct bpf_flowmap_value, last_used),
	offsetof(struct bpf_flowmap_value, reserved2),
};

static bool flowmap_btf_matches(const struct btf_type *t, const u8 *offsets, u32 n)
{
	const struct btf_member *member;
	u32 i;

	if (!__btf_type_is_struct(t) || btf_type_vlen(t) != n)
		return false;
	for_each_member(i, t, member)
		if (__btf_member_bit_offset(t, member) != 8 * offsets[i])
			return false;
	return true;
}

static int flowmap_check_btf(const struct bpf_map *map, const struct btf *btf,
			     const struct btf_type *key_type,
			     const struct btf_type *value_type)
{
	if (!flowmap_btf_matches(key_type, flowmap_key_members,
				 ARRAY_SIZE(flowmap_key_members)) ||
	    !flowmap_btf_matches(value_type, flowmap_value_members,
				 ARRAY_SIZE(flowmap_value_members)))
		return -EINVAL;
	return 0;
}

static const struct bpf_map_ops flowmap_ops = {
	.map_alloc_check		= flowmap_alloc_check,
	.map_alloc			= flowmap_alloc,
	.map_free			= flowmap_free,
	.map_lookup_elem		= flowmap_lookup_elem,
	.map_lookup_elem_sys_only	= flowmap_lookup_elem_sys,
	.map_update_elem		= flowmap_update_elem,
	.map_delete_elem		= flowmap_delete_elem,
	.map_get_next_key		= flowmap_get_next_key,
	.map_for_each_callback		= flowmap_for_each,
	.map_check_btf			= flowmap_check_btf,
	.map_mem_usage			= flowmap_mem_usage,
};

static const u16 flowmap_helpers[] = {
	BPF_FUNC_map_lookup_elem,
	BPF_FUNC_map_update_elem,
	BPF_FUNC_map_delete_elem,
	BPF_FUNC_for_each_map_elem,
	0
};

static const struct bpf_modular_map_type flowmap_type = {
	.type		= BPF_MAP_TYPE_FLOWMAP,
	.name		= "flowmap",
	.ops		= &flowmap_ops,
	.prog_types	= BIT_ULL(BPF_PROG_TYPE_XDP) |
			  BIT_ULL(BPF_PROG_TYPE_SCHED_CLS) |
			  BIT_ULL(BPF_PROG_TYPE_SCHED_ACT),
	.helpers	= flowmap_helpers,
	.cap		= CAP_NET_ADMIN,
	.map_flags	= FLOWMAP_MAP_FLAGS,
	.flags		= BPF_MODULAR_MAP_EXTRA |
			  BPF_MODULAR_MAP_VALUE_RDONLY |
			  BPF_MODULAR_MAP_GENERIC,
};

/* /proc/net/nf_flowmap: the namespace's maps, and how full they are */

static int __maybe_unused flowmap_proc_show(struct seq_file *m, void *v)
{
	struct net *net = seq_file_single_net(m);
	struct flowmap *fm;

	seq_puts(m, "id\tentries\tmax_entries\tfull\n");
	mutex_lock(&flowmaps_mutex);
	list_for_each_entry(fm, &flowmaps, list)
		if (READ_ONCE(fm->snooper.net) == net)
			seq_printf(m, "%u\t%u\t%u\t%llu\n", READ_ONCE(fm->map.id),
				   READ_ONCE(fm->entries), fm->map.max_entries,
				   READ_ONCE(fm->full));
	mutex_unlock(&flowmaps_mutex);
	return 0;
}

static int __net_init flowmap_net_init(struct net *net)
{
	if (!IS_ENABLED(CONFIG_PROC_FS))
		return 0;
	return proc_create_net_single("nf_flowmap", 0444, net->proc_net,
				      flowmap_proc_show, NULL) ? 0 : -ENOMEM;
}

static void __net_exit flowmap_net_exit(struct net *net)
{
	remove_proc_entry("nf_flowmap", net->proc_net);
}

static struct pernet_operations flowmap_net_ops = {
	.init	= flowmap_net_init,
	.exit	= flowmap_net_exit,
};

static struct bpf_modular_map *flowmap_modular;

static int __init flowmap_init(void)
{
	int err;

	flowmap_cache = KMEM_CACHE(flowmap_flow, 0);
	if (!flowmap_cache)
		return -ENOMEM;
	err = register_pernet_subsys(&flowmap_net_ops);
	if (err)
		goto destroy_cache;
	err = register_netdevice_notifier(&flowmap_netdev_notifier);
	if (err)
		goto unregister_net;
	flowmap_modular = bpf_modular_map_register(&flowmap_type);
	if (IS_ERR(flowmap_modular)) {
		err = PTR_ERR(flowmap_modular);
		goto unregister_notifier;
	}
	return 0;

unregister_notifier:
	unregister_netdevice_notifier(&flowmap_netdev_notifier);
unregister_net:
	unregister_pernet_subsys(&flowmap_net_ops);
destroy_cache:
	kmem_cache_destroy(flowmap_cache);
	return err;
}

static void __exit flowmap_exit(void)
{
	bpf_modular_map_unregister(flowmap_modular);
	unregister_netdevice_notifier(&flowmap_netdev_notifier);
	unregister_pernet_subsys(&flowmap_net_ops);
	rcu_barrier(); /* flowmap_free_flow_rcu() */
	kmem_cache_destroy(flowmap_cache);
}

module_init(flowmap_init);
module_exit(flowmap_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Netfilter flow table as a BPF map");
MODULE_ALIAS("bpf-map-type-" __stringify(BPF_MAP_TYPE_FLOWMAP));
