/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * TCP's windows, as conntrack's tcp_in_window() bounds them: for programs that
 * forward a connection's packets without conntrack (or anybody) seeing them.
 *
 * What is known of a connection is learnt from its packets, the first one looked
 * at included, and forgotten when the flow is published anew: meanwhile packets
 * have gone through the stack. A packet is checked once both sides were seen.
 *
 * Two CPUs may handle packets of one connection at once. There is no lock: what
 * is lost then is that a bound moved on, which the next packet makes up for.
 */
#ifndef __TCP_WINDOW_BPF_H
#define __TCP_WINDOW_BPF_H

#include "flowmap.bpf.h"

/* An ACK may be older than a window: conntrack's MAXACKCONST */
#define TCP_WINDOW_ACK_MIN	66000

/* Both directions find the same; conntrack's id alone may be two connections' */
struct tcp_window_key {
	__u32	ct_id;
	__be16	sport;		/* as the client sends */
	__be16	dport;
};

struct tcp_window_side {
	__u64	packets;	/* value's at the last one that was looked at */
	__u32	end;		/* sequence number behind the last byte that it sent */
	__u32	max_end;	/* the same behind the last byte that it may send */
	__u32	max_win;	/* largest window that it offered; 0: not seen yet */
	__u32	reserved;
};

struct tcp_window {
	struct tcp_window_side side[2]; /* original, reply */
};

/* The most recently used connections; max_entries is set if it is needed */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct tcp_window_key);
	__type(value, struct tcp_window);
	__uint(max_entries, 1);
} tcp_windows SEC(".maps");

static __always_inline bool tcp_window_before(__u32 a, __u32 b)
{
	return (__s32)(a - b) < 0;
}

static __always_inline bool tcp_window_after(__u32 a, __u32 b)
{
	return tcp_window_before(b, a);
}

static __always_inline struct tcp_window *
tcp_window_find(const struct bpf_flowmap_key *key, const struct bpf_flowmap_value *value)
{
	bool reply = value->flags & BPF_FLOWMAP_REPLY;
	struct tcp_window_key k = {
		.ct_id = value->ct_id,
		.sport = reply ? value->dport : key->sport,
		.dport = reply ? value->sport : key->dport,
	};
	struct tcp_window *w = bpf_map_lookup_elem(&tcp_windows, &k);
	struct tcp_window none = {};

	if (w)
		return w;
	bpf_map_update_elem(&tcp_windows, &k, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&tcp_windows, &k);
}

/* @seq to @end is sent by @s, which acknowledges @ack and offers @win bytes */
static __always_inline bool
tcp_window_side_ok(struct tcp_window_side *s, struct tcp_window_side *r,
		   __u32 seq, __u32 end, __u32 ack, __u32 win)
{
	__u32 ack_room = s->max_win > TCP_WINDOW_ACK_MIN ? s->max_win : TCP_WINDOW_ACK_MIN;
	bool first = !s->max_win;

	if (r->max_win) {
		/* acknowledged what was not sent, or what was long ago */
		if (tcp_window_after(ack, r->end) || tcp_window_before(ack, r->end - ack_room))
			return false;
		/* sent again what was acknowledged long ago */
		if (!first && tcp_window_before(end, s->end - r->max_win))
			return false;
		/* sent more than the other has room for: if it takes it, its ACKs are right */
		if (tcp_window_after(seq, s->max_end)) {
			if (end - s->max_end < r->max_win)
				s->end = end;
			return false;
		}
		if (tcp_window_after(end, s->max_end))
			r->max_win += end - s->max_end;
	}

	if (first || tcp_window_after(end, s->end))
		s->end = end;
	if (first || !tcp_window_before(ack + win, r->max_end))
		r->max_end = ack + (win ? win : 1);
	if (first || win > s->max_win)
		s->max_win = win ? win : 1;
	return true;
}

/**
 * tcp_window_ok() - is a packet within the connection's windows?
 * @ctx:   the frame
 * @key:   as flowmap_parse() made it from this frame: TCP
 * @value: what the flowmap has for it, in a map with BPF_FLOWMAP_COUNTERS
 *
 * Return: false if the stack should see it. Nothing is changed in the frame.
 */
static __always_inline bool
tcp_window_ok(struct xdp_md *ctx, const struct bpf_flowmap_key *key,
	      const struct bpf_flowmap_value *value)
{
	__u32 ip_len = key->family == AF_INET ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	struct tcphdr *tcp = (void *)(long)ctx->data + flowmap_l2_len(key->encap) + ip_len;
	struct tcp_window_side *s, *r;
	__u32 seq, end, ack, win;
	struct tcp_window *w;

	if ((void *)(tcp + 1) > (void *)(long)ctx->data_end)
		return false;
	seq = bpf_ntohl(tcp->seq);
	ack = bpf_ntohl(tcp->ack_seq);
	end = seq + key->len - ip_len - tcp->doff * 4;
	win = (__u32)bpf_ntohs(tcp->window) << (value->tcp_wscale & 15);

	w = tcp_window_find(key, value);
	if (!w)
		return false;
	s = &w->side[value->flags & BPF_FLOWMAP_REPLY ? 1 : 0];
	r = &w->side[value->flags & BPF_FLOWMAP_REPLY ? 0 : 1];

	/* published anew: counted from the start */
	if (value->packets < s->packets || (value->packets == 1 && s->packets)) {
		__builtin_memset(s, 0, sizeof(*s));
		__builtin_memset(r, 0, sizeof(*r));
	}
	s->packets = value->packets;
	return tcp_window_side_ok(s, r, seq, end, ack, win);
}

#endif /* __TCP_WINDOW_BPF_H */
