/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _MODULAR_MAPS_H
#define _MODULAR_MAPS_H

#include <linux/bpf.h>

int modular_map_lookup_and_delete_batch(struct bpf_map *map,
					const union bpf_attr *attr,
					union bpf_attr __user *uattr);

extern const struct bpf_iter_seq_info modular_map_iter_seq_info;

#endif /* _MODULAR_MAPS_H */
