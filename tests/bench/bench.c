// SPDX-License-Identifier: GPL-2.0-only
/*
 * Send packets through the topology of paths.sh and take the time
 *
 * bench [-6] [-t] [-v VLAN] [-s SOURCE] -f FLOWS setup
 *	open FLOWS connections with packets of both directions
 * bench [-6] [-t] [-v VLAN] [-s SOURCE] [-i] -f FLOWS -n PACKETS -r RUNS run
 *	send on them and print nanoseconds a packet, a line a run. The same
 *	packets go first once, so that all flows have been seen within the
 *	second, or, with -i, none has been for two
 *	(-w COMMAND: run it before and after; with -r 0, once)
 * bench [-6] [-s SOURCE] -m MAPS -f FLOWS control
 *	open FLOWS while there are MAPS flowmaps, take the router's device down,
 *	and print nanoseconds a flow that both take, and bytes a flow of a map
 * bench [-6] [-t] [-v VLAN] [-s SOURCE] -f FLOWS -n PACKETS -r RUNS scale
 *	send from one processor and from all at once, each on flows of its own,
 *	and print how many packets all have sent for one of one alone, a line a
 *	run. The machine does other things, too: the best of many turns count
 * bench clock
 *	print nanoseconds an instruction of a loop of known length
 *
 * Fails unless all packets arrive at the server with source address SOURCE.
 * Time is taken from one packet of the generator to a later one, so that neither
 * start nor end of a run is in it. Under tests/vm/run --icount an instruction
 * takes a nanosecond: the line is instructions a packet, end to end. Kernel
 * threads wait meanwhile (a flowtable's collector walks all flows each second).
 */
#define _GNU_SOURCE
#include <argp.h>
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf_flowmap.h>
#include <linux/if_ether.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "bench.h"
#include "bench.skel.h"

#define TCP_SYN	0x02
#define TCP_ACK	0x10
#define BATCH	64		/* of live frames */
#define WARM	(4 * BATCH)	/* before and behind the packets that count */
#define CHUNK	100000	/* packets that are sent without a pause for kernel threads */
#define MAPS	8
#define TURNS	64	/* of a run on several processors */

static struct {
	const char	*command;
	const char	*source;
	const char	*watch;
	bool		v6;
	bool		tcp;
	bool		idle;
	int		vlan;
	__u32		maps;
	__u32		flows;
	__u32		packets;
	__u32		runs;
	__u32		seed;
} opt = { .flows = 1, .packets = 20480, .runs = 5 };

static struct bench_bpf *skel;

static void die(const char *what, int err)
{
	fprintf(stderr, "bench: %s: %s\n", what, strerror(err < 0 ? -err : errno));
	exit(1);
}

static void enter(const char *netns)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/run/netns/%s", netns);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || setns(fd, CLONE_NEWNET))
		die(path, 0);
	close(fd);
}

static __u32 sum16(const void *data, int len)
{
	const unsigned char *p = data;
	__u32 sum = 0;
	__u16 word;

	for (; len > 0; len -= 2, p += 2) {
		word = 0;
		memcpy(&word, p, len > 1 ? 2 : 1);
		sum += word;
	}
	return sum;
}

static void frame_make(struct bench_frame *f)
{
	const int l4_len = opt.tcp ? sizeof(struct tcphdr) : sizeof(struct udphdr);
	const __u8 proto = opt.tcp ? IPPROTO_TCP : IPPROTO_UDP;
	const int ip_len = opt.v6 ? sizeof(struct ip6_hdr) : sizeof(struct iphdr);
	__u8 *p = f->data;
	int len;

	/* 60 bytes, or the next multiple of 4 (plus 2) that holds the headers */
	f->len = 60;
	while (f->len < ETH_HLEN + (unsigned int)(ip_len + l4_len))
		f->len += 4;
	len = f->len - ETH_HLEN - ip_len;

	memcpy(p, "\2\0\0\0\0\2\2\0\0\0\0\1", 12);
	p += 12;
	if (opt.vlan) {
		f->len += 4;
		*(__u16 *)p = htons(ETH_P_8021Q);
		*(__u16 *)(p + 2) = htons(opt.vlan);
		p += 4;
	}
	*(__u16 *)p = htons(opt.v6 ? ETH_P_IPV6 : ETH_P_IP);
	p += 2;

	if (opt.v6) {
		struct ip6_hdr *ip = (void *)p;

		ip->ip6_flow = htonl(6 << 28);
		ip->ip6_plen = htons(len);
		ip->ip6_nxt = proto;
		ip->ip6_hlim = 64;
		inet_pton(AF_INET6, "fd00:1::2", &ip->ip6_src);
		inet_pton(AF_INET6, "fd00:2::2", &ip->ip6_dst);
		f->sum = sum16(&ip->ip6_src, 32);
	} else {
		struct iphdr *ip = (void *)p;
		__u32 sum;

		ip->version = 4;
		ip->ihl = 5;
		ip->tot_len = htons(ip_len + len);
		ip->frag_off = htons(0x4000);
		ip->ttl = 64;
		ip->protocol = proto;
		inet_pton(AF_INET, "10.0.1.2", &ip->saddr);
		inet_pton(AF_INET, "10.0.2.2", &ip->daddr);
		sum = sum16(ip, ip_len);
		sum = (sum & 0xffff) + (sum >> 16);
		ip->check = ~((sum & 0xffff) + (sum >> 16));
		f->sum = sum16(&ip->saddr, 8);
	}
	p += ip_len;
	f->sum += htons(len) + htons(proto);
	f->ports = p - f->data;
	if (opt.tcp) {
		struct tcphdr *tcp = (void *)p;

		tcp->doff = 5;
		tcp->window = htons(65535);
		f->check = f->ports + offsetof(struct tcphdr, check);
	} else {
		((struct udphdr *)p)->len = htons(len);
		f->check = f->ports + offsetof(struct udphdr, check);
	}
	f->sum += sum16(p, l4_len);
}

