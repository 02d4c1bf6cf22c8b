/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * BPF map types that modules register: Documentation/bpf/modular_maps.rst
 */
#ifndef _LINUX_BPF_MODULAR_MAPS_H
#define _LINUX_BPF_MODULAR_MAPS_H

#include <linux/bpf.h>
#include <linux/cleanup.h>
#include <linux/err.h>
#include <linux/module.h>
#include <uapi/linux/bpf_modular_maps.h>

struct bpf_verifier_env;
struct kmem_cache;

/* Changes whenever a module built for another version would misbehave */
#define BPF_MODULAR_MAP_ABI	1

/* bpf_modular_map_type.flags */
#define BPF_MODULAR_MAP_EXTRA		BIT(0) /* map_extra may be set */
#define BPF_MODULAR_MAP_VALUE_RDONLY	BIT(1) /* programs only read values */
#define BPF_MODULAR_MAP_SLEEPABLE	BIT(2) /* sleepable programs may use it */
#define BPF_MODULAR_MAP_GENERIC		BIT(3) /* make operations of others */

/**
 * struct bpf_modular_map_type - what a module tells of its map type
 * @type:       number, BPF_MAP_TYPE_MODULAR_MIN to _MAX
 * @name:       lower case letters, digits and '_', 15 at most
 * @ops:        operations: map_alloc, map_free and map_mem_usage are
 *              mandatory, of the rest those missing fail with -EOPNOTSUPP.
 *              map_meta_equal, map_btf_id and the operations of built-in
 *              types (redirect, queue, file descriptors, ...) must be NULL.
 * @prog_types: bit mask of enum bpf_prog_type: programs that may use a map
 * @helpers:    BPF_FUNC_* that take a map of the type, ended by 0: map look-up,
 *              update, delete and for_each_map_elem, each with its operation
 * @cap:        capability to create a map beside CAP_BPF, in the initial user
 *              namespace; CAP_BPF where that is all
 * @map_flags:  BPF_F_* that BPF_MAP_CREATE may set, beside BPF_F_RDONLY and
 *              BPF_F_WRONLY of the file descriptor
 * @flags:      BPF_MODULAR_MAP_*
 *
 * The structure, and all that it points to, must stay until
 * bpf_modular_map_unregister() has returned.
 */
struct bpf_modular_map_type {
	u32 type;
	const char *name;
	const struct bpf_map_ops *ops;
	u64 prog_types;
	const u16 *helpers;
	int cap;
	u32 map_flags;
	u32 flags;
};

struct bpf_modular_map;

struct bpf_modular_map *
__bpf_modular_map_register(const struct bpf_modular_map_type *type,
			   struct module *owner, u32 abi);
#define bpf_modular_map_register(type) \
	__bpf_modular_map_register(type, THIS_MODULE, BPF_MODULAR_MAP_ABI)
void bpf_modular_map_unregister(struct bpf_modular_map *modular);

/**
 * module_bpf_modular_map() - the whole init and exit of a module with one type
 * @__type: the struct bpf_modular_map_type
 *
 * For a module that has nothing else to set up, and whose map_free() puts
 * nothing off that runs the module's code.
 */
#define module_bpf_modular_map(__type)					\
static struct bpf_modular_map *__type##_modular;			\
static int __init __type##_init(void)					\
{									\
	__type##_modular = bpf_modular_map_register(&(__type));		\
	return PTR_ERR_OR_ZERO(__type##_modular);			\
}									\
module_init(__type##_init);						\
static void __exit __type##_exit(void)					\
{									\
	bpf_modular_map_unregister(__type##_modular);			\
}									\
module_exit(__type##_exit)

struct bpf_map *bpf_modular_map_alloc(union bpf_attr *attr, u64 size);
void bpf_modular_map_free(struct bpf_map *map);
void *bpf_modular_map_cache_alloc(const struct bpf_map *map,
				  struct kmem_cache *cache, gfp_t gfp);

static inline bool bpf_map_type_is_modular(u32 type)
{
	return IS_ENABLED(CONFIG_BPF_MODULAR_MAPS) &&
	       type >= BPF_MAP_TYPE_MODULAR_MIN &&
	       type <= BPF_MAP_TYPE_MODULAR_MAX;
}

static inline bool bpf_map_is_modular(const struct bpf_map *map)
{
	return bpf_map_type_is_modular(map->map_type);
}

/* For kernel/bpf/ only */
struct bpf_modular_map *bpf_modular_map_get(union bpf_attr *attr);
void __bpf_modular_map_put(struct bpf_modular_map *modular);
const struct bpf_map_ops *bpf_modular_map_ops(struct bpf_modular_map *modular);
struct bpf_modular_map *__bpf_map_modular(const struct bpf_map *map);
bool bpf_modular_map_value_rdonly(const struct bpf_map *map);
int bpf_modular_map_check_func(struct bpf_verifier_env *env,
			       const struct bpf_map *map, int func_id);
int bpf_modular_map_check_prog(struct bpf_verifier_env *env,
			       const struct bpf_map *map);

static inline void bpf_modular_map_put(struct bpf_modular_map *modular)
{
	if (!IS_ERR_OR_NULL(modular))
		__bpf_modular_map_put(modular);
}

DEFINE_FREE(bpf_modular_map_put, struct bpf_modular_map *, bpf_modular_map_put(_T))

/* The registration of a map, NULL for one of a built-in type */
static inline struct bpf_modular_map *bpf_map_modular(const struct bpf_map *map)
{
	return bpf_map_is_modular(map) ? __bpf_map_modular(map) : NULL;
}

#endif /* _LINUX_BPF_MODULAR_MAPS_H */
