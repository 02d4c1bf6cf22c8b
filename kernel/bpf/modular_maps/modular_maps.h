/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _MODULAR_MAPS_H
#define _MODULAR_MAPS_H

#include <linux/bpf.h>

/* As the syscall looks up: NULL or an ERR_PTR() if there is nothing. Under RCU */
static inline void *modular_map_lookup_sys(struct bpf_map *map, void *key)
{
	if (map->ops->map_lookup_elem_sys_only)
		return map->ops->map_lookup_elem_sys_only(map, key);
	return map->ops->map_lookup_elem(map, key);
}

int modular_map_lookup_and_delete(struct bpf_map *map, void *key, void *value,
				  u64 flags);
int modular_map_lookup_and_delete_batch(struct bpf_map *map,
					const union bpf_attr *attr,
					union bpf_attr __user *uattr);

extern const struct bpf_iter_seq_info modular_map_iter_seq_info;

#endif /* _MODULAR_MAPS_H */
