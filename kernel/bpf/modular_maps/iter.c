// SPDX-License-Identifier: GPL-2.0-only
/*
 * Iterator programs (bpf_map_elem) over maps of modular types
 *
 * Made of the type's next key and look-up, so that each type has it. The
 * program gets copies: it may write to them whether or not the type lets
 * programs write to its values, and no lock or RCU read section is held
 * between two elements.
 */
#include <linux/bpf.h>
#include <linux/bpf_modular_maps.h>
#include <linux/seq_file.h>
#include <linux/slab.h>

#include "modular_maps.h"

/**
 * struct modular_map_iter - where an iteration is
 * @map:     the map, with a user's reference
 * @key:     key of the current element
 * @prev:    room for the key before
 * @value:   value of the current element
 * @started: @key is that of an element
 * @end:     why there is no current element, an errno; 0: there is one
 */
struct modular_map_iter {
	struct bpf_map *map;
	void *key;
	void *prev;
	void *value;
	bool started;
	int end;
};

static void *modular_map_iter_advance(struct modular_map_iter *iter)
{
	void *value;

	rcu_read_lock();
	for (;;) {
		swap(iter->key, iter->prev);
		iter->end = iter->map->ops->map_get_next_key(iter->map,
							     iter->started ? iter->prev : NULL,
							     iter->key);
		if (iter->end)
			break;
		iter->started = true;
		value = modular_map_lookup_sys(iter->map, iter->key);
		if (IS_ERR_OR_NULL(value))
			continue; /* has gone meanwhile */
		memcpy(iter->value, value, iter->map->value_size);
		break;
	}
	rcu_read_unlock();
	if (iter->end)
		return iter->end == -ENOENT ? NULL : ERR_PTR(iter->end);
	return iter->value;
}

static void *modular_map_iter_start(struct seq_file *seq, loff_t *pos)
{
	struct modular_map_iter *iter = seq->private;

	if (iter->end)
		return NULL;
	if (*pos == 0)
		++*pos;
	return iter->started ? iter->value : modular_map_iter_advance(iter);
}

static void *modular_map_iter_next(struct seq_file *seq, void *v, loff_t *pos)
{
	++*pos;
	return modular_map_iter_advance(seq->private);
}

static int modular_map_iter_show(struct seq_file *seq, void *v)
{
	struct modular_map_iter *iter = seq->private;
	struct bpf_iter__bpf_map_elem ctx = {};
	struct bpf_iter_meta meta;
	struct bpf_prog *prog;

	meta.seq = seq;
	prog = bpf_iter_get_info(&meta, !v);
	if (!prog)
		return 0;
	ctx.meta = &meta;
	ctx.map = iter->map;
	ctx.key = v ? iter->key : NULL;
	ctx.value = v;
	return bpf_iter_run_prog(prog, &ctx);
}

static void modular_map_iter_stop(struct seq_file *seq, void *v)
{
	if (!v)
		modular_map_iter_show(seq, NULL);
}

static const struct seq_operations modular_map_iter_ops = {
	.start	= modular_map_iter_start,
	.next	= modular_map_iter_next,
	.stop	= modular_map_iter_stop,
	.show	= modular_map_iter_show,
};

static int modular_map_iter_init(void *priv, struct bpf_iter_aux_info *aux)
{
	struct modular_map_iter *iter = priv;
	struct bpf_map *map = aux->map;

	size_t value_size = ALIGN((size_t)map->value_size, sizeof(u64));
	size_t key_size = ALIGN((size_t)map->key_size, sizeof(u64));

	iter->value = kvzalloc(value_size + 2 * key_size, GFP_USER | __GFP_NOWARN);
	if (!iter->value)
		return -ENOMEM;
	iter->key = iter->value + value_size;
	iter->prev = iter->key + key_size;
	/* the link's reference may go while the file is still open */
	bpf_map_inc_with_uref(map);
	iter->map = map;
	return 0;
}

static void modular_map_iter_fini(void *priv)
{
	struct modular_map_iter *iter = priv;

	bpf_map_put_with_uref(iter->map);
	kvfree(iter->value);
}

const struct bpf_iter_seq_info modular_map_iter_seq_info = {
	.seq_ops		= &modular_map_iter_ops,
	.init_seq_private	= modular_map_iter_init,
	.fini_seq_private	= modular_map_iter_fini,
	.seq_priv_size		= sizeof(struct modular_map_iter),
};
