// SPDX-License-Identifier: GPL-2.0-only
/*
 * BPF map types that modules register
 *
 * A registration is a struct bpf_modular_map. It holds a copy of the type's
 * operations in which nothing that the syscall or the verifier calls unasked
 * is NULL, and this copy is what map->ops of the type's maps points to. So a
 * map leads to its registration by container_of(), and no list is searched
 * once a map is there.
 *
 * Life: a map owns a reference on the module and one on the registration,
 * taken before map_alloc() and given back after map_free(), which runs from
 * a work queue, after the last user is gone, or from map_create(), if that
 * fails after map_alloc(). Programs, pins, links and file
 * descriptors hold the map. A registration is a kobject: its last reference
 * is put by bpf_modular_map_unregister(), by the last map, or by the last
 * reader of its files in sysfs.
 *
 * Locking: modular_maps_mutex guards the list of registrations. It is held
 * neither while a module is loaded nor while one of its operations runs.
 *
 * Map-in-map is refused: the outer map would keep a copy of the inner map's
 * operations without a reference on its module. The types have no
 * map_meta_equal(), and bpf_map_meta_alloc() fails without it.
 */
#include <linux/bpf.h>
#include <linux/bpf_modular_maps.h>
#include <linux/bpf_verifier.h>
#include <linux/btf_ids.h>
#include <linux/capability.h>
#include <linux/ctype.h>
#include <linux/kmod.h>
#include <linux/kobject.h>
#include <linux/memcontrol.h>
#include <linux/mutex.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/sysfs.h>

#include "../disasm.h"
#include "modular_maps.h"

#define BPF_MODULAR_MAP_FLAGS	(BPF_MODULAR_MAP_EXTRA |	\
				 BPF_MODULAR_MAP_VALUE_RDONLY |	\
				 BPF_MODULAR_MAP_SLEEPABLE |	\
				 BPF_MODULAR_MAP_GENERIC)

struct bpf_modular_map {
	struct bpf_map_ops ops;
	const struct bpf_modular_map_type *type;
	struct module *owner;
	struct kobject kobj;
	struct list_head list;
	atomic_t maps;
};

static DEFINE_MUTEX(modular_maps_mutex);
static LIST_HEAD(modular_maps);
static struct kset *modular_maps_kset;

/* Programs read the fields that all maps have, by vmlinux's BTF */
BTF_ID_LIST_SINGLE(modular_map_btf_id, struct, bpf_map)

/* Operations that a type lacks */

static void *modular_map_no_lookup(struct bpf_map *map, void *key)
{
	return NULL;
}

static void *modular_map_no_lookup_sys(struct bpf_map *map, void *key)
{
	return ERR_PTR(-EOPNOTSUPP);
}

static int modular_map_no_lookup_and_delete(struct bpf_map *map, void *key,
					    void *value, u64 flags)
{
	return -EOPNOTSUPP;
}

static long modular_map_no_update(struct bpf_map *map, void *key, void *value,
				  u64 flags)
{
	return -EOPNOTSUPP;
}

static long modular_map_no_delete(struct bpf_map *map, void *key)
{
	return -EOPNOTSUPP;
}

static int modular_map_no_next_key(struct bpf_map *map, void *key, void *next)
{
	return -EOPNOTSUPP;
}

static int modular_map_no_batch(struct bpf_map *map, const union bpf_attr *attr,
				union bpf_attr __user *uattr)
{
	return -EOPNOTSUPP;
}

static int modular_map_no_update_batch(struct bpf_map *map, struct file *map_file,
				       const union bpf_attr *attr,
				       union bpf_attr __user *uattr)
{
	return -EOPNOTSUPP;
}

static int modular_map_no_mmap(struct bpf_map *map, struct vm_area_struct *vma)
{
	return -EOPNOTSUPP;
}

