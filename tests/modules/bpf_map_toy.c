// SPDX-License-Identifier: GPL-2.0-only
/* A map type by Documentation/bpf/modular_maps.rst alone; keys may not share a hash */
#include <linux/bpf_modular_maps.h>
#include <linux/jhash.h>
#include <linux/slab.h>
#include <linux/xarray.h>

struct toy {
	struct bpf_map map;
	struct xarray xa; /* by hash; its lock is for count, too */
	u32 count;
};

struct toy_elem {
	struct rcu_head rcu;
	u8 data[] __aligned(8); /* key, value at the next multiple of 8 */
};

#define to_toy(m) container_of(m, struct toy, map)
#define toy_hash(map, key) jhash(key, (map)->key_size, 0)
#define toy_value(map, e) ((e)->data + round_up((map)->key_size, 8))

static struct toy_elem *toy_find(struct bpf_map *map, void *key)
{
	struct toy_elem *e = xa_load(&to_toy(map)->xa, toy_hash(map, key));

	return e && !memcmp(e->data, key, map->key_size) ? e : NULL;
}

static void *toy_lookup(struct bpf_map *map, void *key)
{
	struct toy_elem *e = toy_find(map, key);

	return e ? toy_value(map, e) : NULL;
}

/* All changes: @new in the place of what there is, either may be NULL */
static long toy_set(struct bpf_map *map, void *key, struct toy_elem *new, u64 flags)
{
	struct toy *toy = to_toy(map);
	struct toy_elem *old;
	long err;

	xa_lock_bh(&toy->xa);
	old = toy_find(map, key);
	if (old ? flags == BPF_NOEXIST : flags == BPF_EXIST)
		err = old ? -EEXIST : -ENOENT;
	else if (!old && (toy->count == map->max_entries ||
			  xa_load(&toy->xa, toy_hash(map, key))))
		err = -E2BIG;
	else
		err = xa_err(__xa_store(&toy->xa, toy_hash(map, key), new, GFP_ATOMIC));
	if (!err)
		toy->count += !!new - !!old;
	xa_unlock_bh(&toy->xa);
	if (!err && old)
		kfree_rcu(old, rcu);
	return err;
}

static long toy_update(struct bpf_map *map, void *key, void *value, u64 flags)
{
	struct toy_elem *new;
	long err;

	if (flags > BPF_EXIST)
		return -EINVAL;
	new = kmalloc(sizeof(*new) + round_up(map->key_size, 8) + map->value_size, GFP_ATOMIC);
	if (!new)
		return -ENOMEM;
	memcpy(new->data, key, map->key_size);
	memcpy(toy_value(map, new), value, map->value_size);
	err = toy_set(map, key, new, flags);
	if (err)
		kfree(new);
	return err;
}

static long toy_delete(struct bpf_map *map, void *key)
{
	return toy_set(map, key, NULL, BPF_EXIST);
}

static int toy_next_key(struct bpf_map *map, void *key, void *next)
{
	unsigned long i = key && toy_find(map, key) ? toy_hash(map, key) + 1UL : 0;
	struct toy_elem *e = xa_find(&to_toy(map)->xa, &i, ULONG_MAX, XA_PRESENT);

	if (e)
		memcpy(next, e->data, map->key_size);
	return e ? 0 : -ENOENT;
}

static struct bpf_map *toy_alloc(union bpf_attr *attr)
{
	struct toy *toy;

	if (!attr->key_size || !attr->value_size || !attr->max_entries ||
	    attr->key_size > 512 || attr->value_size > 4096)
		return ERR_PTR(-EINVAL);
	toy = bpf_map_area_alloc(sizeof(*toy), NUMA_NO_NODE);
	if (!toy)
		return ERR_PTR(-ENOMEM);
	bpf_map_init_from_attr(&toy->map, attr);
	xa_init_flags(&toy->xa, XA_FLAGS_LOCK_BH);
	return &toy->map;
}

static void toy_free(struct bpf_map *map)
{
	struct toy_elem *e;
	unsigned long i;

	xa_for_each(&to_toy(map)->xa, i, e)
		kfree(e);
	xa_destroy(&to_toy(map)->xa);
	bpf_map_area_free(map);
}

static u64 toy_mem_usage(const struct bpf_map *map)
{
	return sizeof(struct toy) + (u64)to_toy(map)->count *
	       (sizeof(struct toy_elem) + round_up(map->key_size, 8) + map->value_size);
}

static const u16 toy_helpers[] = {
	BPF_FUNC_map_lookup_elem, BPF_FUNC_map_update_elem, BPF_FUNC_map_delete_elem, 0
};

static const struct bpf_map_ops toy_ops = {
	.map_alloc		= toy_alloc,
	.map_free		= toy_free,
	.map_mem_usage		= toy_mem_usage,
	.map_lookup_elem	= toy_lookup,
	.map_update_elem	= toy_update,
	.map_delete_elem	= toy_delete,
	.map_get_next_key	= toy_next_key,
};

static const struct bpf_modular_map_type toy_type = {
	.type		= BPF_MAP_TYPE_MODULAR_LOCAL,
	.name		= "toy",
	.ops		= &toy_ops,
	.prog_types	= BIT_ULL(BPF_PROG_TYPE_XDP),
	.helpers	= toy_helpers,
	.cap		= CAP_BPF,
	.flags		= BPF_MODULAR_MAP_GENERIC_BATCH,
};

static struct bpf_modular_map *toy_modular;

static int __init toy_init(void)
{
	toy_modular = bpf_modular_map_register(&toy_type);
	return PTR_ERR_OR_ZERO(toy_modular);
}

static void __exit toy_exit(void)
{
	bpf_modular_map_unregister(toy_modular);
}

module_init(toy_init);
module_exit(toy_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A BPF map type for tests");
MODULE_ALIAS("bpf-map-type-98304");
