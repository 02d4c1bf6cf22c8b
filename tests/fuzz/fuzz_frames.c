// SPDX-License-Identifier: GPL-2.0-only
/*
 * Fuzz xdp_ct's frames: the program itself, compiled for user space, with a map
 * of one flow around it, against a model of what the stack does
 *
 * An input is either a frame as it is, or a recipe: a frame of some kind, with
 * some encapsulation, and bytes of it changed. The frame ends where a page ends
 * that has nothing behind it. What must come of it:
 *
 *  - passed: not a byte changed, no end moved;
 *  - forwarded: the bytes that the model makes, by another way: it parses byte
 *    by byte, writes the frame anew and compares whole checksums. L4 checksums,
 *    which may be wrong to begin with, must be wrong by as much afterwards;
 *  - one or the other exactly if the model says so.
 *
 * xdp_ct_strict has windows that the recipe makes, of a connection that it knows or
 * not, and a model of which packets are within them.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

static void *fuzz_lookup(void *map, const void *key);
static long fuzz_adjust_head(struct xdp_md *ctx, int delta);
static long fuzz_adjust_tail(struct xdp_md *ctx, int delta);
static long fuzz_redirect(__u32 ifindex, __u64 flags);
static long fuzz_update(void *map, const void *key, const void *value, __u64 flags);

#define bpf_map_lookup_elem fuzz_lookup
#define bpf_xdp_adjust_head fuzz_adjust_head
#define bpf_xdp_adjust_tail fuzz_adjust_tail
#define bpf_redirect fuzz_redirect
#define bpf_map_update_elem fuzz_update
#include "../../samples/xdp_ct/xdp_ct.bpf.c"

#define OWN_MAC "\x02\x00\x00\x00\x01\x01"
#define INGRESS 7
#define EGRESS 8
#define ROOM 4096
#define FRAME_MAX 2048

/* bytes as in a frame: own_mac is compared in one go */
const volatile __u64 own_mac = 0x010100000002ULL;
const volatile __u64 bridge_mac = 0x010100000002ULL;

struct encap {
	__u16 proto, id;
};

static struct {
	__u8 *hard_start;	/* of the frame's room */
	struct bpf_flowmap_value value;
	struct bpf_flowmap_key key;	/* what the model says that is looked up */
	bool known;		/* to the map, and so not a miss */
	bool hit;
	bool looked_up;
	struct encap out[2];
	struct tcp_window *windows;	/* NULL: not known */
	struct tcp_window_key windows_key;
	bool no_room;			/* for more windows */
	__u32 reason;			/* what was counted */
} flow;

static __u8 *room;		/* ROOM bytes below 4 GB, nothing on either side */
static unsigned long inputs, forwarded, outside; /* of TCP's windows */

static void fail(const char *why, const __u8 *in, size_t in_len, const __u8 *out,
		 size_t out_len)
{
	size_t i;

	fprintf(stderr, "%s\n", why);
	for (i = 0; i < in_len || i < out_len; i++)
		fprintf(stderr, "%4zu  %02x %02x%s\n", i, i < in_len ? in[i] : 0,
			i < out_len ? out[i] : 0,
			i < in_len && i < out_len && in[i] == out[i] ? "" : "  <");
	abort();
}

/* What the program calls */

static void *fuzz_lookup(void *map, const void *key)
{
	static __u8 stats[4096];

	if (map == &tcp_windows) {
		if (memcmp(key, &flow.windows_key, sizeof(flow.windows_key)))
			fail("windows of another connection", (void *)&flow.windows_key,
			     sizeof(flow.windows_key), key, sizeof(flow.windows_key));
		return flow.windows;
	}
	if (map != &flowmap) {
		flow.reason = *(__u32 *)key;
		return stats;
	}
	if (flow.looked_up)	/* once more, to know why */
		flow.key.flags |= BPF_FLOWMAP_KEY_STACK;
	flow.looked_up = true;
	if (memcmp(key, &flow.key, sizeof(flow.key)))
		fail("another key than the model's", (void *)&flow.key, sizeof(flow.key), key,
		     sizeof(flow.key));
	return flow.hit || (flow.known && flow.key.flags) ? &flow.value : NULL;
}