static void modular_map_fill_generic(struct bpf_map_ops *ops)
{
	if (ops->map_lookup_elem && ops->map_delete_elem &&
	    !ops->map_lookup_and_delete_elem)
		ops->map_lookup_and_delete_elem = modular_map_lookup_and_delete;
	if (ops->map_get_next_key && !ops->map_lookup_batch)
		ops->map_lookup_batch = generic_map_lookup_batch;
	if (ops->map_update_elem && !ops->map_update_batch)
		ops->map_update_batch = generic_map_update_batch;
	if (ops->map_delete_elem && !ops->map_delete_batch)
		ops->map_delete_batch = generic_map_delete_batch;
	if (ops->map_get_next_key && ops->map_lookup_and_delete_elem &&
	    !ops->map_lookup_and_delete_batch)
		ops->map_lookup_and_delete_batch = modular_map_lookup_and_delete_batch;
}

static void modular_map_fill_ops(struct bpf_map_ops *ops, u32 flags)
{
	if (flags & BPF_MODULAR_MAP_GENERIC)
		modular_map_fill_generic(ops);
	if (ops->map_for_each_callback)
		ops->map_set_for_each_callback_args = map_set_for_each_callback_args;
	if (!ops->map_lookup_elem && !ops->map_lookup_elem_sys_only)
		ops->map_lookup_elem_sys_only = modular_map_no_lookup_sys;
	if (!ops->map_lookup_elem)
		ops->map_lookup_elem = modular_map_no_lookup;
	if (!ops->map_lookup_and_delete_elem)
		ops->map_lookup_and_delete_elem = modular_map_no_lookup_and_delete;
	if (!ops->map_update_elem)
		ops->map_update_elem = modular_map_no_update;
	if (!ops->map_delete_elem)
		ops->map_delete_elem = modular_map_no_delete;
	if (!ops->map_get_next_key)
		ops->map_get_next_key = modular_map_no_next_key;
	if (!ops->map_lookup_batch)
		ops->map_lookup_batch = modular_map_no_batch;
	if (!ops->map_lookup_and_delete_batch)
		ops->map_lookup_and_delete_batch = modular_map_no_batch;
	if (!ops->map_update_batch)
		ops->map_update_batch = modular_map_no_update_batch;
	if (!ops->map_delete_batch)
		ops->map_delete_batch = modular_map_no_batch;
	if (!ops->map_mmap)
		ops->map_mmap = modular_map_no_mmap;
	if (!ops->iter_seq_info)
		ops->iter_seq_info = &modular_map_iter_seq_info;
	ops->map_btf_id = modular_map_btf_id;
}

/* Registration */

/* The verifier turns a helper into a call with a 32 bit displacement */
static bool modular_map_in_reach(const void *func)
{
	s64 distance = (s64)(unsigned long)func - (s64)(unsigned long)__bpf_call_base;

	return !func || distance == (s32)distance;
}

static bool modular_map_has_foreign_ops(const struct bpf_map_ops *ops)
{
	return ops->map_meta_equal || ops->map_btf_id || ops->map_redirect ||
	       ops->map_push_elem || ops->map_pop_elem || ops->map_peek_elem ||
	       ops->map_lookup_percpu_elem || ops->map_fd_get_ptr ||
	       ops->map_fd_put_ptr || ops->map_fd_sys_lookup_elem ||
	       ops->map_poke_track || ops->map_poke_untrack ||
	       ops->map_poke_run || ops->map_direct_value_addr ||
	       ops->map_direct_value_meta || ops->map_local_storage_charge ||
	       ops->map_local_storage_uncharge || ops->map_owner_storage_ptr ||
	       ops->map_set_for_each_callback_args;
}

static int modular_map_check_ops(const struct bpf_map_ops *ops)
{
	if (!ops || !ops->map_alloc || !ops->map_free || !ops->map_mem_usage)
		return -EINVAL;
	if (modular_map_has_foreign_ops(ops))
		return -EINVAL;
	if (!modular_map_in_reach(ops->map_lookup_elem) ||
	    !modular_map_in_reach(ops->map_update_elem) ||
	    !modular_map_in_reach(ops->map_delete_elem) ||
	    !modular_map_in_reach(ops->map_for_each_callback))
		return -ERANGE;
	return 0;
}

