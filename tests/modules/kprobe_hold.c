// SPDX-License-Identifier: GPL-2.0-only
/*
 * Hold whoever comes to a function until told to let him go, so that a test can
 * have something else happen just then: forced order for races
 *
 * Write 1 to the parameter armed; held turns 1 when the next one to enter
 * @symbol, or the task @pid if that is not 0, is held, with preemption disabled;
 * write 1 to release. Nobody is held for longer than @ms. Who enters the function
 * @counted is counted in hits.
 */
#include <linux/atomic.h>
#include <linux/kprobes.h>
#include <linux/ktime.h>
#include <linux/module.h>

static char *symbol;
module_param(symbol, charp, 0400);
static char *counted;
module_param(counted, charp, 0400);
static unsigned int ms = 10000;
module_param(ms, uint, 0400);
static int pid;
module_param(pid, int, 0600);
static int armed;
module_param(armed, int, 0600);
static int held;
module_param(held, int, 0400);
static int release;
module_param(release, int, 0600);
static int hits;
module_param(hits, int, 0400);

static int hold(struct kprobe *p, struct pt_regs *regs)
{
	ktime_t end = ktime_add_ms(ktime_get(), ms);

	if ((pid && current->pid != pid) || cmpxchg(&armed, 1, 0) != 1)
		return 0;
	WRITE_ONCE(release, 0);
	WRITE_ONCE(held, 1);
	while (!READ_ONCE(release) && ktime_before(ktime_get(), end))
		cpu_relax();
	WRITE_ONCE(held, 0);
	return 0;
}

static int count(struct kprobe *p, struct pt_regs *regs)
{
	WRITE_ONCE(hits, hits + 1);
	return 0;
}

static struct kprobe holder = { .pre_handler = hold };
static struct kprobe counter = { .pre_handler = count };

static int __init kprobe_hold_init(void)
{
	int err;

	holder.symbol_name = symbol;
	err = register_kprobe(&holder);
	if (err || !counted)
		return err;
	counter.symbol_name = counted;
	err = register_kprobe(&counter);
	if (err)
		unregister_kprobe(&holder);
	return err;
}

static void __exit kprobe_hold_exit(void)
{
	if (counted)
		unregister_kprobe(&counter);
	unregister_kprobe(&holder);
}

module_init(kprobe_hold_init);
module_exit(kprobe_hold_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Hold whoever comes to a function");
