// SPDX-License-Identifier: GPL-2.0-only
/*
 * Print the frequency of this machine's time stamp counter in kHz. QEMU's own
 * emulation lets the guest read it, but gives it no timer to measure it by.
 */
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

int main(void)
{
	const struct timespec nap = { .tv_nsec = 50000000 };
	unsigned long long from, to;
	struct timespec a, b;

	clock_gettime(CLOCK_MONOTONIC, &a);
	from = __rdtsc();
	nanosleep(&nap, NULL);
	clock_gettime(CLOCK_MONOTONIC, &b);
	to = __rdtsc();
	printf("%.0f\n", (to - from) * 1e6 /
	       ((b.tv_sec - a.tv_sec) * 1e9 + b.tv_nsec - a.tv_nsec));
	return 0;
}
