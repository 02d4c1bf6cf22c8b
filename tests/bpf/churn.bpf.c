// SPDX-License-Identifier: GPL-2.0-only
/*
 * Both ends of churn.sh's connections, without sockets
 *
 * generate() runs by BPF_PROG_TEST_RUN with live frames and sends the template,
 * as the next connection's packet, out of a device. answer() replies to the
 * packets that start a connection, or end it; drop() takes what comes back.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define FRAME	60
#define DPORT	5000	/* and the 1000 behind it */

struct template {
	__u32 next;	/* connection: its ports */
	__u32 ifindex;
	__u64 sent;
	__u8 data[FRAME];
	__u8 pad[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct template);
	__uint(max_entries, 1);
} template SEC(".maps");

/* packets at the server, and at the client */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 2);
} seen SEC(".maps");

struct packet {
	struct ethhdr eth;
	struct iphdr ip;
	union {
		struct udphdr udp;
		struct tcphdr tcp;
	};
} __attribute__((packed));

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct packet *p = (void *)(long)ctx->data;
	struct template *t;
	__u32 zero = 0, n;

	t = bpf_map_lookup_elem(&template, &zero);
	if (!t || (void *)p + FRAME > end)
		return XDP_ABORTED;
	__builtin_memcpy(p, t->data, FRAME);
	n = t->next++;
	t->sent++;
	p->udp.source = bpf_htons(n);
	p->udp.dest = bpf_htons(DPORT + (n >> 16) % 1000);
	return bpf_redirect(t->ifindex, 0);
}

/* Ours, and not that of a socket */
static struct packet *ours(struct xdp_md *ctx, __u32 at)
{
	struct packet *p = (void *)(long)ctx->data;
	__u64 *n = bpf_map_lookup_elem(&seen, &at);
	__u16 port;

	if (!n || (void *)(p + 1) > (void *)(long)ctx->data_end ||
	    p->eth.h_proto != bpf_htons(ETH_P_IP) ||
	    (p->ip.protocol != IPPROTO_UDP && p->ip.protocol != IPPROTO_TCP))
		return NULL;
	port = bpf_ntohs(at ? p->udp.source : p->udp.dest);
	if (port < DPORT || port >= DPORT + 1000)
		return NULL;
	__sync_fetch_and_add(n, 1);
	return p;
}

/* UDP: the same packet back. TCP: a SYN/ACK for a SYN, nothing else */
SEC("xdp")
int answer(struct xdp_md *ctx)
{
	struct packet *p = ours(ctx, 0);
	__u8 mac[ETH_ALEN];
	__u32 addr;
	__u16 port;

	if (!p)
		return XDP_PASS;
	if (p->ip.protocol == IPPROTO_TCP) {
		if (!p->tcp.syn)
			return XDP_DROP;
		p->tcp.ack_seq = bpf_htonl(bpf_ntohl(p->tcp.seq) + 1);
		p->tcp.seq = bpf_htonl(1);
		p->tcp.ack = 1;
	}
	__builtin_memcpy(mac, p->eth.h_dest, ETH_ALEN);
	__builtin_memcpy(p->eth.h_dest, p->eth.h_source, ETH_ALEN);
	__builtin_memcpy(p->eth.h_source, mac, ETH_ALEN);
	addr = p->ip.daddr;
	p->ip.daddr = p->ip.saddr;
	p->ip.saddr = addr;
	port = p->udp.dest;
	p->udp.dest = p->udp.source;
	p->udp.source = port;
	/* not XDP_TX: veth wakes its peer for that only if it has a program, too */
	return bpf_redirect(ctx->ingress_ifindex, 0);
}

SEC("xdp")
int drop(struct xdp_md *ctx)
{
	return ours(ctx, 1) ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";
