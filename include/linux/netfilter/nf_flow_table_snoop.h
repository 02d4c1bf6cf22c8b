/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Snoop mode: hear of the flows of a network namespace's flowtables
 */
#ifndef _LINUX_NF_FLOW_TABLE_SNOOP_H
#define _LINUX_NF_FLOW_TABLE_SNOOP_H

#include <linux/jump_label.h>
#include <linux/list.h>
#include <net/net_namespace.h>
#include <net/netfilter/nf_flow_table.h>

struct nf_flow_snooper;

/**
 * struct nf_flow_snoop_ops - what a snooper is told
 * @add:      a flow is in a flowtable. It may be told more than once, and
 *            @teardown may come first: look at NF_FLOW_TEARDOWN once the
 *            flow is where @teardown would find it.
 * @teardown: packets of the flow belong to the stack from now on, whatever
 *            the reason: FIN, RST, a stale route, expiry, flush, the device
 *            or the flowtable gone. It may be told more than once, and is
 *            told before the connection can be offloaded anew. Of two who call
 *            flow_offload_teardown() the second may return before it is told.
 * @net_exit: the network namespace goes away, and the snooper is unregistered
 *            when this returns: it must let go of all flows, and take no more.
 *
 * Context: @add and @teardown any up to softirq, in an RCU read section,
 * possibly on several CPUs at once; they must not sleep. A flow, its route
 * and its conntrack entry stay for a grace period after @teardown has returned.
 * So does a flow that is let go of while still registered: whoever stops to
 * listen lets go of all flows first.
 * @net_exit: process, may sleep.
 */
struct nf_flow_snoop_ops {
	void (*add)(struct nf_flow_snooper *snooper, struct flow_offload *flow);
	void (*teardown)(struct nf_flow_snooper *snooper,
			 struct flow_offload *flow);
	void (*net_exit)(struct nf_flow_snooper *snooper);
};

/**
 * struct nf_flow_snooper - somebody who hears of a namespace's flows
 * @ops:  what to tell; set by the owner
 * @net:  network namespace; set by nf_flow_snoop_register()
 * @list: in the list of snoopers; empty while not registered
 */
struct nf_flow_snooper {
	const struct nf_flow_snoop_ops *ops;
	struct net *net;
	struct list_head list;
};

void nf_flow_snoop_register(struct nf_flow_snooper *snooper, struct net *net);
void nf_flow_snoop_unregister(struct nf_flow_snooper *snooper);
void nf_flow_snoop_refresh(struct flow_offload *flow);

/* For nf_flow_table only */
extern struct static_key_false nf_flow_snoop_key;

void __nf_flow_snoop_add(struct flow_offload *flow);
void __nf_flow_snoop_teardown(struct flow_offload *flow);
void nf_flow_snoop_net_exit(struct net *net);
void nf_flow_table_announce(struct net *net, struct nf_flow_snooper *snooper);

static inline void nf_flow_snoop_add(struct flow_offload *flow)
{
	if (static_branch_unlikely(&nf_flow_snoop_key))
		__nf_flow_snoop_add(flow);
}

static inline void nf_flow_snoop_teardown(struct flow_offload *flow)
{
	if (static_branch_unlikely(&nf_flow_snoop_key))
		__nf_flow_snoop_teardown(flow);
}

/* A flowtable leaves a device: its flows would end a grace period later, with its memory */
static inline void nf_flow_snoop_unbind(struct net_device *dev)
{
	if (static_branch_unlikely(&nf_flow_snoop_key))
		nf_flow_table_cleanup(dev);
}

#endif /* _LINUX_NF_FLOW_TABLE_SNOOP_H */
