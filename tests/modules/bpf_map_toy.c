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
#define to_elem(v) container_of(v, struct toy_elem, value)

static u32 toy_index(const struct bpf_map *map, void *key)
{
	return jhash(key, map->key_size, 0) % map->max_entries;
}

static void *toy_lookup(struct bpf_map *map, void *key)
{
	struct toy_elem *e;

	hlist_for_each_entry_rcu(e, &to_toy(map)->bucket[toy_index(map, key)], node, true)
		if (!memcmp(e->value + map->value_size, key, map->key_size))
			return e->value;
	return NULL;
}

/* Put value, or nothing, in the place of the key's old one, which goes out */
static int toy_replace(struct bpf_map *map, void *key, void *value, u64 flags, void *out)
{
	size_t size = struct_size_t(struct toy_elem, value, map->value_size + map->key_size);
	struct toy_elem *new __free(kfree) = NULL;
	struct toy *toy = to_toy(map);
	void *old;

	if (flags > BPF_EXIST)
		return -EINVAL;
	if (value) {
		new = bpf_modular_map_kmalloc(map, size, GFP_ATOMIC | __GFP_NOWARN);
		if (!new)
			return -ENOMEM;
		memcpy(new->value, value, map->value_size);
		memcpy(new->value + map->value_size, key, map->key_size);
	}
	guard(spinlock_bh)(&toy->lock);
	old = toy_lookup(map, key);
	if (old ? flags == BPF_NOEXIST : flags == BPF_EXIST)
		return old ? -EEXIST : -ENOENT;
	if (!old && toy->count == map->max_entries)
		return -E2BIG;
	if (out)
		memcpy(out, old, map->value_size);
	toy->count += !!new - !!old;
	if (new)
		hlist_add_head_rcu(&no_free_ptr(new)->node, &toy->bucket[toy_index(map, key)]);
	if (old) {
		hlist_del_rcu(&to_elem(old)->node);
		kfree_rcu(to_elem(old), rcu);
	}
	return 0;
}

static long toy_update(struct bpf_map *map, void *key, void *value, u64 flags)
{
	return toy_replace(map, key, value, flags, NULL);
}

static long toy_delete(struct bpf_map *map, void *key)
{
	return toy_replace(map, key, NULL, BPF_EXIST, NULL);
}

static int toy_lookup_and_delete(struct bpf_map *map, void *key, void *value, u64 flags)
{
	return flags ? -EINVAL : toy_replace(map, key, NULL, BPF_EXIST, value);
}

static int toy_next_key(struct bpf_map *map, void *key, void *next)
{
	void *value = key ? toy_lookup(map, key) : NULL;
	struct hlist_node *n = value ? rcu_dereference_raw(to_elem(value)->node.next) : NULL;
	u32 i = value ? toy_index(map, key) + 1 : 0;

	while (!n && i < map->max_entries)
		n = rcu_dereference_raw(hlist_first_rcu(&to_toy(map)->bucket[i++]));
	if (!n)
		return -ENOENT;
	memcpy(next, hlist_entry(n, struct toy_elem, node)->value + map->value_size, map->key_size);
	return 0;
}

static struct bpf_map *toy_alloc(union bpf_attr *attr)
{
	struct bpf_map *map = bpf_modular_map_alloc(attr, struct_size_t(struct toy, bucket,
									attr->max_entries));
	if (!IS_ERR(map))
		spin_lock_init(&to_toy(map)->lock);
	return map;
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
	return struct_size(to_toy(map), bucket, map->max_entries) + to_toy(map)->count *
	       struct_size_t(struct toy_elem, value, map->value_size + map->key_size);
}

static const struct bpf_modular_map_type toy_type = {
	.type = BPF_MAP_TYPE_MODULAR_LOCAL,
	.name = "toy",
	.ops = &(const struct bpf_map_ops) {
		.map_alloc			= toy_alloc,
		.map_free			= toy_free,
		.map_mem_usage			= toy_mem_usage,
		.map_lookup_elem		= toy_lookup,
		.map_update_elem		= toy_update,
		.map_delete_elem		= toy_delete,
		.map_lookup_and_delete_elem	= toy_lookup_and_delete,
		.map_get_next_key		= toy_next_key,
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
