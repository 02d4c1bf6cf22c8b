/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Helpers for XDP programs that forward by a flowmap: flowmap_parse() makes a
 * key from a frame, flowmap_rewrite() makes the frame to send from the value
 * that bpf_map_lookup_elem() gave for the key. What lies between is yours.
 *
 * flowmap_parse() writes nothing and accepts only what the stack would forward
 * without a look at anything but headers; the reason for all else is returned.
 * TCP and UDP checksums are not verified, just updated, as the flowtable does.
 *
 * Words are read from and written to frames unaligned: for architectures with
 * CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS. A key that is aligned to 8 bytes is
 * cleared faster.
 */
#ifndef __FLOWMAP_BPF_H
#define __FLOWMAP_BPF_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <linux/bpf_flowmap.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#ifndef AF_INET
#define AF_INET			2
#endif
#ifndef AF_INET6
#define AF_INET6		10
#endif

/* Why a frame is the stack's; names and order are seen by user space (BTF) */
enum flowmap_reason {
	FLOWMAP_FORWARDED,	/* none */
	FLOWMAP_NOT_HOST,	/* not to this device's address */
	FLOWMAP_NOT_IP,		/* neither IPv4 nor IPv6, or encapsulated otherwise */
	FLOWMAP_LENGTH,		/* shorter than the headers say, or they lie */
	FLOWMAP_IP_HEADER,	/* version or checksum of the IP header */
	FLOWMAP_IP_OPTIONS,	/* IPv4 options */
	FLOWMAP_FRAGMENT,	/* IPv4 fragment */
	FLOWMAP_TTL,		/* TTL or hop limit ends here */
	FLOWMAP_PROTOCOL,	/* not TCP, UDP or GRE; IPv6 extension header */
	FLOWMAP_TCP_FLAGS,	/* SYN, or a combination that is invalid */
	FLOWMAP_TCP_CLOSE,	/* FIN or RST, seen by the flow */
	FLOWMAP_MISS,		/* the flowmap has no flow for it */
	FLOWMAP_HEADROOM,	/* no room to push an encapsulation */
	FLOWMAP_TCP_WINDOW,	/* not within the connection's windows: tcp_window.bpf.h */
	FLOWMAP_ABORTED,	/* not the stack's: dropped, half written */
	FLOWMAP_RESIZE,		/* its length would change, and must not */
	FLOWMAP_NEEDS_STACK,	/* the flow's value says why: BPF_FLOWMAP_NO_NEIGH and so on */
	FLOWMAP_MTU,		/* longer than what the way out takes */
	FLOWMAP_REASONS
};

struct flowmap_vlan {
	__be16	tci;
	__be16	proto;
};

struct flowmap_pppoe {
	__u8	ver_type;
	__u8	code;
	__be16	sid;
	__be16	len;		/* of what follows, @proto included */
	__be16	proto;
};

#define FLOWMAP_PPPOE_VER_TYPE	0x11
#define FLOWMAP_PPP_IP		0x0021
#define FLOWMAP_PPP_IPV6	0x0057
#define FLOWMAP_IP_FRAGMENT	0x3fff /* more fragments, offset */
#define FLOWMAP_GRE_VERSION	0x0007

#define FLOWMAP_TCP_FIN		0x01
#define FLOWMAP_TCP_SYN		0x02
#define FLOWMAP_TCP_RST		0x04
#define FLOWMAP_TCP_PSH		0x08
#define FLOWMAP_TCP_ACK		0x10
#define FLOWMAP_TCP_URG		0x20
#define FLOWMAP_TCP_ECE		0x40
#define FLOWMAP_TCP_CWR		0x80

/* words of a frame, whatever their type elsewhere */
typedef __u16 __attribute__((may_alias)) flowmap_u16;
typedef __u32 __attribute__((may_alias)) flowmap_u32;
typedef __u64 __attribute__((may_alias)) flowmap_u64;

/* bytes behind the IP header that must be there: ports and a UDP header */
#define FLOWMAP_L4_MIN		sizeof(struct udphdr)

static __always_inline void flowmap_copy32(void *to, const void *from)
{
	*(flowmap_u32 *)to = *(const flowmap_u32 *)from;
}

static __always_inline void flowmap_copy64(void *to, const void *from)
{
	*(flowmap_u64 *)to = *(const flowmap_u64 *)from;
}

/* The barrier makes clang set the reason behind the check that failed, not
 * before each check, which would cost the frames that pass all.
 */
