// SPDX-License-Identifier: GPL-2.0-only
/*
 * Forward what netfilter has offloaded, in XDP, and leave all else to the stack
 *
 * A frame is parsed, looked up and rewritten by what the flowmap says. It is
 * sent only if it is, to the byte, what the stack would have sent; any other
 * is passed up untouched, and counted by reason. Helpers: flowmap.bpf.h; for
 * xdp_ct_strict, which is --strict-tcp, tcp_window.bpf.h. xdp_ct_beside is for
 * libxdp's dispatcher: see RESIZE.
 */
#include "flowmap.bpf.h"
#include "tcp_window.bpf.h"

/* Set by the loader, and right as they are without one (ip link, xdp-loader) */
const volatile __u64 own_mac;	 /* device's address, bytes as in a frame; 0: any */
const volatile __u64 bridge_mac; /* that of the bridge that it is a port of, or own */
const volatile __u32 ingress;	 /* device's number: a bond's frames come in by others; 0: theirs */
const volatile bool skb_mode;	 /* generic XDP: egress need not transmit XDP frames */
const volatile bool counters;	 /* count what is forwarded, too */

#define MAC_MASK	bpf_cpu_to_be64(0xffffffffffff0000ULL)

struct {
	__uint(type, BPF_MAP_TYPE_FLOWMAP);
	__type(key, struct bpf_flowmap_key);
	__type(value, struct bpf_flowmap_value);
	__uint(max_entries, 65536);
} flowmap SEC(".maps");

struct xdp_ct_count {
	__u64	packets;
	__u64	bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32); /* enum flowmap_reason */
	__type(value, struct xdp_ct_count);
	__uint(max_entries, FLOWMAP_REASONS);
} xdp_ct_stats SEC(".maps");

/* libxdp's dispatcher: run behind filters, and let others see what is passed */
struct {
	__uint(priority, 60);
	__uint(XDP_PASS, 1);
} _xdp_ct_beside SEC(".xdp_run_config");

/* What the programs below differ in */
#define STRICT	1	/* TCP's windows are checked */
#define RESIZE	2	/* frames may become longer and shorter */

static __always_inline void count(__u32 reason, __u32 bytes)
{
	struct xdp_ct_count *c = bpf_map_lookup_elem(&xdp_ct_stats, &reason);

	if (c) {
		c->packets++;
		c->bytes += bytes;
	}
}

static __noinline int pass(struct xdp_md *ctx, enum flowmap_reason reason)
{
	count(reason, ctx->data_end - ctx->data);
	return XDP_PASS;
}

/* The stack ignores what is for others, as comes in from a flooding switch */
static __always_inline bool not_host(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	__u64 own = own_mac, dest;

	if (data + ETH_HLEN > end)
		return false; /* flowmap_parse() says so */

	dest = *(flowmap_u64 *)data & MAC_MASK;
	if (!own)
		return *(__u8 *)data & 1;
	return dest != own && dest != bridge_mac;
}

/* Why there is no value to forward by. FIN and RST end the flow, and are the stack's */
static __noinline enum flowmap_reason why_none(struct bpf_flowmap_key *key)
{
	const struct bpf_flowmap_value *value;
	__u32 needs;

	if (key->tcp_flags & (FLOWMAP_TCP_FIN | FLOWMAP_TCP_RST))
		return FLOWMAP_TCP_CLOSE;

	key->flags |= BPF_FLOWMAP_KEY_STACK;
	value = bpf_map_lookup_elem(&flowmap, key);
	if (!value)
		return FLOWMAP_MISS;

	needs = value->flags & BPF_FLOWMAP_NEEDS_STACK;
	if (skb_mode)
		needs &= ~BPF_FLOWMAP_NO_XMIT;
	if (needs)
		return FLOWMAP_NEEDS_STACK;
	return key->len > value->mtu ? FLOWMAP_MTU : FLOWMAP_MISS;
}

static __always_inline int forward(struct xdp_md *ctx, const int how)
{
	struct bpf_flowmap_key key __attribute__((aligned(8)));
	struct bpf_flowmap_value *value;
	enum flowmap_reason reason;

	if (not_host(ctx))
		return pass(ctx, FLOWMAP_NOT_HOST);

	reason = flowmap_parse(ctx, &key);
	if (reason)
		return pass(ctx, reason);

	if (!(how & RESIZE) && flowmap_has_trailer(ctx, &key))
		return pass(ctx, FLOWMAP_RESIZE);

	if (ingress)
		key.ifindex = ingress;
	if (skb_mode)
		key.flags = BPF_FLOWMAP_KEY_SKB;

	value = bpf_map_lookup_elem(&flowmap, &key);
	if (!value)
		return pass(ctx, why_none(&key));

	if (how & STRICT && key.l4proto == IPPROTO_TCP && !tcp_window_ok(ctx, &key, value))
		return pass(ctx, FLOWMAP_TCP_WINDOW);

	reason = how & RESIZE ? flowmap_rewrite(ctx, &key, value) :
				flowmap_rewrite_in_place(ctx, &key, value);
	if (reason == FLOWMAP_HEADROOM || reason == FLOWMAP_RESIZE)
		return pass(ctx, reason);
	if (reason) { /* cannot be: the frame is as it was parsed */
		count(FLOWMAP_ABORTED, key.len);
		return XDP_ABORTED;
	}

	if (counters)
		count(FLOWMAP_FORWARDED, key.len);

	return bpf_redirect(value->ifindex, 0);
}

SEC("xdp")
int xdp_ct(struct xdp_md *ctx)
{
	return forward(ctx, RESIZE);
}

SEC("xdp")
int xdp_ct_strict(struct xdp_md *ctx)
{
	return forward(ctx, STRICT | RESIZE);
}

SEC("xdp")
int xdp_ct_beside(struct xdp_md *ctx)
{
	return forward(ctx, 0);
}

char _license[] SEC("license") = "GPL";
