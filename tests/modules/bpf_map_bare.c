// SPDX-License-Identifier: GPL-2.0-only
/*
 * A map type that can do nothing: the mandatory operations and no more. By
 * parameters it is made wrong in one way or another; what registration says
 * of it is what insmod fails with.
 */
#include <linux/bpf_modular_maps.h>

static uint type = BPF_MAP_TYPE_MODULAR_LOCAL + 1;
module_param(type, uint, 0);
static char *name = "bare";
module_param(name, charp, 0);
static uint abi = BPF_MODULAR_MAP_ABI;
module_param(abi, uint, 0);
static int cap = CAP_BPF;
module_param(cap, int, 0);
static uint map_flags;
module_param(map_flags, uint, 0);
static uint flags;
module_param(flags, uint, 0);
static ushort helpers[2];
module_param_array(helpers, ushort, NULL, 0);
static bool no_alloc, no_free, no_mem_usage, no_helpers, redirect, fail;
module_param(no_alloc, bool, 0);
module_param(no_free, bool, 0);
module_param(no_mem_usage, bool, 0);
module_param(no_helpers, bool, 0);
module_param(redirect, bool, 0); /* an operation of built-in types */
module_param(fail, bool, 0); /* map_alloc() fails */

static struct bpf_map *bare_alloc(union bpf_attr *attr)
{
	return fail ? ERR_PTR(-ENOMEM) : bpf_modular_map_alloc(attr, sizeof(struct bpf_map));
}

static u64 bare_mem_usage(const struct bpf_map *map)
{
	return sizeof(*map);
}

static long bare_redirect(struct bpf_map *map, u64 key, u64 redirect_flags)
{
	return -EINVAL;
}

static struct bpf_map_ops bare_ops;
static struct bpf_modular_map_type bare_type;
static struct bpf_modular_map *bare_modular;

static int __init bare_init(void)
{
	bare_ops.map_alloc = no_alloc ? NULL : bare_alloc;
	bare_ops.map_free = no_free ? NULL : bpf_modular_map_free;
	bare_ops.map_mem_usage = no_mem_usage ? NULL : bare_mem_usage;
	bare_ops.map_redirect = redirect ? bare_redirect : NULL;
	bare_type = (struct bpf_modular_map_type) {
		.type		= type,
		.name		= name,
		.ops		= &bare_ops,
		.prog_types	= BIT_ULL(BPF_PROG_TYPE_XDP) | BIT_ULL(BPF_PROG_TYPE_SYSCALL),
		.helpers	= no_helpers ? NULL : helpers,
		.cap		= cap,
		.map_flags	= map_flags,
		.flags		= flags,
	};
	bare_modular = __bpf_modular_map_register(&bare_type, THIS_MODULE, abi);
	return PTR_ERR_OR_ZERO(bare_modular);
}

static void __exit bare_exit(void)
{
	bpf_modular_map_unregister(bare_modular);
}

module_init(bare_init);
module_exit(bare_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A BPF map type that can do nothing, or is wrong");