static __always_inline enum flowmap_reason flowmap_pass(enum flowmap_reason reason)
{
	barrier_var(reason);
	return reason;
}

/* Right if the sum over the header, its checksum included, is all ones */
static __always_inline bool flowmap_ip_csum_ok(const struct iphdr *ip)
{
	const flowmap_u32 *word = (const void *)ip;
	__u64 sum = 0;
	int i;

#pragma unroll
	for (i = 0; i < 5; i++)
		sum += word[i];

	sum = (__u32)sum + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff || sum == 2 * 0xffff;
}

/* What a SYN opens is not for a fast path, and conntrack's tcp_valid_flags[] */
static __always_inline bool flowmap_tcp_flags_ok(__u8 flags)
{
	flags &= ~(FLOWMAP_TCP_ECE | FLOWMAP_TCP_CWR | FLOWMAP_TCP_PSH);

	return flags == FLOWMAP_TCP_ACK ||
	       flags == (FLOWMAP_TCP_ACK | FLOWMAP_TCP_URG) ||
	       flags == (FLOWMAP_TCP_ACK | FLOWMAP_TCP_FIN) ||
	       flags == (FLOWMAP_TCP_ACK | FLOWMAP_TCP_FIN | FLOWMAP_TCP_URG) ||
	       flags == FLOWMAP_TCP_RST ||
	       flags == (FLOWMAP_TCP_RST | FLOWMAP_TCP_ACK);
}

/* @len is what the IP header says is there: FLOWMAP_L4_MIN and more */
static __always_inline enum flowmap_reason
flowmap_parse_l4(void *l4, void *end, __u32 len, struct bpf_flowmap_key *key)
{
	struct tcphdr *tcp = l4;
	struct udphdr *udp = l4;

	if (key->l4proto == IPPROTO_UDP) {
		__u32 udp_len = bpf_ntohs(udp->len);

		/* unsigned: too short is too long, too */
		if (udp_len - sizeof(*udp) > len - sizeof(*udp))
			return flowmap_pass(FLOWMAP_LENGTH);
	} else if (key->l4proto == IPPROTO_TCP) {
		__u32 tcp_len;

		if ((void *)(tcp + 1) > end)
			return flowmap_pass(FLOWMAP_LENGTH);
		tcp_len = tcp->doff * 4;
		if (tcp_len < sizeof(*tcp) || tcp_len > len)
			return flowmap_pass(FLOWMAP_LENGTH);
		key->tcp_flags = ((__u8 *)tcp)[13];
		if (!flowmap_tcp_flags_ok(key->tcp_flags))
			return flowmap_pass(FLOWMAP_TCP_FLAGS);
	} else if (key->l4proto == IPPROTO_GRE) {
		if (*(__be16 *)l4 & bpf_htons(FLOWMAP_GRE_VERSION))
			return flowmap_pass(FLOWMAP_PROTOCOL);
		return FLOWMAP_FORWARDED; /* no ports */
	} else {
		return flowmap_pass(FLOWMAP_PROTOCOL);
	}

	flowmap_copy32(&key->sport, l4); /* and dport */
	return FLOWMAP_FORWARDED;
}

/* @room is what there is at @ip: the header and FLOWMAP_L4_MIN, at least */
static __always_inline enum flowmap_reason
flowmap_parse_ipv4(struct iphdr *ip, void *end, __u64 room, struct bpf_flowmap_key *key)
{
	const __u32 min = sizeof(*ip) + FLOWMAP_L4_MIN;

	key->len = bpf_ntohs(ip->tot_len);

	if (*(__u8 *)ip != 0x45)
		return flowmap_pass(ip->version == 4 && ip->ihl > 5 ?
				    FLOWMAP_IP_OPTIONS : FLOWMAP_IP_HEADER);
	/* unsigned: too short is too long, too */
	if ((__u64)key->len - min > room - min)
		return flowmap_pass(FLOWMAP_LENGTH);
	if (!flowmap_ip_csum_ok(ip))
		return flowmap_pass(FLOWMAP_IP_HEADER);
	if (ip->frag_off & bpf_htons(FLOWMAP_IP_FRAGMENT))
		return flowmap_pass(FLOWMAP_FRAGMENT);
	if (ip->ttl <= 1)
		return flowmap_pass(FLOWMAP_TTL);

	key->family = AF_INET;
	key->l4proto = ip->protocol;
	key->addr.v4.saddr = ip->saddr;
	key->addr.v4.daddr = ip->daddr;

	return flowmap_parse_l4(ip + 1, end, key->len - sizeof(*ip), key);
}

