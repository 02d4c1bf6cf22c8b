/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * BPF_MAP_TYPE_FLOWMAP: the connections of netfilter's flowtables as a BPF map
 *
 * Every offloaded connection has two entries, one a direction. A key is what
 * a frame shows as it comes in at a device, a value is all that is needed to
 * send it on: the NAT, the Ethernet header, the device to leave by.
 *
 * Addresses, ports and protocol numbers of the wire are in network byte
 * order, all else is in host byte order. Reserved fields must be zero in keys
 * and are zero in values. Sizes never change: a later layout gets a size of
 * its own, and a map is created with the sizes that its user was built for.
 *
 * The rules, errors and the life of a value: Documentation/bpf/map_flowmap.rst
 */
#ifndef _UAPI_LINUX_BPF_FLOWMAP_H
#define _UAPI_LINUX_BPF_FLOWMAP_H

#include <linux/types.h>

/* 0x10001, decimal because the module alias is made from its digits */
#define BPF_MAP_TYPE_FLOWMAP		65537

#define BPF_FLOWMAP_ENCAP_MAX		2

/* map_extra of BPF_MAP_CREATE */
#define BPF_FLOWMAP_COUNTERS		1ULL /* count packets and bytes */
#define BPF_FLOWMAP_IPV4		2ULL /* flows of IPv4 only */
#define BPF_FLOWMAP_IPV6		4ULL /* flows of IPv6 only; both bits or none: of either */
/* upper half: number of a device. If not 0, only flows that come in by it in
 * either direction
 */
#define BPF_FLOWMAP_DEVICE_SHIFT	32

/**
 * struct bpf_flowmap_encap - one encapsulation of a frame
 * @proto: ETH_P_8021Q, ETH_P_8021AD or ETH_P_PPP_SES; 0: none
 * @id:    VLAN identifier (12 bits) or PPPoE session, host byte order
 */
struct bpf_flowmap_encap {
	__be16	proto;
	__u16	id;
};

/**
 * union bpf_flowmap_addrs - source and destination address
 * @v4: of AF_INET; the bytes behind it are ignored in keys, zero in values
 * @v6: of AF_INET6
 */
union bpf_flowmap_addrs {
	struct {
		__be32	saddr;
		__be32	daddr;
	} v4;
	struct {
		__be32	saddr[4];
		__be32	daddr[4];
	} v6;
};

/* bpf_flowmap_key.flags */
enum {
	/* return the value of a flow that needs the stack, or whose @mtu is less
	 * than @len, too, untouched: nothing is counted, kept alive or torn down
	 * for it
	 */
	BPF_FLOWMAP_KEY_STACK	= 1 << 0,
	/* this packet may leave by a device that cannot transmit XDP frames:
	 * set by programs that run on socket buffers (generic XDP, tc)
	 */
	BPF_FLOWMAP_KEY_SKB	= 1 << 1,
};

/**
 * struct bpf_flowmap_key - what is matched, and facts of this packet
 * @ifindex:   device that the frame came in by
 * @sport:     TCP or UDP source port, else 0
 * @dport:     TCP or UDP destination port, else 0
 * @family:    AF_INET or AF_INET6
 * @l4proto:   IPPROTO_TCP, IPPROTO_UDP or IPPROTO_GRE
 * @reserved:  zero
 * @encap:     encapsulations on the frame, outermost first
 * @tunnel:    zero; reserved for flows that come in by a tunnel
 * @addr:      addresses as the frame carries them
 * @len:       fact, not matched: length in bytes of the IP packet (IPv4 total
 *             length; IPv6 payload length plus 40), for MTU and accounting
 * @tcp_flags: fact: byte 13 of the TCP header, else 0
 * @flags:     fact: BPF_FLOWMAP_KEY_*; an unknown flag matches nothing
 * @reserved2: zero
 *
 * Facts are read by look-ups from programs only, and zero in dumped keys.
 */