static long fuzz_update(void *map, const void *key, const void *value, __u64 flags)
{
	static struct tcp_window windows;

	if (map != &tcp_windows || flow.windows || flags != BPF_NOEXIST ||
	    memcmp(key, &flow.windows_key, sizeof(flow.windows_key)))
		abort();
	if (flow.no_room)
		return -1;
	memcpy(&windows, value, sizeof(windows));
	flow.windows = &windows;
	return 0;
}

static long fuzz_adjust_head(struct xdp_md *ctx, int delta)
{
	__u8 *data = (__u8 *)(long)ctx->data + delta;

	if (data < flow.hard_start || data > (__u8 *)(long)ctx->data_end - ETH_HLEN)
		return -1;
	ctx->data += delta;
	return 0;
}

static long fuzz_adjust_tail(struct xdp_md *ctx, int delta)
{
	if (delta > 0 || ctx->data_end + delta < ctx->data + ETH_HLEN)
		return -1;
	ctx->data_end += delta;
	return 0;
}

static long fuzz_redirect(__u32 ifindex, __u64 flags)
{
	if (ifindex != EGRESS || flags)
		abort();
	return XDP_REDIRECT;
}

/* The model */

struct packet {
	struct encap encap[2];
	size_t ip, ip_len, l4;	/* offsets and length */
	__u8 proto;
	bool v6;
};

static unsigned int get16(const __u8 *p)
{
	return p[0] << 8 | p[1];
}

static void put16(__u8 *p, unsigned int v)
{
	p[0] = v >> 8;
	p[1] = v;
}