static __always_inline enum flowmap_reason
flowmap_parse_ipv6(struct ipv6hdr *ip, void *end, __u64 room, struct bpf_flowmap_key *key)
{
	__u32 len = bpf_ntohs(ip->payload_len);
	int i;

	if ((void *)(ip + 1) + FLOWMAP_L4_MIN > end)
		return flowmap_pass(FLOWMAP_LENGTH);
	if (ip->version != 6)
		return flowmap_pass(FLOWMAP_IP_HEADER);
	key->len = len + sizeof(*ip);
	if (len < FLOWMAP_L4_MIN || key->len > room)
		return flowmap_pass(FLOWMAP_LENGTH);
	if (ip->hop_limit <= 1)
		return flowmap_pass(FLOWMAP_TTL);

	key->family = AF_INET6;
	key->l4proto = ip->nexthdr;
#pragma unroll
	for (i = 0; i < 8; i++)
		flowmap_copy32((__be32 *)&key->addr.v6 + i, (__be32 *)&ip->saddr + i);

	return flowmap_parse_l4(ip + 1, end, len, key);
}

/* A VLAN tag or PPPoE header at @pos, of type @proto; the next if it is right */
static __always_inline void *
flowmap_parse_encap(void *pos, void *end, __u64 *room, __be16 *proto,
		    struct bpf_flowmap_encap *encap)
{
	struct flowmap_pppoe *pppoe = pos;
	struct flowmap_vlan *vlan = pos;
	__u32 len;

	barrier_var(encap); /* or clang makes one body of two, with pointer arithmetic by | */
	if ((void *)(pppoe + 1) > end)
		return NULL;

	encap->proto = *proto;
	if (*proto == bpf_htons(ETH_P_8021Q) || *proto == bpf_htons(ETH_P_8021AD)) {
		encap->id = bpf_ntohs(vlan->tci) & 0xfff;
		*room -= sizeof(*vlan);
		*proto = vlan->proto;
		return vlan + 1;
	}

	if (*proto != bpf_htons(ETH_P_PPP_SES) || pppoe->ver_type != FLOWMAP_PPPOE_VER_TYPE ||
	    pppoe->code)
		return NULL;
	encap->id = bpf_ntohs(pppoe->sid);
	*room -= sizeof(*pppoe);
	len = bpf_ntohs(pppoe->len) - sizeof(pppoe->proto);
	if (len > *room)
		return NULL;
	*room = len;
	*proto = pppoe->proto == bpf_htons(FLOWMAP_PPP_IP) ? bpf_htons(ETH_P_IP) :
		 pppoe->proto == bpf_htons(FLOWMAP_PPP_IPV6) ? bpf_htons(ETH_P_IPV6) : 0;
	return pppoe + 1;
}

/**
 * flowmap_parse() - make the key of a frame
 * @ctx: the frame, unchanged after this
 * @key: all of it is set; @flags to 0
 *
 * Return: FLOWMAP_FORWARDED if the flowmap is to be asked, else why not.
 */
static __always_inline enum flowmap_reason
flowmap_parse(struct xdp_md *ctx, struct bpf_flowmap_key *key)
{
	void *end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	__be16 proto;
	__u64 room;

	__builtin_memset(key, 0, sizeof(*key));
	key->ifindex = ctx->ingress_ifindex;

	/* no frame with less can be forwarded: one check for most of it */
	if (data + ETH_HLEN + sizeof(struct iphdr) + FLOWMAP_L4_MIN > end)
		return flowmap_pass(FLOWMAP_LENGTH);

	proto = *(flowmap_u16 *)(data + offsetof(struct ethhdr, h_proto));
	room = end - data - ETH_HLEN;
	data += ETH_HLEN;
	if (proto == bpf_htons(ETH_P_IP))
		return flowmap_parse_ipv4(data, end, room, key);
	if (proto == bpf_htons(ETH_P_IPV6))
		return flowmap_parse_ipv6(data, end, room, key);

	data = flowmap_parse_encap(data, end, &room, &proto, &key->encap[0]);
	if (data && proto != bpf_htons(ETH_P_IP) && proto != bpf_htons(ETH_P_IPV6))
		data = flowmap_parse_encap(data, end, &room, &proto, &key->encap[1]);
	if (!data)
		return flowmap_pass(FLOWMAP_NOT_IP);
	/* PPPoE may say that there is less than the frame has */
	if (data + sizeof(struct iphdr) + FLOWMAP_L4_MIN > end ||
	    room < sizeof(struct iphdr) + FLOWMAP_L4_MIN)
		return flowmap_pass(FLOWMAP_LENGTH);
	if (proto == bpf_htons(ETH_P_IP))
		return flowmap_parse_ipv4(data, end, room, key);
	if (proto == bpf_htons(ETH_P_IPV6))
		return flowmap_parse_ipv6(data, end, room, key);
	return flowmap_pass(FLOWMAP_NOT_IP);
}

