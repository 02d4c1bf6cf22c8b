// SPDX-License-Identifier: GPL-2.0-only
/* A hash map of open addressing, by Documentation/bpf/modular_maps.rst alone */
#include <linux/bpf_modular_maps.h>
#include <linux/jhash.h>

struct toy_slot {
	enum { TOY_FREE, TOY_USED, TOY_GONE } state;
	u32 hash;
	u8 value[] __aligned(8); /* and the key behind it */
};

#define toy_key(m, s) ((s)->value + (m)->value_size)

static DEFINE_SPINLOCK(toy_lock); /* for changes, of all maps */

static u64 toy_slot_size(u32 key_size, u32 value_size)
{
	return round_up(sizeof(struct toy_slot) + key_size + value_size, 8ULL);
}

/* A map is struct bpf_map and its slots */
static void *toy_slot(const struct bpf_map *map, u64 i)
{
	return (void *)(map + 1) + toy_slot_size(map->key_size, map->value_size) * i;
}

static struct bpf_map *toy_alloc(union bpf_attr *attr)
{
	return bpf_modular_map_alloc(attr, sizeof(struct bpf_map) + attr->max_entries *
				     toy_slot_size(attr->key_size, attr->value_size));
}

static u64 toy_mem_usage(const struct bpf_map *map)
{
	return toy_slot(map, map->max_entries) - (void *)map;
}

/* The key's slot, or NULL and in *room one that may become it, if there is one */
static struct toy_slot *toy_find(struct bpf_map *map, void *key, struct toy_slot **room)
{
	u32 i, n = map->max_entries, hash = jhash(key, map->key_size, 0);

	for (*room = NULL, i = 0; i < n; i++) {
		struct toy_slot *s = toy_slot(map, ((u64)hash + i) % n);
		int state = smp_load_acquire(&s->state); /* then key and value */

		if (state == TOY_USED && s->hash == hash &&
		    !memcmp(toy_key(map, s), key, map->key_size))
			return s;
		*room = *room ?: state == TOY_USED ? NULL : s;
		if (state == TOY_FREE)
			break;
	}
	return NULL;
}

static void *toy_lookup(struct bpf_map *map, void *key)
{
	struct toy_slot *room, *s = toy_find(map, key, &room);

	return s ? s->value : NULL;
}

static long toy_update(struct bpf_map *map, void *key, void *value, u64 flags)
{
	struct toy_slot *room, *s;

	guard(spinlock_bh)(&toy_lock);
	s = toy_find(map, key, &room);
	if (flags > BPF_EXIST)
		return -EINVAL;
	if (s ? flags == BPF_NOEXIST : flags == BPF_EXIST || !room)
		return s ? -EEXIST : flags == BPF_EXIST ? -ENOENT : -E2BIG;
	s = s ?: room;
	if (value) {
		s->hash = jhash(key, map->key_size, 0);
		memcpy(toy_key(map, s), key, map->key_size);
		memcpy(s->value, value, map->value_size);
	}
	smp_store_release(&s->state, value ? TOY_USED : TOY_GONE); /* after key and value */
	return 0;
}

static long toy_delete(struct bpf_map *map, void *key)
{
	return toy_update(map, key, NULL, BPF_EXIST);
}

static int toy_next_key(struct bpf_map *map, void *key, void *next)
{
	struct toy_slot *room, *s = key ? toy_find(map, key, &room) : NULL;
	u64 size = toy_slot_size(map->key_size, map->value_size);

	s = s ? (void *)s + size : toy_slot(map, 0);
	while ((void *)s < toy_slot(map, map->max_entries) && READ_ONCE(s->state) != TOY_USED)
		s = (void *)s + size;
	if (s == toy_slot(map, map->max_entries))
		return -ENOENT;
	memcpy(next, toy_key(map, s), map->key_size);
	return 0;
}

static const struct bpf_modular_map_type toy_type = {
	.type = BPF_MAP_TYPE_MODULAR_LOCAL, .name = "toy",
	.ops = &(const struct bpf_map_ops) {
		.map_alloc		= toy_alloc,
		.map_free		= bpf_modular_map_free,
		.map_mem_usage		= toy_mem_usage,
		.map_lookup_elem	= toy_lookup,
		.map_update_elem	= toy_update,
		.map_delete_elem	= toy_delete,
		.map_get_next_key	= toy_next_key,
	},
	.prog_types = BIT_ULL(BPF_PROG_TYPE_XDP),
	.helpers = (const u16[]) { BPF_FUNC_map_lookup_elem, BPF_FUNC_map_update_elem,
				   BPF_FUNC_map_delete_elem, 0 },
	.cap = CAP_BPF, .flags = BPF_MODULAR_MAP_GENERIC,
};
module_bpf_modular_map(toy_type);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A BPF map type for tests");
MODULE_ALIAS("bpf-map-type-98304");