struct bpf_flowmap_key {
	__u32	ifindex;
	__be16	sport;
	__be16	dport;
	__u8	family;
	__u8	l4proto;
	__u16	reserved;
	struct bpf_flowmap_encap encap[BPF_FLOWMAP_ENCAP_MAX];
	__u32	tunnel;
	union bpf_flowmap_addrs addr;
	__u32	len;
	__u8	tcp_flags;
	__u8	flags;
	__u16	reserved2;
};

/* bpf_flowmap_value.flags */
enum {
	BPF_FLOWMAP_REPLY	= 1 << 0, /* reply direction, else original */
	BPF_FLOWMAP_SNAT	= 1 << 1, /* the connection has source NAT */
	BPF_FLOWMAP_DNAT	= 1 << 2, /* the connection has destination NAT */

	/* The flow needs the stack; bits say why */
	BPF_FLOWMAP_NO_NEIGH	= 1 << 8,  /* neighbour not resolved */
	BPF_FLOWMAP_NO_XMIT	= 1 << 9,  /* device cannot transmit XDP frames */
	BPF_FLOWMAP_NO_ETHER	= 1 << 10, /* egress is not an Ethernet device */
	BPF_FLOWMAP_XFRM	= 1 << 11, /* an IPsec policy applies */
	BPF_FLOWMAP_TUNNEL	= 1 << 12, /* a tunnel or tc path */
	BPF_FLOWMAP_HOOKS	= 1 << 13, /* netdev chains on a device see the packets */
};

#define BPF_FLOWMAP_NEEDS_STACK		0xff00 /* any of the above */

/**
 * struct bpf_flowmap_value - how to send a packet of the flow on
 * @flags:        BPF_FLOWMAP_*
 * @ifindex:      device to leave by
 * @h_dest:       Ethernet header to write: destination
 * @h_source:     source
 * @h_proto:      ETH_P_IP or ETH_P_IPV6: the type behind all of @encap
 * @mtu:          largest IP packet in bytes, the route's or what XDP can redirect;
 *                look-ups from programs check it
 * @encap:        encapsulations to push, outermost first
 * @ip_csum_diff: to add to the complement of the IPv4 header's checksum
 *                (RFC 1624, eqn. 3), in the byte order of the packet; 0: none
 * @l4_csum_diff: the same for the TCP or UDP checksum, ports included
 * @sport:        source port to write
 * @dport:        destination port to write
 * @addr:         addresses to write
 * @ct_status:    IPS_* of linux/netfilter/nf_conntrack_common.h
 * @ct_mark:      conntrack's mark
 * @ct_id:        conntrack's id, as conntrack -o id prints it
 * @ct_zone:      conntrack's zone
 * @tcp_state:    TCP_CONNTRACK_* of linux/netfilter/nf_conntrack_tcp.h, else 0
 * @tcp_wscale:   TCP: shift of the window in packets that look this up (RFC
 *                7323); 14, the most, where conntrack does not know it; else 0
 * @packets:      packets that look-ups from programs returned this value for;
 *                counted in maps with BPF_FLOWMAP_COUNTERS only
 * @bytes:        their @len
 * @last_used:    CLOCK_MONOTONIC second of the last such packet, to a second
 * @reserved2:    zero
 *
 * Addresses and ports are what to write whether or not there is NAT.
 */
struct bpf_flowmap_value {
	__u32	flags;
	__u32	ifindex;
	__u8	h_dest[6];
	__u8	h_source[6];
	__be16	h_proto;
	__u16	mtu;
	struct bpf_flowmap_encap encap[BPF_FLOWMAP_ENCAP_MAX];
	__u16	ip_csum_diff;
	__u16	l4_csum_diff;
	__be16	sport;
	__be16	dport;
	union bpf_flowmap_addrs addr;
	__u32	ct_status;
	__u32	ct_mark;
	__u32	ct_id;
	__u16	ct_zone;
	__u8	tcp_state;
	__u8	tcp_wscale;
	__aligned_u64 packets;
	__aligned_u64 bytes;
	__u32	last_used;
	__u32	reserved2;
};

#endif /* _UAPI_LINUX_BPF_FLOWMAP_H */