static __always_inline __u32 flowmap_csum_fold(__u32 sum)
{
	return (sum & 0xffff) + (sum >> 16);
}

/* RFC 1624, eqn. 3, with the difference of all fields that change at once */
static __always_inline __u16 flowmap_csum_update(__u16 check, __u16 diff)
{
	return ~flowmap_csum_fold((__u16)~check + (__u32)diff);
}

/* The same, and the TTL: one off it is the complement of 0x0100 in the sum */
static __always_inline __u16 flowmap_csum_update_ttl(__u16 check, __u16 diff)
{
	__u32 sum = (__u16)~check + (__u32)diff + bpf_htons(0xfeff);

	return ~flowmap_csum_fold(flowmap_csum_fold(sum));
}

static __always_inline bool
flowmap_rewrite_l4(void *l4, void *end, __u8 l4proto, const struct bpf_flowmap_value *value)
{
	struct tcphdr *tcp = l4;
	struct udphdr *udp = l4;

	if (l4proto == IPPROTO_UDP) {
		/* no checksum stays none, and a sum of 0 is sent as all ones */
		if (udp->check && value->l4_csum_diff) {
			udp->check = flowmap_csum_update(udp->check, value->l4_csum_diff);
			if (!udp->check)
				udp->check = 0xffff;
		}
	} else if (l4proto == IPPROTO_TCP) {
		if ((void *)(tcp + 1) > end)
			return false;
		if (value->l4_csum_diff)
			tcp->check = flowmap_csum_update(tcp->check, value->l4_csum_diff);
	} else {
		return true; /* no ports */
	}

	flowmap_copy32(l4, &value->sport); /* and dport */
	return true;
}

static __always_inline bool
flowmap_rewrite_ipv4(struct iphdr *ip, void *end, __u8 l4proto,
		     const struct bpf_flowmap_value *value)
{
	if ((void *)(ip + 1) + FLOWMAP_L4_MIN > end ||
	    !flowmap_rewrite_l4(ip + 1, end, l4proto, value))
		return false;

	ip->check = flowmap_csum_update_ttl(ip->check, value->ip_csum_diff);
	ip->ttl--;
	flowmap_copy64(&ip->saddr, &value->addr.v4); /* and daddr */
	return true;
}

static __always_inline bool
flowmap_rewrite_ipv6(struct ipv6hdr *ip, void *end, __u8 l4proto,
		     const struct bpf_flowmap_value *value)
{
	int i;

	if ((void *)(ip + 1) + FLOWMAP_L4_MIN > end ||
	    !flowmap_rewrite_l4(ip + 1, end, l4proto, value))
		return false;

	ip->hop_limit--;
#pragma unroll
	for (i = 0; i < 4; i++)
		flowmap_copy64((void *)&ip->saddr + 8 * i, (void *)&value->addr.v6 + 8 * i);
	return true;
}

/* The Ethernet header is written for a plain frame: move its type behind the
 * encapsulations. There is room for two of the longest.
 */
static __always_inline void
flowmap_write_encap(void *type, const struct bpf_flowmap_value *value, __u32 ip_len)
{
	int i;

#pragma unroll
	for (i = 0; i < BPF_FLOWMAP_ENCAP_MAX; i++) {
		__be16 proto = value->encap[i].proto;
		struct flowmap_pppoe *pppoe = type + sizeof(proto);
		struct flowmap_vlan *vlan = type + sizeof(proto);

		if (!proto)
			break;

		*(__be16 *)type = proto;
		if (proto == bpf_htons(ETH_P_PPP_SES)) {
			pppoe->ver_type = FLOWMAP_PPPOE_VER_TYPE;
			pppoe->code = 0;
			pppoe->sid = bpf_htons(value->encap[i].id);
			pppoe->len = bpf_htons(ip_len + sizeof(pppoe->proto));
			pppoe->proto = value->h_proto == bpf_htons(ETH_P_IP) ?
				       bpf_htons(FLOWMAP_PPP_IP) : bpf_htons(FLOWMAP_PPP_IPV6);
			break;
		}
		vlan->tci = bpf_htons(value->encap[i].id);
		vlan->proto = value->h_proto;
		type = &vlan->proto;
	}
}