/* One's complement sum of big-endian words, 1 to 0xffff for all but zeros */
static __u32 sum16(const __u8 *p, size_t n, __u32 sum)
{
	size_t i;

	for (i = 0; i < n; i++)
		sum += i % 2 ? p[i] : p[i] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* Pseudo header and segment, the checksum included, modulo 0xffff */
static __u32 l4_sum(const __u8 *frame, const struct packet *p)
{
	size_t addrs = p->v6 ? 8 : 12, n = p->v6 ? 32 : 8;

	return sum16(frame + p->l4, p->ip + p->ip_len - p->l4,
		     sum16(frame + p->ip + addrs, n, 0)) % 0xffff;
}

static unsigned int ppp_type(unsigned int proto)
{
	return proto == 0x21 ? ETH_P_IP : proto == 0x57 ? ETH_P_IPV6 : 0;
}

static bool parse_encap(const __u8 *f, size_t len, struct packet *p, unsigned int *type,
			size_t *end)
{
	int i;

	for (i = 0; i < 2 && *type != ETH_P_IP && *type != ETH_P_IPV6; i++) {
		const __u8 *h = f + p->ip;
		size_t n;

		if (p->ip + 8 > len)
			return false;
		p->encap[i].proto = *type;
		switch (*type) {
		case ETH_P_8021Q:
		case ETH_P_8021AD:
			p->encap[i].id = get16(h) % 4096;
			*type = get16(h + 2);
			p->ip += 4;
			break;
		case ETH_P_PPP_SES:
			n = get16(h + 4);
			if (h[0] != 0x11 || h[1] || n < 2 || p->ip + 6 + n > *end)
				return false;
			p->encap[i].id = get16(h + 2);
			*type = ppp_type(get16(h + 6));
			*end = p->ip + 6 + n;
			p->ip += 8;
			break;
		default:
			return false;
		}
	}
	return *type == ETH_P_IP || *type == ETH_P_IPV6;
}

static bool parse_l4(const __u8 *f, struct packet *p)
{
	size_t len = p->ip + p->ip_len - p->l4;
	const __u8 *h = f + p->l4;

	switch (p->proto) {
	case IPPROTO_UDP:
		return get16(h + 4) >= 8 && get16(h + 4) <= len;
	case IPPROTO_TCP:
		if (len < 20 || (h[12] >> 4) * 4U < 20 || (h[12] >> 4) * 4U > len)
			return false;
		switch (h[13] & 0x37) { /* without PSH, ECE, CWR */
		case 0x10: case 0x30: case 0x11: case 0x31: case 0x04: case 0x14:
			return true;
		}
		return false;
	case IPPROTO_GRE:
		return !(h[1] & 7);
	}
	return false;
}

/* Is it the fast path's, by its bytes alone? */
static bool parse(const __u8 *f, size_t len, struct packet *p)
{
	unsigned int type;
	size_t end = len;
	const __u8 *h;

	memset(p, 0, sizeof(*p));
	if (len < ETH_HLEN + 28 || memcmp(f, OWN_MAC, 6))
		return false;
	type = get16(f + 12);
	p->ip = ETH_HLEN;
	if (!parse_encap(f, len, p, &type, &end) || p->ip + 28 > end)
		return false;
	h = f + p->ip;
	p->v6 = type == ETH_P_IPV6;
	if (p->v6) {
		if (p->ip + 48 > len || h[0] >> 4 != 6 || get16(h + 4) < 8 || h[7] <= 1)
			return false;
		p->ip_len = 40 + get16(h + 4);
		p->l4 = p->ip + 40;
		p->proto = h[6];
	} else {
		if (h[0] != 0x45 || get16(h + 2) < 28 || sum16(h, 20, 0) != 0xffff ||
		    get16(h + 6) & 0x3fff || h[8] <= 1)
			return false;
		p->ip_len = get16(h + 2);
		p->l4 = p->ip + 20;
		p->proto = h[9];
	}
	return p->ip + p->ip_len <= end && parse_l4(f, p);
}

static void model_key(const __u8 *f, const struct packet *p)
{
	struct bpf_flowmap_key *k = &flow.key;
	int i;

	memset(k, 0, sizeof(*k));
	k->ifindex = INGRESS;
	k->family = p->v6 ? AF_INET6 : AF_INET;
	k->l4proto = p->proto;
	k->len = p->ip_len;
	for (i = 0; i < 2; i++) {
		put16((__u8 *)&k->encap[i].proto, p->encap[i].proto);
		k->encap[i].id = p->encap[i].id;
	}
	memcpy(&k->addr, f + p->ip + (p->v6 ? 8 : 12), p->v6 ? 32 : 8);
	if (p->proto != IPPROTO_GRE)
		memcpy(&k->sport, f + p->l4, 4);
	if (p->proto == IPPROTO_TCP)
		k->tcp_flags = f[p->l4 + 13];
}

/* The differences, as the kernel makes them: of what a flow's key and value say */
static void model_diffs(const struct packet *p)
{
	struct bpf_flowmap_value *v = &flow.value;
	const struct bpf_flowmap_key *k = &flow.key;
	size_t n = p->v6 ? 32 : 8;
	__u32 addrs;

	v->ip_csum_diff = 0;
	v->l4_csum_diff = 0;
	if (!memcmp(&v->addr, &k->addr, n) && v->sport == k->sport && v->dport == k->dport)
		return;
	addrs = sum16((void *)&v->addr, n, 0) + (0xffff ^ sum16((void *)&k->addr, n, 0));
	if (!p->v6)
		put16((__u8 *)&v->ip_csum_diff, sum16(NULL, 0, addrs));
	put16((__u8 *)&v->l4_csum_diff,
	      sum16((void *)&v->sport, 4, addrs + (0xffff ^ sum16((void *)&k->sport, 4, 0))));
}

/* How far sequence number @a is ahead of @b */
static __s64 ahead(__u32 a, __u32 b)
{
	__u32 d = a - b;

	return d < 0x80000000U ? d : (__s64)d - 0x100000000LL;
}

static __u32 get32(const __u8 *p)
{
	return (__u32)get16(p) << 16 | get16(p + 2);
}

/* Is it within its connection's windows? Once the receiver was seen, that is. */
static bool model_window(const __u8 *f, const struct packet *p)
{
	const struct tcp_window *w = flow.windows;
	const struct bpf_flowmap_value *v = &flow.value;
	const __u8 *h = f + p->l4;
	struct tcp_window_side s, r;
	__u32 seq = get32(h + 4), ack = get32(h + 8), end;
	bool reply = v->flags & BPF_FLOWMAP_REPLY;

	if (!w)
		return !flow.no_room;
	s = w->side[reply];
	r = w->side[!reply];
	if (!r.max_win || v->packets < s.packets || (v->packets == 1 && s.packets))
		return true;
	end = seq + p->ip + p->ip_len - p->l4 - (h[12] >> 4) * 4;
	if (ahead(ack, r.end) > 0 ||
	    ahead(ack, r.end - (s.max_win > 66000 ? s.max_win : 66000)) < 0)
		return false;
	return (!s.max_win || ahead(end, s.end - r.max_win) >= 0) && ahead(seq, s.max_end) <= 0;
}

/* The frame to send; its length */
static size_t model_rewrite(const __u8 *f, const struct packet *p, __u8 *out,
			    struct packet *q)
{
	__u8 *o = out + 12;
	int i;

	*q = *p;
	memcpy(out, flow.value.h_dest, 6);
	memcpy(out + 6, flow.value.h_source, 6);
	for (i = 0; i < 2 && flow.out[i].proto; i++) {
		put16(o, flow.out[i].proto);
		if (flow.out[i].proto == ETH_P_PPP_SES) {
			o[2] = 0x11;
			o[3] = 0;
			put16(o + 4, flow.out[i].id);
			put16(o + 6, p->ip_len + 2);
			o += 6;
		} else {
			put16(o + 2, flow.out[i].id);
			o += 4;
		}
	}
	if (i && flow.out[i - 1].proto == ETH_P_PPP_SES) {
		o += 2;
		put16(o, p->v6 ? 0x57 : 0x21);
	} else {
		put16(o, p->v6 ? ETH_P_IPV6 : ETH_P_IP);
	}
	o += 2;
	q->ip = o - out;
	q->l4 = q->ip + p->l4 - p->ip;
	memcpy(o, f + p->ip, p->ip_len);
	o[p->v6 ? 7 : 8]--;
	memcpy(o + (p->v6 ? 8 : 12), &flow.value.addr, p->v6 ? 32 : 8);
	if (p->proto != IPPROTO_GRE)
		memcpy(out + q->l4, &flow.value.sport, 4);
	return q->ip + p->ip_len;
}

static size_t l2_len(const struct encap *e)
{
	size_t len = ETH_HLEN;
	int i;

	for (i = 0; i < 2; i++)
		len += e[i].proto == ETH_P_PPP_SES ? 8 : e[i].proto ? 4 : 0;
	return len;
}

/* Take a checksum out of a frame, to compare the rest */
static unsigned int take16(__u8 *p)
{
	unsigned int v = get16(p);

	put16(p, 0);
	return v;
}

static void check_forwarded(const __u8 *in, size_t in_len, const struct packet *p,
			    __u8 *got, size_t got_len)
{
	__u8 want[ROOM], copy[ROOM];
	struct packet q;
	size_t want_len = model_rewrite(in, p, want, &q);
	size_t at = p->proto == IPPROTO_UDP ? 6 : 16;

	memcpy(copy, got, got_len);
	if (got_len != want_len)
		fail("another length than the model's", want, want_len, got, got_len);
	if (!p->v6) {
		if (sum16(got + q.ip, 20, 0) != 0xffff)
			fail("a wrong IPv4 header checksum", in, in_len, got, got_len);
		take16(copy + q.ip + 10);
		take16(want + q.ip + 10);
	}
	if (p->proto == IPPROTO_UDP && !get16(in + p->l4 + at)) {
		if (get16(got + q.l4 + at))
			fail("no UDP checksum has become one", in, in_len, got, got_len);
	} else if (p->proto != IPPROTO_GRE) {
		if (l4_sum(got, &q) != l4_sum(in, p))
			fail("L4 checksum wrong by another amount", in, in_len, got, got_len);
		if (p->proto == IPPROTO_UDP && !get16(got + q.l4 + at))
			fail("a UDP checksum has become none", in, in_len, got, got_len);
		take16(copy + q.l4 + at);
		take16(want + q.l4 + at);
	}
	if (memcmp(copy, want, want_len))
		fail("another frame than the model's (checksums as 0)", want, want_len, copy,
		     got_len);
}

/* Inputs */

static const struct encap encaps[8][2] = {
	{ },
	{ },
	{ { ETH_P_8021Q, 5 } },
	{ { ETH_P_8021AD, 6 }, { ETH_P_8021Q, 7 } },
	{ { ETH_P_PPP_SES, 0x1234 } },
	{ { ETH_P_8021Q, 0xfff }, { ETH_P_PPP_SES, 0xffff } },
	{ { ETH_P_8021AD, 1 } },
	{ },
};

struct recipe {
	__u8 kind;		/* 0 raw; bit 0 IPv6, bits 1-2 protocol */
	__u8 in, out;	/* encapsulations */
	__u8 how;		/* bits: no hit, IPv4 checksum as it is, little headroom, beside */
	__u8 payload;
	__u8 padding;		/* bits 5-7: TTL */
	__u8 mtu;
	__u8 nat;		/* bits: source, destination, sport, dport, strict, reply */
	__u8 tune;		/* checksums on the edge */
	__u8 ports[4];
	__u8 addrs[32];
	__u8 known;		/* bits: windows, no room for more; 2-4: needs the stack */
	__u8 packets;		/* as counted with this one */
	__u8 sides[2][5];	/* packets, ends in 64 and 1, room in 1, window in 512 */
	/* changes: offset, and a bit to turn or a value */
};

static size_t cook(const struct recipe *r, __u8 *f)
{
	static const __u8 protos[4] = { IPPROTO_UDP, IPPROTO_TCP, IPPROTO_GRE, IPPROTO_UDP };
	static const __u8 ttls[8] = { 64, 64, 64, 64, 255, 2, 1, 0 };
	size_t l4_len = 20 + r->payload, n, pos;
	bool v6 = r->kind & 1;
	const __u8 proto = protos[r->kind / 2 % 4];
	const struct encap *e = encaps[r->in % 8];
	__u8 *ip;
	int i;

	memset(f, 0, FRAME_MAX);
	memcpy(f, OWN_MAC, 6);
	for (i = 0, pos = 12; i < 2 && e[i].proto; i++) {
		put16(f + pos, e[i].proto);
		pos += 2;
		if (e[i].proto == ETH_P_PPP_SES) {
			f[pos] = 0x11;
			put16(f + pos + 2, e[i].id);
			put16(f + pos + 4, l4_len + (v6 ? 40 : 20) + 2);
			pos += 6;
		} else {
			put16(f + pos, e[i].id);
			pos += 2;
		}
	}
	if (i && e[i - 1].proto == ETH_P_PPP_SES)
		put16(f + pos, v6 ? 0x57 : 0x21);
	else
		put16(f + pos, v6 ? ETH_P_IPV6 : ETH_P_IP);
	ip = f + pos + 2;
	n = v6 ? 40 : 20;
	if (v6) {
		ip[0] = 0x60;
		put16(ip + 4, l4_len);
		ip[6] = proto;
		ip[7] = ttls[r->padding / 32];
		memset(ip + 8, 0x20, 32);
	} else {
		ip[0] = 0x45;
		put16(ip + 2, n + l4_len);
		ip[8] = ttls[r->padding / 32];
		ip[9] = proto;
		memcpy(ip + 12, "\x0a\x00\x01\x02\xcb\x00\x71\x02", 8);
	}
	if (proto != IPPROTO_GRE)
		memcpy(ip + n, "\x9c\x40\x00\x35", 4);
	if (proto == IPPROTO_UDP) {
		put16(ip + n + 4, l4_len);
		put16(ip + n + 6, 0xbeef);
	} else if (proto == IPPROTO_TCP) {
		ip[n + 12] = 0x50;
		ip[n + 13] = 0x10;
	}
	return ip - f + n + l4_len + r->padding % 32;
}

static void fix_ipv4(__u8 *f, size_t len, const struct recipe *r)
{
	__u8 *ip = f + l2_len(encaps[r->in % 8]);

	if (r->kind & 1 || ip + 20 > f + len)
		return;
	put16(ip + 10, 0);
	put16(ip + 10, 0xffff ^ sum16(ip, 20, 0));
}

static size_t make_frame(const struct recipe *r, const __u8 *more, size_t n, __u8 *f)
{
	size_t len, i;

	if (!r->kind) {
		len = n < FRAME_MAX ? n : FRAME_MAX;
		memcpy(f, more, len);
		return len;
	}
	len = cook(r, f);
	for (i = 0; i + 1 < n && i < 16; i += 2) {
		__u8 *at = f + more[i] % len, how = more[i + 1];

		*at = how < 128 ? *at ^ 1 << how % 8 : how;
	}
	if (!(r->how & 2))
		fix_ipv4(f, len, r);
	return len;
}

static void make_flow(const struct recipe *r, const struct packet *p)
{
	struct bpf_flowmap_value *v = &flow.value;
	size_t half = p->v6 ? 16 : 4;
	int i;

	memset(v, 0, sizeof(*v));
	memcpy(flow.out, encaps[r->out % 8], sizeof(flow.out));
	v->ifindex = EGRESS;
	memcpy(v->h_dest, "\x02\x00\x00\x00\x02\x02", 6);
	memcpy(v->h_source, "\x02\x00\x00\x00\x02\x01", 6);
	put16((__u8 *)&v->h_proto, p->v6 ? ETH_P_IPV6 : ETH_P_IP);
	v->mtu = r->mtu & 1 ? 1500 : 20 + r->mtu;
	for (i = 0; i < 2; i++) {
		put16((__u8 *)&v->encap[i].proto, flow.out[i].proto);
		v->encap[i].id = flow.out[i].id;
	}
	memcpy(&v->addr, &flow.key.addr, 2 * half);
	v->sport = flow.key.sport;
	v->dport = flow.key.dport;
	if (r->nat & 1)
		memcpy(&v->addr, r->addrs, half);
	if (r->nat & 2)
		memcpy((__u8 *)&v->addr + half, r->addrs + 16, half);
	if (r->nat & 4 && p->proto != IPPROTO_GRE)
		memcpy(&v->sport, r->ports, 2);
	if (r->nat & 8 && p->proto != IPPROTO_GRE)
		memcpy(&v->dport, r->ports + 2, 2);
	if (r->nat & 32)
		v->flags = BPF_FLOWMAP_REPLY;
	if ((r->known & 28) == 28)
		v->flags |= BPF_FLOWMAP_NO_XMIT;
	v->packets = r->packets;
	v->ct_id = 0x12345678;
	model_diffs(p);
	flow.known = !(r->how & 1);
	flow.hit = flow.known && flow.key.len <= v->mtu &&
		   !(v->flags & BPF_FLOWMAP_NEEDS_STACK) &&
		   !(flow.key.tcp_flags & (FLOWMAP_TCP_FIN | FLOWMAP_TCP_RST));
}

/* What is counted of a packet that is looked up and is no hit */
static __u32 model_reason(void)
{
	if (flow.key.tcp_flags & (FLOWMAP_TCP_FIN | FLOWMAP_TCP_RST))
		return FLOWMAP_TCP_CLOSE;
	if (!flow.known)
		return FLOWMAP_MISS;
	return flow.value.flags & BPF_FLOWMAP_NEEDS_STACK ? FLOWMAP_NEEDS_STACK : FLOWMAP_MTU;
}

/* What is known of the connection: near what the frame has, to be on both sides of it */
static void make_windows(const struct recipe *r, const __u8 *f, const struct packet *p)
{
	static struct tcp_window windows;
	bool reply = r->nat & 32;
	int i;

	flow.windows = r->known & 1 ? &windows : NULL;
	flow.no_room = r->known & 2;
	memset(&flow.windows_key, 0, sizeof(flow.windows_key));
	flow.windows_key.ct_id = flow.value.ct_id;
	flow.windows_key.sport = reply ? flow.value.dport : flow.key.sport;
	flow.windows_key.dport = reply ? flow.value.sport : flow.key.dport;
	if (p->proto != IPPROTO_TCP)
		return;
	for (i = 0; i < 2; i++) {
		const __u8 *b = r->sides[i];
		/* the sender's end is about what it sends, the other's what it acknowledges */
		__u32 near = get32(f + p->l4 + (i == reply ? 4 : 8));

		windows.side[i] = (struct tcp_window_side){
			.packets = b[0],
			.end = near + (__s8)b[1] * 1024 + (__s8)b[2],
			.max_end = near + (__s8)b[3],
			.max_win = b[4] * 512,
		};
	}
}

/* Checksums that random ones hardly hit; the frame stays what it is else */
static void tune(const struct recipe *r, __u8 *f, const struct packet *p)
{
	const struct bpf_flowmap_value *v = &flow.value;
	__u32 even = 0, odd = 0;
	__u8 *ip = f + p->ip;
	__u16 check;
	int i;

	switch (r->tune % 8) {
	case 1: /* a UDP checksum whose successor would be 0 */
		if (p->proto == IPPROTO_UDP)
			memcpy(f + p->l4 + 6, &v->l4_csum_diff, 2);
		break;
	case 2: /* none */
		if (p->proto == IPPROTO_UDP)
			put16(f + p->l4 + 6, 0);
		break;
	case 3: /* an update of the header's checksum that carries twice */
	case 4:
		if (p->v6)
			break;
		check = ~(0x1ffff - v->ip_csum_diff - bpf_htons(0xfeff) + (r->tune / 8) % 4);
		memcpy(ip + 10, &check, 2);
		put16(ip + 4, 0);
		put16(ip + 4, 0xffff ^ sum16(ip, 20, 0));
		break;
	case 5: /* halves of the header's words that sum up to ones each */
		if (p->v6)
			break;
		put16(ip + 4, 0);
		put16(ip + 10, 0);
		for (i = 0; i < 5; i++) {
			even = sum16(ip + 4 * i, 2, even);
			odd = sum16(ip + 4 * i + 2, 2, odd);
		}
		put16(ip + 4, 0xffff ^ even);
		put16(ip + 10, 0xffff ^ odd);
		break;
	}
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	__u8 *p = mmap(NULL, ROOM + 2 * 4096, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);

	if (p == MAP_FAILED || mprotect(p + 4096, ROOM, PROT_READ | PROT_WRITE)) {
		perror("mmap");
		exit(1);
	}
	room = p + 4096;
	return 0;
}

static void report(void)
{
	fprintf(stderr, "frames %lu forwarded %lu outside %lu\n", inputs, forwarded, outside);
}

int LLVMFuzzerTestOneInput(const __u8 *input, size_t size)
{
	struct recipe r;
	__u8 in[FRAME_MAX + 512], *data;
	struct xdp_md ctx = { .ingress_ifindex = INGRESS };
	size_t len, headroom, grow;
	struct packet p;
	bool want, ok, beside, strict, counted, within = true;
	int verdict;

	if (size < sizeof(r))
		return 0;
	memcpy(&r, input, sizeof(r));
	len = make_frame(&r, input + sizeof(r), size - sizeof(r), in);
	if (!inputs++)
		atexit(report);

	beside = r.how & 8;
	strict = !beside && r.nat & 16;
	flow.reason = 0;
	headroom = r.how & 4 ? r.how >> 4 : 256;
	ok = parse(in, len, &p);
	flow.looked_up = false;
	flow.hit = false;
	want = false;
	if (ok) {
		model_key(in, &p);
		make_flow(&r, &p);
		tune(&r, in, &p);
		grow = l2_len(flow.out) > l2_len(p.encap) ? l2_len(flow.out) - l2_len(p.encap) : 0;
		want = flow.hit && grow <= headroom;
		/* in libxdp's dispatcher no length changes, and none that would is counted */
		if (beside) {
			ok = len == p.ip + p.ip_len;
			want = ok && flow.hit && l2_len(flow.out) == l2_len(p.encap);
		}
		make_windows(&r, in, &p);
		if (strict && flow.hit && p.proto == IPPROTO_TCP)
			within = model_window(in, &p);
	}

	data = room + ROOM - len;
	memcpy(data, in, len);
	flow.hard_start = data - headroom;
	ctx.data = (long)data;
	ctx.data_end = (long)data + len;
	verdict = beside ? xdp_ct_beside(&ctx) : strict ? xdp_ct_strict(&ctx) : xdp_ct(&ctx);

	if (flow.looked_up != ok)
		fail(ok ? "not looked up" : "looked up", in, len, data, len);
	counted = flow.reason == FLOWMAP_TCP_WINDOW;
	if (counted == within)
		fail(within ? "not within its windows" : "within its windows", in, len, data, len);
	outside += !within;
	if (ok && !flow.hit && flow.reason != model_reason())
		fail("counted for another reason", in, len, data, len);
	if (verdict == XDP_PASS) {
		if (want && within)
			fail("passed", in, len, data, len);
		if (ctx.data != (long)data || ctx.data_end != (long)data + len ||
		    memcmp(data, in, len))
			fail("passed, but changed", in, len, data, len);
		return 0;
	}
	if (verdict != XDP_REDIRECT)
		fail("neither passed nor forwarded", in, len, data, len);
	if (!want || !within)
		fail("forwarded", in, len, data, len);
	forwarded++;
	check_forwarded(in, len, &p, (__u8 *)(long)ctx.data, ctx.data_end - ctx.data);
	return 0;
}
