// SPDX-License-Identifier: GPL-2.0-only
/*
 * Operations of modular map types that are made of others, beside the kernel's
 * generic batches
 *
 * Look-up and delete is a look-up, then a delete. Of several who delete the same
 * element, those succeed whose delete did. What others change in between is not
 * in the copied value.
 *
 * A batch of look-up and delete takes the first key and those behind it, and begins
 * anew where there is none. What was looked up is gone, so the position that the
 * user hands in is not needed.
 */
#include <linux/bpf.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "modular_maps.h"

int modular_map_lookup_and_delete(struct bpf_map *map, void *key, void *value,
				  u64 flags)
{
	void *found;

	if (flags)
		return -EINVAL;
	found = modular_map_lookup_sys(map, key);
	if (IS_ERR_OR_NULL(found))
		return found ? PTR_ERR(found) : -ENOENT;
	memcpy(value, found, map->value_size);
	return map->ops->map_delete_elem(map, key);
}

/* @prev: the key before, or NULL */
static int modular_map_pop(struct bpf_map *map, void *prev, void *key, void *value)
{
	int err;

	bpf_disable_instrumentation();
	rcu_read_lock();
	do {
		err = map->ops->map_get_next_key(map, prev, key);
		if (err == -ENOENT && prev)
			err = map->ops->map_get_next_key(map, NULL, key);
		if (err)
			break;
		err = map->ops->map_lookup_and_delete_elem(map, key, value, 0);
		if (signal_pending(current) && err == -ENOENT)
			err = -EINTR;
	} while (err == -ENOENT); /* gone meanwhile */
	rcu_read_unlock();
	bpf_enable_instrumentation();
	return err;
}

int modular_map_lookup_and_delete_batch(struct bpf_map *map,
					const union bpf_attr *attr,
					union bpf_attr __user *uattr)
{
	void __user *values = u64_to_user_ptr(attr->batch.values);
	void __user *batch = u64_to_user_ptr(attr->batch.out_batch);
	void __user *keys = u64_to_user_ptr(attr->batch.keys);
	u32 count = attr->batch.count, n = 0;
	void *key, *value, *prev = NULL;
	int err = 0;

	if (attr->batch.elem_flags)
		return -EINVAL;
	if (!count)
		return 0;
	if (put_user(0, &uattr->batch.count))
		return -EFAULT;
	key = kvzalloc((size_t)2 * map->key_size + map->value_size, GFP_USER | __GFP_NOWARN);
	if (!key)
		return -ENOMEM;
	value = key + 2 * (size_t)map->key_size;

	for (; n < count; n++) {
		err = signal_pending(current) ? -EINTR : modular_map_pop(map, prev, key, value);
		if (err)
			break;
		if (copy_to_user(keys + (size_t)n * map->key_size, key, map->key_size) ||
		    copy_to_user(values + (size_t)n * map->value_size, value, map->value_size)) {
			err = -EFAULT;
			break;
		}
		prev = memcpy(key + map->key_size, key, map->key_size);
		cond_resched();
	}
	if (put_user(n, &uattr->batch.count) ||
	    (n && copy_to_user(batch, key, map->key_size)))
		err = -EFAULT;
	kvfree(key);
	return err;
}