static void generate(__u32 packets)
{
	LIBBPF_OPTS(bpf_test_run_opts, run, .repeat = packets,
		    .data_in = (void *)skel->rodata->frame.data,
		    .data_size_in = skel->rodata->frame.len,
		    .flags = BPF_F_TEST_XDP_LIVE_FRAMES);
	int err = bpf_prog_test_run_opts(bpf_program__fd(skel->progs.generate), &run);

	if (err)
		die("BPF_PROG_TEST_RUN", err);
}

/* To be sent on this processor, time to be taken from @first to @last of them */
static void prepare(struct bench_cpu *cpu, __u32 first, __u32 last)
{
	cpu->sent = 0;
	cpu->first = first;
	cpu->last = last;
}

/* Dies unless all of @packets have arrived since the last time */
static void all_arrived(__u32 packets)
{
	__u64 counted = 0;
	int i;

	usleep(1000); /* what is still on its way */
	for (i = 0; i < CPUS; i++) {
		counted += skel->bss->cpus[i].counted;
		skel->bss->cpus[i].counted = 0;
	}
	if (counted != packets) {
		fprintf(stderr, "bench: sent %u packets, %llu arrived%s%s\n", packets,
			counted, opt.source ? " from " : "", opt.source ?: "");
		exit(1);
	}
}

/* Nanoseconds a packet */
static double took(const struct bench_cpu *cpu)
{
	return (double)(cpu->end - cpu->start) / (cpu->last - cpu->first);
}

/* Nanoseconds a packet, from @first to @last of @packets; dies unless all arrive */
static double send_packets(__u32 packets, __u32 first, __u32 last)
{
	prepare(skel->bss->cpus, first, last);
	generate(packets);
	all_arrived(packets);
	return took(skel->bss->cpus);
}

static void open_all(void)
{
	struct bpf_program *server;
	struct bench_frame f = {};
	__u8 addr[16];
	int err;

	skel = bench_bpf__open();
	if (!skel)
		die("bench.bpf.o", 0);
	frame_make(&f);
	enter("c");
	f.ifindex = if_nametoindex("c0");
	memcpy((void *)&skel->rodata->frame, &f, sizeof(f));
	skel->rodata->flows = opt.flows;
	skel->rodata->v6 = opt.v6;
	skel->rodata->tcp = opt.tcp;
	if (opt.source) {
		if (inet_pton(opt.v6 ? AF_INET6 : AF_INET, opt.source, addr) != 1)
			die(opt.source, -EINVAL);
		memcpy((void *)&skel->rodata->source, addr + (opt.v6 ? 12 : 0), 4);
	}
	if (strcmp(opt.command, "control")) {
		bpf_program__set_autoload(skel->progs.cleanup_start, false);
		bpf_program__set_autoload(skel->progs.cleanup_end, false);
	}
	err = bench_bpf__load(skel);
	if (err)
		die("bench.bpf.o", err);
	server = !strcmp(opt.command, "run") || !strcmp(opt.command, "scale") ?
		 skel->progs.sink : skel->progs.answer;
	/* the client drops its replies */
	skel->links.drop = bpf_program__attach_xdp(skel->progs.drop, f.ifindex);
	if (!skel->links.drop)
		die("c0", 0);
	enter("s");
	skel->links.answer = bpf_program__attach_xdp(server, if_nametoindex("s0"));
	if (!skel->links.answer)
		die("s0", 0);
	enter("c");
}

