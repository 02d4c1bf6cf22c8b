/* SPDX-License-Identifier: GPL-2.0-only */
/* What the programs (bench.bpf.c) and their loader (bench.c) agree on */
#ifndef __BENCH_H
#define __BENCH_H

#define FRAME_MAX	96
#define PORTS		60000	/* source ports a destination port */
#define SPORT		1024
#define DPORT		5001
#define STEP		7919	/* from flow to flow: prime, so that it meets all */

/* Which flow comes first */
static inline unsigned int first_flow(unsigned int seed, unsigned int flows)
{
	return seed * 2654435761u % flows;
}

/* The frame that the generator writes, and where in it what changes lies */
struct bench_frame {
	unsigned char	data[FRAME_MAX];
	unsigned int	len;	/* a multiple of 4 */
	unsigned int	ports;
	unsigned int	check;	/* TCP's or UDP's */
	unsigned int	sum;	/* over all that the checksum covers but ports */
	unsigned int	ifindex;
};

#define CPUS		8

/* What a processor sends, and has counted */
struct bench_cpu {
	unsigned int		next;		/* flow */
	unsigned int		sent;
	unsigned int		first, last;	/* packets between which time is taken */
	unsigned long long	start, end;
	unsigned long long	counted;
	unsigned long long	pad[3];		/* a line of cache of its own */
};

#endif