static int modular_map_check_helpers(const struct bpf_modular_map_type *type)
{
	const struct bpf_map_ops *ops = type->ops;
	const u16 *func;

	if (!type->helpers)
		return -EINVAL;

	for (func = type->helpers; *func; func++) {
		const void *op = NULL;

		switch (*func) {
		case BPF_FUNC_map_lookup_elem:
			op = ops->map_lookup_elem;
			break;
		case BPF_FUNC_map_update_elem:
			op = ops->map_update_elem;
			break;
		case BPF_FUNC_map_delete_elem:
			op = ops->map_delete_elem;
			break;
		case BPF_FUNC_for_each_map_elem:
			op = ops->map_for_each_callback;
			break;
		}
		if (!op)
			return -EINVAL;
	}
	return 0;
}

static bool modular_map_name_ok(const char *name)
{
	const char *p;

	if (!name || !*name || strnlen(name, BPF_OBJ_NAME_LEN) == BPF_OBJ_NAME_LEN)
		return false;
	for (p = name; *p; p++)
		if (!islower(*p) && !isdigit(*p) && *p != '_')
			return false;
	return true;
}

static int modular_map_check_type(const struct bpf_modular_map_type *type, u32 abi)
{
	int err;

	if (abi != BPF_MODULAR_MAP_ABI)
		return -ENOEXEC;
	if (!type || !bpf_map_type_is_modular(type->type))
		return -ERANGE;
	if (!modular_map_name_ok(type->name))
		return -EINVAL;
	if (!cap_valid(type->cap) || type->flags & ~BPF_MODULAR_MAP_FLAGS)
		return -EINVAL;
	/* what goes with other types, or with the file descriptor */
	if (type->map_flags & (BPF_F_RDONLY | BPF_F_WRONLY | BPF_F_TOKEN_FD |
			       BPF_F_MMAPABLE | BPF_F_INNER_MAP))
		return -EINVAL;

	err = modular_map_check_ops(type->ops);
	if (err)
		return err;
	if (type->ops->map_mmap && type->flags & BPF_MODULAR_MAP_VALUE_RDONLY)
		return -EINVAL;
	return modular_map_check_helpers(type);
}

static struct bpf_modular_map *modular_map_find(u32 type, const char *name)
{
	struct bpf_modular_map *modular;

	lockdep_assert_held(&modular_maps_mutex);
	list_for_each_entry(modular, &modular_maps, list)
		if (modular->type->type == type ||
		    (name && !strcmp(modular->type->name, name)))
			return modular;
	return NULL;
}

static const struct kobj_type modular_map_ktype;

/**
 * __bpf_modular_map_register() - let a module add a BPF map type
 * @type:  the type; must stay until bpf_modular_map_unregister() has returned
 * @owner: the module, THIS_MODULE
 * @abi:   BPF_MODULAR_MAP_ABI as the module was built with
 *
 * Call it by bpf_modular_map_register(), last in the module's init function:
 * from here on there may be maps, and nothing may fail any more.
 *
 * Context: process, may sleep.
 * Return: what to hand to bpf_modular_map_unregister(), or an ERR_PTR():
 * -ENOEXEC for another ABI version, -ERANGE for a number outside of the range
 * or operations too far away to be called, -EEXIST for a number or name that
 * is taken, -EINVAL for a malformed name, a capability or flags that do not
 * exist, a mandatory operation that is missing, one that modular types must
 * not have, or a helper without its operation, -ENOMEM.
 */
struct bpf_modular_map *
__bpf_modular_map_register(const struct bpf_modular_map_type *type,
			   struct module *owner, u32 abi)
{
	struct bpf_modular_map *modular;
	int err;