static void watch(void)
{
	fflush(stdout);
	if (opt.watch && system(opt.watch))
		die(opt.watch, -EIO);
}

static void tcp_header(__u8 flags, __u32 seq, __u32 ack)
{
	skel->bss->tcp_flags = flags;
	skel->bss->tcp_seq[0] = htonl(seq);
	skel->bss->tcp_seq[1] = htonl(ack);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static void clock_check(void)
{
	unsigned long n = 100000000, left = n;
	double start = now();

	asm volatile("1: dec %0; jnz 1b" : "+r" (left));
	printf("%.4f\n", (now() - start) / (2 * n));
}

/* A packet of each flow. Return: nanoseconds a packet, of half of them */
static double send_all(void)
{
	__u32 left, n;
	double time;

	skel->bss->cpus[0].next = 0;
	for (left = opt.flows; left; left -= n) {
		n = left < CHUNK ? left : CHUNK;
		time = send_packets(n, n / 4, n / 4 + (n + 1) / 2);
	}
	return opt.flows > 1 ? time : 0;
}

/* Return: nanoseconds a flow */
static double setup(void)
{
	double time;

	/* the first may be there already, from a set-up of fewer */
	tcp_header(TCP_SYN, 1000, 0);
	time = send_all();
	tcp_header(TCP_ACK, 1001, 2);
	return opt.tcp ? time + send_all() : time;
}

/* Take the router's device down. Return: nanoseconds that its flows took of that */
static double device_down(void)
{
	struct ifreq ifr = { .ifr_name = "r0" };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	skel->links.cleanup_start = bpf_program__attach(skel->progs.cleanup_start);
	skel->links.cleanup_end = bpf_program__attach(skel->progs.cleanup_end);
	if (!skel->links.cleanup_start || !skel->links.cleanup_end)
		die("nf_flow_table_cleanup", 0);
	if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &ifr))
		die("r0", 0);
	ifr.ifr_flags &= ~IFF_UP;
	if (ioctl(fd, SIOCSIFFLAGS, &ifr))
		die("r0 down", 0);
	close(fd);
	return skel->bss->ended;
}

static unsigned long map_bytes(int map)
{
	unsigned long bytes = 0;
	char line[128];
	FILE *f;

	snprintf(line, sizeof(line), "/proc/self/fdinfo/%d", map);
	f = fopen(line, "re");
	if (!f)
		die(line, 0);
	while (fgets(line, sizeof(line), f) && sscanf(line, "memlock: %lu", &bytes) != 1)
		;
	fclose(f);
	return bytes;
}

static __u32 map_entries(int map)
{
	struct bpf_flowmap_key key;
	__u32 n = 0;

	while (!bpf_map_get_next_key(map, n ? &key : NULL, &key))
		n++;
	return n;
}

static void control(void)
{
	double opened;
	int map[MAPS];
	__u32 i;

	enter("r");
	for (i = 0; i < opt.maps; i++) {
		map[i] = bpf_map_create(BPF_MAP_TYPE_FLOWMAP, "bench",
					sizeof(struct bpf_flowmap_key),
					sizeof(struct bpf_flowmap_value), 2 * opt.flows, NULL);
		if (map[i] < 0)
			die("flowmap", map[i]);
	}
	enter("c");
	opened = setup();
	enter("r");
	for (i = 0; i < opt.maps; i++)
		if (map_entries(map[i]) != 2 * opt.flows)
			die("the flowmap has not all flows", -ENOENT);
	i = opt.maps ? map_bytes(map[0]) : 0;
	printf("%.1f %.1f %u\n", opened, device_down() / opt.flows, i / opt.flows);
}

static void run(void)
{
	const __u32 packets = opt.packets + 2 * WARM, first = first_flow(opt.seed, opt.flows);
	__u32 *next = &skel->bss->cpus[0].next, i;

	skel->data->step = STEP;
	/* routes may have changed with a device, and ended flows: the stack opens them again */
	for (i = 0; i < 2; i++) {
		*next = first;
		send_packets(packets, 0, packets - 1);
		sleep(3);
	}
	watch();
	for (i = 0; i < opt.runs; i++) {
		*next = first;
		if (opt.idle)
			sleep(2);
		else
			send_packets(packets, 0, packets - 1);
		*next = first;
		printf("%.1f\n", send_packets(packets, WARM, WARM + opt.packets));
	}
	if (opt.runs)
		watch();
}

struct sender {
	pthread_t		thread;
	pthread_barrier_t	*together;
	int			cpu;
};