static __always_inline __u32 flowmap_l2_len(const struct bpf_flowmap_encap *encap)
{
	__u32 len = ETH_HLEN;
	int i;

#pragma unroll
	for (i = 0; i < BPF_FLOWMAP_ENCAP_MAX; i++) {
		if (encap[i].proto == bpf_htons(ETH_P_PPP_SES))
			len += sizeof(struct flowmap_pppoe);
		else if (encap[i].proto)
			len += sizeof(struct flowmap_vlan);
	}
	return len;
}

/* @resize is a constant: without it the program has no call that changes the
 * frame's length, which is what the kernel looks for, called or not
 */
static __always_inline enum flowmap_reason
flowmap_rewrite_as(struct xdp_md *ctx, const struct bpf_flowmap_key *key,
		   const struct bpf_flowmap_value *value, const bool resize)
{
	void *end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	__u32 l2_len = ETH_HLEN;
	__u64 trailer;
	bool ok;

	if (key->encap[0].proto || value->encap[0].proto) {
		int grow;

		l2_len = flowmap_l2_len(value->encap);
		grow = l2_len - flowmap_l2_len(key->encap);
		if (grow && !resize)
			return FLOWMAP_RESIZE;
		if (grow && bpf_xdp_adjust_head(ctx, -grow))
			return FLOWMAP_HEADROOM;

		data = (void *)(long)ctx->data;
		end = (void *)(long)ctx->data_end;
		if (data + ETH_HLEN + 2 * sizeof(struct flowmap_pppoe) > end)
			return FLOWMAP_LENGTH;
	}

	if (key->family == AF_INET)
		ok = flowmap_rewrite_ipv4(data + l2_len, end, key->l4proto, value);
	else
		ok = flowmap_rewrite_ipv6(data + l2_len, end, key->l4proto, value);
	if (!ok)
		return FLOWMAP_LENGTH;

	flowmap_copy64(data, value->h_dest);
	flowmap_copy32(data + 8, value->h_source + 2);
	*(flowmap_u16 *)(data + 12) = value->h_proto;
	if (l2_len != ETH_HLEN)
		flowmap_write_encap(data + 12, value, key->len);

	/* what is behind the packet; last, as it makes pointers to the frame void */
	trailer = end - data - l2_len - key->len;
	if (resize && trailer && bpf_xdp_adjust_tail(ctx, -(int)trailer))
		return FLOWMAP_LENGTH;
	return FLOWMAP_FORWARDED;
}

/**
 * flowmap_rewrite() - make the frame to send
 * @ctx: the frame
 * @key: as flowmap_parse() made it from this frame
 * @value: what the flowmap has for @key
 *
 * Return: FLOWMAP_FORWARDED, or FLOWMAP_HEADROOM with the frame unchanged. A
 * frame other than the one parsed may be left half written, with FLOWMAP_LENGTH.
 */
static __always_inline enum flowmap_reason
flowmap_rewrite(struct xdp_md *ctx, const struct bpf_flowmap_key *key,
		const struct bpf_flowmap_value *value)
{
	return flowmap_rewrite_as(ctx, key, value, true);
}

/**
 * flowmap_has_trailer() - is there more in the frame than the packet?
 * @ctx: the frame
 * @key: as flowmap_parse() made it from this frame
 *
 * For who cannot take it off, to know before the look-up, which counts the packet.
 */
static __always_inline bool flowmap_has_trailer(const struct xdp_md *ctx,
						const struct bpf_flowmap_key *key)
{
	return ctx->data_end - ctx->data != flowmap_l2_len(key->encap) + key->len;
}

/**
 * flowmap_rewrite_in_place() - the same, for programs that replace a function
 * of another (freplace, as libxdp's dispatcher has it), which may not change lengths
 *
 * Return: as flowmap_rewrite(), or FLOWMAP_RESIZE with the frame unchanged.
 */
static __always_inline enum flowmap_reason
flowmap_rewrite_in_place(struct xdp_md *ctx, const struct bpf_flowmap_key *key,
			 const struct bpf_flowmap_value *value)
{
	if (flowmap_has_trailer(ctx, key))
		return FLOWMAP_RESIZE;
	return flowmap_rewrite_as(ctx, key, value, false);
}

#endif /* __FLOWMAP_BPF_H */