	err = modular_map_check_type(type, abi);
	if (err)
		return ERR_PTR(err);

	modular = kzalloc(sizeof(*modular), GFP_KERNEL);
	if (!modular)
		return ERR_PTR(-ENOMEM);
	modular->ops = *type->ops;
	modular_map_fill_ops(&modular->ops, type->flags);
	modular->type = type;
	modular->owner = owner;
	modular->kobj.kset = modular_maps_kset;
	kobject_init(&modular->kobj, &modular_map_ktype);

	mutex_lock(&modular_maps_mutex);
	if (modular_map_find(type->type, type->name))
		err = -EEXIST;
	else
		err = kobject_add(&modular->kobj, NULL, "%s", type->name);
	if (!err)
		list_add(&modular->list, &modular_maps);
	mutex_unlock(&modular_maps_mutex);

	if (err) {
		kobject_put(&modular->kobj);
		return ERR_PTR(err);
	}
	return modular;
}
EXPORT_SYMBOL_GPL(__bpf_modular_map_register);

/**
 * bpf_modular_map_unregister() - take a BPF map type away
 * @modular: what bpf_modular_map_register() returned
 *
 * Call it first in the module's exit function, where no map is left because
 * each keeps the module. No map is created after it has returned; what the
 * module's map_free() has put off (RCU callbacks) is the module's to wait for.
 *
 * Context: process, may sleep.
 */
void bpf_modular_map_unregister(struct bpf_modular_map *modular)
{
	mutex_lock(&modular_maps_mutex);
	list_del(&modular->list);
	/* waits for readers of the files, which use modular->type */
	kobject_del(&modular->kobj);
	mutex_unlock(&modular_maps_mutex);
	kobject_put(&modular->kobj);
}
EXPORT_SYMBOL_GPL(bpf_modular_map_unregister);

/**
 * bpf_modular_map_alloc() - allocate a map, in map_alloc()
 * @attr: what map_alloc() was given
 * @size: of the type's own structure, of which struct bpf_map is the first
 *        member
 *
 * Zeroed but for struct bpf_map. Free with bpf_modular_map_free().
 *
 * Context: process, may sleep.
 * Return: the map, or ERR_PTR(-ENOMEM).
 */
struct bpf_map *bpf_modular_map_alloc(union bpf_attr *attr, u64 size)
{
	struct bpf_map *map = bpf_map_area_alloc(size, bpf_map_attr_numa_node(attr));

	if (!map)
		return ERR_PTR(-ENOMEM);
	bpf_map_init_from_attr(map, attr);
	return map;
}
EXPORT_SYMBOL_GPL(bpf_modular_map_alloc);

/**
 * bpf_modular_map_free() - free a map
 * @map: what bpf_modular_map_alloc() returned
 *
 * As map_free(), if the map has nothing else, or called at its end.
 *
 * Context: process, may sleep.
 */
void bpf_modular_map_free(struct bpf_map *map)
{
#ifdef CONFIG_MEMCG
	obj_cgroup_put(map->objcg);
#endif
	bpf_map_area_free(map);
}
EXPORT_SYMBOL_GPL(bpf_modular_map_free);

/**
 * bpf_modular_map_cache_alloc() - allocate an object of a map
 * @map:   the map
 * @cache: where from
 * @gfp:   how
 *
 * What a map allocates after it was created is charged to the memory cgroup
 * of its creator, not to whoever happens to run. Free with kmem_cache_free().
 *
 * Context: any that @gfp allows.
 * Return: the object, or NULL.
 */
void *bpf_modular_map_cache_alloc(const struct bpf_map *map,
				  struct kmem_cache *cache, gfp_t gfp)
{
#ifdef CONFIG_MEMCG
	struct mem_cgroup *memcg, *old_memcg;
	void *obj;

