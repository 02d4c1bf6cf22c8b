// SPDX-License-Identifier: GPL-2.0-only
/*
 * Snoop mode: tell others of the flows in a namespace's flowtables
 *
 * Snoopers of all namespaces are in one list. It is read under RCU wherever a
 * flow is added or torn down, and changed under snoop_mutex. Adding to and
 * removing from it also turns a static branch, so that a kernel in which
 * nobody snoops runs as if this file were not there.
 *
 * A snooper is put in the list before the flows that exist are announced to
 * it: a flow that comes in meanwhile may be told twice, but none is missed.
 * After nf_flow_snoop_unregister() has returned nothing is told any more.
 */
#include <linux/mutex.h>
#include <linux/netfilter/nf_flow_table_snoop.h>
#include <linux/rculist.h>
#include <net/netfilter/nf_conntrack.h>
#include <net/netfilter/nf_flow_table.h>

DEFINE_STATIC_KEY_FALSE(nf_flow_snoop_key);

static DEFINE_MUTEX(snoop_mutex);
static LIST_HEAD(snoopers);

void __nf_flow_snoop_add(struct flow_offload *flow)
{
	struct nf_flow_snooper *snooper;

	rcu_read_lock();
	list_for_each_entry_rcu(snooper, &snoopers, list)
		if (net_eq(snooper->net, nf_ct_net(flow->ct)))
			snooper->ops->add(snooper, flow);
	rcu_read_unlock();
}

void __nf_flow_snoop_teardown(struct flow_offload *flow)
{
	struct nf_flow_snooper *snooper;

	rcu_read_lock();
	list_for_each_entry_rcu(snooper, &snoopers, list)
		if (net_eq(snooper->net, nf_ct_net(flow->ct)))
			snooper->ops->teardown(snooper, flow);
	rcu_read_unlock();
}

/**
 * nf_flow_snoop_register() - hear of the flows of a network namespace
 * @snooper: who; its ops are set
 * @net:     where; the caller makes sure that it is alive during the call
 *
 * First the flows that are there are announced, then each as it comes.
 *
 * Context: process, may sleep; takes snoop_mutex and the flowtables' mutex.
 */
void nf_flow_snoop_register(struct nf_flow_snooper *snooper, struct net *net)
{
	WRITE_ONCE(snooper->net, net);
	static_branch_inc(&nf_flow_snoop_key);
	mutex_lock(&snoop_mutex);
	list_add_tail_rcu(&snooper->list, &snoopers);
	mutex_unlock(&snoop_mutex);
	/* flows are added under RCU: those that have not seen the list are in a table then */
	synchronize_rcu();
	nf_flow_table_announce(net, snooper);
}
EXPORT_SYMBOL_GPL(nf_flow_snoop_register);

static void nf_flow_snoop_unlink(struct nf_flow_snooper *snooper)
{
	list_del_rcu(&snooper->list);
	synchronize_rcu();
	INIT_LIST_HEAD(&snooper->list);
	static_branch_dec(&nf_flow_snoop_key);
}

/**
 * nf_flow_snoop_unregister() - hear no more
 * @snooper: who; harmless for one whose namespace has gone already
 *
 * Context: process, may sleep; takes snoop_mutex.
 */
void nf_flow_snoop_unregister(struct nf_flow_snooper *snooper)
{
	mutex_lock(&snoop_mutex);
	if (!list_empty(&snooper->list))
		nf_flow_snoop_unlink(snooper);
	mutex_unlock(&snoop_mutex);
}
EXPORT_SYMBOL_GPL(nf_flow_snoop_unregister);

/* Namespace exit, before its flowtables' memory goes */
void nf_flow_snoop_net_exit(struct net *net)
{
	struct nf_flow_snooper *snooper, *next;

	mutex_lock(&snoop_mutex);
	list_for_each_entry_safe(snooper, next, &snoopers, list) {
		if (!net_eq(snooper->net, net))
			continue;
		snooper->ops->net_exit(snooper);
		nf_flow_snoop_unlink(snooper);
		WRITE_ONCE(snooper->net, NULL);
	}
	mutex_unlock(&snoop_mutex);
}

/**
 * nf_flow_snoop_refresh() - a packet of the flow was seen
 * @flow: the flow
 *
 * Puts the flow's expiry off as a packet through the flowtable would. Often
 * enough is once a second.
 *
 * Context: any; an RCU read section in which the flow was found.
 */
void nf_flow_snoop_refresh(struct flow_offload *flow)
{
	WRITE_ONCE(flow->timeout,
		   nf_flowtable_time_stamp + (u32)flow_offload_get_timeout(flow));
}
EXPORT_SYMBOL_GPL(nf_flow_snoop_refresh);
