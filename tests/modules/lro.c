// SPDX-License-Identifier: GPL-2.0-only
/*
 * An Ethernet device that says it does LRO and takes VLAN tags off. It neither sends
 * nor receives.
 */
#include <linux/etherdevice.h>
#include <linux/module.h>

static struct net_device *lro;

static netdev_tx_t lro_xmit(struct sk_buff *skb, struct net_device *dev)
{
	dev_kfree_skb(skb);
	return NETDEV_TX_OK;
}

static const struct net_device_ops lro_ops = {
	.ndo_start_xmit	= lro_xmit,
};

static int __init lro_init(void)
{
	int err;

	lro = alloc_etherdev(0);
	if (!lro)
		return -ENOMEM;
	strscpy(lro->name, "lro0");
	lro->netdev_ops = &lro_ops;
	lro->hw_features = NETIF_F_LRO | NETIF_F_HW_VLAN_CTAG_RX;
	lro->features = lro->hw_features;
	eth_hw_addr_random(lro);
	err = register_netdev(lro);
	if (err)
		free_netdev(lro);
	return err;
}

static void __exit lro_exit(void)
{
	unregister_netdev(lro);
	free_netdev(lro);
}

module_init(lro_init);
module_exit(lro_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("An Ethernet device that says it does LRO");