	if (map->objcg) {
		memcg = get_mem_cgroup_from_objcg(map->objcg);
		old_memcg = set_active_memcg(memcg);
		obj = kmem_cache_alloc(cache, gfp | __GFP_ACCOUNT);
		set_active_memcg(old_memcg);
		mem_cgroup_put(memcg);
		return obj;
	}
#endif
	/* in map_alloc() the creator runs; later, without a cgroup, it is the root's */
	if (!READ_ONCE(map->ops))
		gfp = bpf_memcg_flags(gfp);
	return kmem_cache_alloc(cache, gfp);
}
EXPORT_SYMBOL_GPL(bpf_modular_map_cache_alloc);

/* What the syscall calls */

static struct bpf_modular_map *modular_map_tryget(u32 type)
{
	struct bpf_modular_map *modular;

	mutex_lock(&modular_maps_mutex);
	modular = modular_map_find(type, NULL);
	if (modular) {
		if (try_module_get(modular->owner)) {
			kobject_get(&modular->kobj);
			atomic_inc(&modular->maps);
		} else {
			modular = NULL;
		}
	}
	mutex_unlock(&modular_maps_mutex);
	return modular;
}

static int modular_map_check_attr(const struct bpf_modular_map_type *type,
				  const union bpf_attr *attr)
{
	if (type->cap != CAP_BPF && !bpf_token_capable(NULL, type->cap))
		return -EPERM;
	if (attr->map_flags & ~(type->map_flags | BPF_F_RDONLY | BPF_F_WRONLY))
		return -EINVAL;
	if (!bpf_map_flags_access_ok(attr->map_flags))
		return -EINVAL;
	if (!attr->key_size || !attr->value_size || !attr->max_entries)
		return -EINVAL;
	/* the syscall copies them, and warns of what no allocation could hold */
	if ((u64)attr->key_size + attr->value_size > KMALLOC_MAX_SIZE)
		return -E2BIG;
	if (attr->map_extra && !(type->flags & BPF_MODULAR_MAP_EXTRA))
		return -EINVAL;
	return attr->map_ifindex ? -EINVAL : 0;
}

/* The registration for a new map, its module loaded if need be. A BPF token
 * grants nothing here: the types that it names are those of the enum.
 * Return: a reference for bpf_modular_map_put(); -EPERM for who lacks CAP_BPF
 * (and so loads no module) or the type's own capability; -EINVAL for a type
 * that there is not, or for attributes that it does not take; -E2BIG for keys
 * and values that are too large for any type.
 */
struct bpf_modular_map *bpf_modular_map_get(union bpf_attr *attr)
{
	struct bpf_modular_map *modular;
	int err;

	if (!bpf_capable())
		return ERR_PTR(-EPERM);

	modular = modular_map_tryget(attr->map_type);
	if (!modular) {
		request_module("bpf-map-type-%u", attr->map_type);
		modular = modular_map_tryget(attr->map_type);
		if (!modular)
			return ERR_PTR(-EINVAL);
	}
	err = modular_map_check_attr(modular->type, attr);
	if (err) {
		bpf_modular_map_put(modular);
		return ERR_PTR(err);
	}
	return modular;
}

void __bpf_modular_map_put(struct bpf_modular_map *modular)
{
	struct module *owner = modular->owner;

	atomic_dec(&modular->maps);
	kobject_put(&modular->kobj);
	module_put(owner);
}

const struct bpf_map_ops *bpf_modular_map_ops(struct bpf_modular_map *modular)
{
	return &modular->ops;
}

struct bpf_modular_map *__bpf_map_modular(const struct bpf_map *map)
{
	return container_of(map->ops, struct bpf_modular_map, ops);
}

/* What the verifier calls */

bool bpf_modular_map_value_rdonly(const struct bpf_map *map)
{
	return bpf_map_modular(map)->type->flags & BPF_MODULAR_MAP_VALUE_RDONLY;
}

