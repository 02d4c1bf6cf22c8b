// SPDX-License-Identifier: GPL-2.0-only
/*
 * Both ends of the benchmark, and its floor
 *
 * generate() runs in the client's namespace by BPF_PROG_TEST_RUN with live
 * frames and sends them out of the client's device, so that the router's has
 * them in XDP. It writes all headers anew, as pages come back as the last
 * receiver left them. sink() on the server's device counts and drops what has
 * the source address that it waits for, answer() sends a reply to each packet,
 * which sets flows up. direct() on the router forwards without a look-up.
 * cleanup_*() take the time that a flowtable needs to end flows.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "bench.h"

const volatile struct bench_frame frame;
const volatile __u32 flows = 1;
const volatile __u32 source;	/* last word of the source address at the sink */
const volatile bool v6;
const volatile bool tcp;

/* of the topology, for direct(), which has no loader */
#define DIRECT_IFINDEX	12
#define DIRECT_DEST	4
#define DIRECT_SOURCE	3

__u8 tcp_flags;		/* what generate() sends */
__be32 tcp_seq[2];	/* and acknowledges */
__u32 step = 1;		/* from flow to flow */

struct bench_cpu cpus[CPUS];	/* by processor */

typedef __u16 __attribute__((may_alias)) u16a;
typedef __u32 __attribute__((may_alias)) u32a;

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~((sum & 0xffff) + (sum >> 16));
}

static __always_inline struct bench_cpu *this_cpu(void)
{
	return &cpus[bpf_get_smp_processor_id() & (CPUS - 1)];
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	struct bench_cpu *cpu = this_cpu();
	__u16 sport, dport, check;
	__u32 flow = cpu->next;
	__u64 sum;
	int i;

	if (cpu->sent == cpu->first)
		cpu->start = bpf_ktime_get_ns();
	else if (cpu->sent == cpu->last)
		cpu->end = bpf_ktime_get_ns();
	cpu->sent++;
	cpu->next = (flow + step) % flows;
	if (data + frame.len > data_end || data + frame.ports + 4 > data_end ||
	    data + frame.check + 2 > data_end)
		return XDP_ABORTED;

#pragma unroll
	for (i = 0; i < FRAME_MAX / 4; i++)
		if (4 * i + 4 <= frame.len)
			((u32a *)data)[i] = ((const volatile u32a *)frame.data)[i];

	sport = bpf_htons(SPORT + flow % PORTS);
	dport = bpf_htons(DPORT + flow / PORTS);
	*(u16a *)(data + frame.ports) = sport;
	*(u16a *)(data + frame.ports + 2) = dport;
	sum = (__u64)frame.sum + sport + dport;
	if (tcp) {
		if (data + frame.ports + sizeof(struct tcphdr) > data_end)
			return XDP_ABORTED;
		((u32a *)(data + frame.ports))[1] = tcp_seq[0];
		((u32a *)(data + frame.ports))[2] = tcp_seq[1];
		*(__u8 *)(data + frame.ports + 13) = tcp_flags;
		sum += (__u64)tcp_seq[0] + tcp_seq[1] + bpf_htons(tcp_flags);
	}
	check = fold(sum);
	*(u16a *)(data + frame.check) = check ?: 0xffff;
	return bpf_redirect(frame.ifindex, 0);
}

static __always_inline void count(void)
{
	this_cpu()->counted++;
}

/* Is it one of ours, from @from if that is not 0? All else is the stack's */
static __always_inline bool ours(void *data, void *end, __u32 from)
{
	struct ethhdr *eth = data;
	struct ipv6hdr *ip6 = (void *)(eth + 1);
	struct iphdr *ip = (void *)(eth + 1);

	if (v6) {
		if ((void *)(ip6 + 1) + sizeof(struct udphdr) > end ||
		    eth->h_proto != bpf_htons(ETH_P_IPV6) || ip6->nexthdr == IPPROTO_ICMPV6)
			return false;
		return !from || ip6->saddr.in6_u.u6_addr32[3] == from;
	}
	if ((void *)(ip + 1) + sizeof(struct udphdr) > end ||
	    eth->h_proto != bpf_htons(ETH_P_IP) || ip->protocol == IPPROTO_ICMP)
		return false;
	return !from || ip->saddr == from;
}

SEC("xdp")
int sink(struct xdp_md *ctx)
{
	if (!ours((void *)(long)ctx->data, (void *)(long)ctx->data_end, source))
		return XDP_PASS;
	count();
	return XDP_DROP;
}

/* The client's end, for what answer() sends */
SEC("xdp")
int drop(struct xdp_md *ctx)
{
	return ours((void *)(long)ctx->data, (void *)(long)ctx->data_end, 0) ?
	       XDP_DROP : XDP_PASS;
}

static __always_inline void swap(void *a, void *b, int words)
{
	__u16 t;
	int i;

#pragma unroll
	for (i = 0; i < words; i++) {
		t = ((u16a *)a)[i];
		((u16a *)a)[i] = ((u16a *)b)[i];
		((u16a *)b)[i] = t;
	}
}

/* UDP: the same packet back. TCP: a SYN/ACK for a SYN, nothing else */
SEC("xdp")
int answer(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	struct ethhdr *eth = data;
	void *ip = eth + 1, *l4 = ip + (v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	struct tcphdr *th = l4;

	if (!ours(data, end, source))
		return XDP_PASS;
	if (l4 + sizeof(struct udphdr) > end)
		return XDP_ABORTED;

	count();
	if (tcp) {
		u32a old[3], *word = (void *)&th->seq;
		__u32 i;

		if ((void *)(th + 1) > end)
			return XDP_ABORTED;
		if (!th->syn)
			return XDP_DROP;
		for (i = 0; i < 3; i++)
			old[i] = word[i];
		th->ack_seq = bpf_htonl(bpf_ntohl(th->seq) + 1);
		th->seq = bpf_htonl(1);
		th->ack = 1;
		th->check = fold(bpf_csum_diff(old, 12, word, 12, ~(__u32)th->check & 0xffff));
	}
	swap(eth->h_dest, eth->h_source, 3);
	if (v6)
		swap(ip + 8, ip + 24, 8);
	else
		swap(ip + 12, ip + 16, 2);
	swap(l4, l4 + 2, 1);
	/* not XDP_TX: veth wakes its peer for that only if it has a program, too */
	return bpf_redirect(ctx->ingress_ifindex, 0);
}

SEC("xdp")
int direct(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;

	if ((void *)(eth + 1) > end || (eth->h_proto != bpf_htons(ETH_P_IP) &&
					eth->h_proto != bpf_htons(ETH_P_IPV6)))
		return XDP_PASS;
	eth->h_dest[5] = DIRECT_DEST;
	eth->h_source[5] = DIRECT_SOURCE;
	return bpf_redirect(DIRECT_IFINDEX, 0);
}

/* The router's device has gone down: the flowtable lets go of its flows */
__u64 ended;

SEC("fentry/nf_flow_table_cleanup")
int cleanup_start(void *ctx)
{
	ended -= bpf_ktime_get_ns();
	return 0;
}

SEC("fexit/nf_flow_table_cleanup")
int cleanup_end(void *ctx)
{
	ended += bpf_ktime_get_ns();
	return 0;
}

char _license[] SEC("license") = "GPL";