static void *send_on(void *data)
{
	struct sender *s = data;
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(s->cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity", 0);
	pthread_barrier_wait(s->together);
	generate(opt.packets + 2 * WARM);
	return NULL;
}

/* Return: packets a nanosecond, from processors 0 to @cpus - 1 at once */
static double rate(int cpus)
{
	__u64 start = UINT64_MAX, end = 0;
	struct sender senders[CPUS];
	pthread_barrier_t together;
	int i;

	skel->data->step = STEP * cpus; /* shares no flow if @cpus divides them */
	pthread_barrier_init(&together, NULL, cpus);
	for (i = 0; i < cpus; i++) {
		struct sender *s = &senders[i];

		s->cpu = i;
		s->together = &together;
		skel->bss->cpus[i].next = i;
		prepare(&skel->bss->cpus[i], WARM, WARM + opt.packets);
		if (pthread_create(&s->thread, NULL, send_on, s))
			die("pthread_create", 0);
	}
	for (i = 0; i < cpus; i++) {
		const struct bench_cpu *cpu = &skel->bss->cpus[i];

		pthread_join(senders[i].thread, NULL);
		start = cpu->start < start ? cpu->start : start;
		end = cpu->end > end ? cpu->end : end;
	}
	all_arrived(cpus * (opt.packets + 2 * WARM));
	return (double)cpus * opt.packets / (end - start);
}

static void scale(void)
{
	int cpus = sysconf(_SC_NPROCESSORS_ONLN);
	double got, one, all;
	__u32 i, turn;

	for (i = 0; i < opt.runs; i++) {
		one = 0;
		all = 0;
		for (turn = 0; turn < TURNS; turn++) {
			got = rate(1);
			one = got > one ? got : one;
			got = rate(cpus);
			all = got > all ? got : all;
		}
		printf("%.3f\n", all / one);
	}
}

static const struct argp_option options[] = {
	{ "ipv6",	'6', NULL,	0, "IPv6 (IPv4)", 0 },
	{ "tcp",	't', NULL,	0, "TCP (UDP)", 0 },
	{ "vlan",	'v', "ID",	0, "with a VLAN tag", 0 },
	{ "source",	's', "ADDRESS",	0, "what the server must see as source", 0 },
	{ "watch",	'w', "COMMAND", 0, "run before and after what is measured", 0 },
	{ "idle",	'i', NULL,	0, "flows that have seen no packet for two seconds", 0 },
	{ "seed",	'S', "N",	0, "which flow comes first", 0 },
	{ "maps",	'm', "N",	0, "flowmaps", 0 },
	{ "flows",	'f', "N",	0, "connections", 0 },
	{ "packets",	'n', "N",	0, "packets a run", 0 },
	{ "runs",	'r', "N",	0, "runs", 0 },
	{}
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	switch (key) {
	case '6':
		opt.v6 = true;
		break;
	case 't':
		opt.tcp = true;
		break;
	case 'v':
		opt.vlan = atoi(arg);
		break;
	case 's':
		opt.source = arg;
		break;
	case 'w':
		opt.watch = arg;
		break;
	case 'i':
		opt.idle = true;
		break;
	case 'S':
		opt.seed = atoi(arg);
		break;
	case 'm':
		opt.maps = atoi(arg);
		break;
	case 'f':
		opt.flows = atoi(arg);
		break;
	case 'n':
		opt.packets = atoi(arg);
		break;
	case 'r':
		opt.runs = atoi(arg);
		break;
	case ARGP_KEY_ARG:
		if (opt.command)
			argp_usage(state);
		opt.command = arg;
		break;
	case ARGP_KEY_END:
		opt.packets -= opt.packets % BATCH;
		if (!opt.command || !opt.flows || !opt.packets || opt.maps > MAPS)
			argp_usage(state);
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

int main(int argc, char **argv)
{
	const struct argp argp = { options, parse, "setup|run|control|scale|clock",
				   NULL, NULL, NULL, NULL };
	const struct sched_param fifo = { .sched_priority = 50 };

	argp_parse(&argp, argc, argv, 0, NULL, NULL);
	if (!strcmp(opt.command, "clock")) {
		clock_check();
		return 0;
	}
	open_all();
	if (sched_setscheduler(0, SCHED_FIFO, &fifo))
		die("SCHED_FIFO", 0);
	if (!strcmp(opt.command, "setup")) {
		printf("%.1f\n", setup());
	} else if (!strcmp(opt.command, "control")) {
		control();
	} else {
		tcp_header(TCP_ACK, 1001, 2);
		if (!strcmp(opt.command, "scale"))
			scale();
		else
			run();
	}
	return 0;
}