int bpf_modular_map_check_func(struct bpf_verifier_env *env,
			       const struct bpf_map *map, int func_id)
{
	const struct bpf_modular_map_type *type = bpf_map_modular(map)->type;
	const u16 *func;

	for (func = type->helpers; *func; func++)
		if (*func == func_id)
			return 0;

	bpf_log(&env->log, "map type %s does not support helper %s#%d\n",
		type->name, func_id_name(func_id), func_id);
	return -EINVAL;
}

/* A program that extends another counts as what it extends. Maps are checked
 * before saved_dst_prog_type is there for resolve_prog_type().
 */
static enum bpf_prog_type modular_map_prog_type(const struct bpf_prog *prog)
{
	if (prog->type == BPF_PROG_TYPE_EXT && prog->aux->dst_prog)
		return prog->aux->dst_prog->type;
	return resolve_prog_type(prog);
}

int bpf_modular_map_check_prog(struct bpf_verifier_env *env,
			       const struct bpf_map *map)
{
	const struct bpf_modular_map_type *type = bpf_map_modular(map)->type;
	enum bpf_prog_type prog_type = modular_map_prog_type(env->prog);

	if (prog_type >= 64 || !(type->prog_types & BIT_ULL(prog_type))) {
		bpf_log(&env->log, "map type %s cannot be used by program type %d\n",
			type->name, prog_type);
		return -EINVAL;
	}
	if (env->prog->sleepable && !(type->flags & BPF_MODULAR_MAP_SLEEPABLE)) {
		bpf_log(&env->log, "map type %s cannot be used by sleepable programs\n",
			type->name);
		return -EINVAL;
	}
	return 0;
}

/* /sys/kernel/bpf/modular_maps/<name>/ */

static struct bpf_modular_map *to_modular(struct kobject *kobj)
{
	return container_of(kobj, struct bpf_modular_map, kobj);
}

static ssize_t type_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", to_modular(kobj)->type->type);
}

static ssize_t module_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%s\n", module_name(to_modular(kobj)->owner));
}

static ssize_t maps_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%d\n", atomic_read(&to_modular(kobj)->maps));
}

static ssize_t helpers_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	const u16 *func;
	int at = 0;

	for (func = to_modular(kobj)->type->helpers; *func; func++)
		at += sysfs_emit_at(buf, at, "%s\n", func_id_name(*func));
	return at;
}

static ssize_t prog_types_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	u64 types = to_modular(kobj)->type->prog_types;
	int at = 0, i;

	for (i = 0; i < 64; i++)
		if (types & BIT_ULL(i))
			at += sysfs_emit_at(buf, at, "%d\n", i);
	return at;
}

static struct kobj_attribute type_attr = __ATTR_RO(type);
static struct kobj_attribute module_attr = __ATTR_RO(module);
static struct kobj_attribute maps_attr = __ATTR_RO(maps);
static struct kobj_attribute helpers_attr = __ATTR_RO(helpers);
static struct kobj_attribute prog_types_attr = __ATTR_RO(prog_types);

static struct attribute *modular_map_attrs[] = {
	&type_attr.attr,
	&module_attr.attr,
	&maps_attr.attr,
	&helpers_attr.attr,
	&prog_types_attr.attr,
	NULL
};
ATTRIBUTE_GROUPS(modular_map);

static void modular_map_release(struct kobject *kobj)
{
	kfree(to_modular(kobj));
}

static const struct kobj_type modular_map_ktype = {
	.sysfs_ops	= &kobj_sysfs_ops,
	.default_groups	= modular_map_groups,
	.release	= modular_map_release,
};

static int __init modular_maps_init(void)
{
	struct kobject *bpf = kobject_create_and_add("bpf", kernel_kobj);

	if (!bpf)
		return -ENOMEM;
	modular_maps_kset = kset_create_and_add("modular_maps", NULL, bpf);
	kobject_put(bpf);
	return modular_maps_kset ? 0 : -ENOMEM;
}
subsys_initcall(modular_maps_init);
