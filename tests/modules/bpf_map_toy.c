// SPDX-License-Identifier: GPL-2.0-only
/* A hash map, by Documentation/bpf/modular_maps.rst alone */
#include <linux/bpf_modular_maps.h>
#include <linux/jhash.h>
#include <linux/slab.h>

struct toy {
	struct bpf_map map;
	spinlock_t lock; /* for changes */
	u32 count;
	struct hlist_head bucket[]; /* max_entries of them */
};

struct toy_elem {
	struct hlist_node node;
	struct rcu_head rcu;
	u8 value[] __aligned(8); /* and the key behind it */
};

#define to_toy(m) container_of(m, struct toy, map)

static u64 toy_elem_size(const struct bpf_map *map)
{
	return sizeof(struct toy_elem) + map->value_size + map->key_size;
}

static u32 toy_index(const struct bpf_map *map, void *key)
{
	return jhash(key, map->key_size, 0) % map->max_entries;
}

static struct toy_elem *toy_find(struct bpf_map *map, void *key)
{
	struct toy_elem *e;

	hlist_for_each_entry_rcu(e, &to_toy(map)->bucket[toy_index(map, key)], node, true)
		if (!memcmp(e->value + map->value_size, key, map->key_size))
			return e;
	return NULL;
}

static void *toy_lookup(struct bpf_map *map, void *key)
{
	struct toy_elem *e = toy_find(map, key);

	return e ? e->value : NULL;
}

static void toy_remove(struct toy *toy, struct toy_elem *e)
{
	toy->count--;
	hlist_del_rcu(&e->node);
	kfree_rcu(e, rcu);
}

static long toy_update(struct bpf_map *map, void *key, void *value, u64 flags)
{
	struct toy_elem *old, *new __free(kfree) = kmalloc(toy_elem_size(map), GFP_ATOMIC);
	struct toy *toy = to_toy(map);

	if (!new || flags > BPF_EXIST)
		return new ? -EINVAL : -ENOMEM;
	memcpy(new->value, value, map->value_size);
	memcpy(new->value + map->value_size, key, map->key_size);
	guard(spinlock_bh)(&toy->lock);
	old = toy_find(map, key);
	if (old ? flags == BPF_NOEXIST : flags == BPF_EXIST)
		return old ? -EEXIST : -ENOENT;
	if (!old && toy->count == map->max_entries)
		return -E2BIG;
	toy->count++;
	hlist_add_head_rcu(&no_free_ptr(new)->node, &toy->bucket[toy_index(map, key)]);
	if (old)
		toy_remove(toy, old);
	return 0;
}

static long toy_delete(struct bpf_map *map, void *key)
{
	struct toy_elem *e;

	guard(spinlock_bh)(&to_toy(map)->lock);
	e = toy_find(map, key);
	if (e)
		toy_remove(to_toy(map), e);
	return e ? 0 : -ENOENT;
}

static int toy_next_key(struct bpf_map *map, void *key, void *next)
{
	struct toy_elem *e = key ? toy_find(map, key) : NULL;
	u32 i = e ? toy_index(map, key) + 1 : 0;
	struct hlist_node *n = e ? rcu_dereference_raw(hlist_next_rcu(&e->node)) : NULL;

	while (!n && i < map->max_entries)
		n = rcu_dereference_raw(hlist_first_rcu(&to_toy(map)->bucket[i++]));
	if (!n)
		return -ENOENT;
	e = hlist_entry(n, struct toy_elem, node);
	memcpy(next, e->value + map->value_size, map->key_size);
	return 0;
}

static struct bpf_map *toy_alloc(union bpf_attr *attr)
{
	struct toy *toy;

	if (!attr->key_size || !attr->value_size || !attr->max_entries ||
	    attr->key_size > 512 || attr->value_size > 4096)
		return ERR_PTR(-EINVAL);
	toy = bpf_map_area_alloc(struct_size(toy, bucket, attr->max_entries), NUMA_NO_NODE);
	if (!toy)
		return ERR_PTR(-ENOMEM);
	bpf_map_init_from_attr(&toy->map, attr);
	spin_lock_init(&toy->lock);
	return &toy->map;
}

static void toy_free(struct bpf_map *map)
{
	struct hlist_node *n;
	struct toy_elem *e;

	for (u32 i = 0; i < map->max_entries; i++)
		hlist_for_each_entry_safe(e, n, &to_toy(map)->bucket[i], node)
			kfree(e);
	bpf_map_area_free(map);
}

static u64 toy_mem_usage(const struct bpf_map *map)
{
	return struct_size(to_toy(map), bucket, map->max_entries) +
	       to_toy(map)->count * toy_elem_size(map);
}

static const struct bpf_modular_map_type toy_type = {
	.type = BPF_MAP_TYPE_MODULAR_LOCAL,
	.name = "toy",
	.ops = &(const struct bpf_map_ops) {
		.map_alloc		= toy_alloc,
		.map_free		= toy_free,
		.map_mem_usage		= toy_mem_usage,
		.map_lookup_elem	= toy_lookup,
		.map_update_elem	= toy_update,
		.map_delete_elem	= toy_delete,
		.map_get_next_key	= toy_next_key,
	},
	.prog_types = BIT_ULL(BPF_PROG_TYPE_XDP),
	.helpers = (const u16[]) { BPF_FUNC_map_lookup_elem, BPF_FUNC_map_update_elem,
				   BPF_FUNC_map_delete_elem, 0 },
	.cap = CAP_BPF,
	.flags = BPF_MODULAR_MAP_GENERIC_BATCH,
};
module_bpf_modular_map(toy_type);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A BPF map type for tests");
MODULE_ALIAS("bpf-map-type-98304");
