// SPDX-License-Identifier: GPL-2.0-only
/*
 * What programs do to a flowmap beside looking up, for tests/flowmap.py. Those
 * for XDP take a frame that is a key and return what came of it.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/bpf_flowmap.h>
#include <bpf/bpf_helpers.h>

#define CREDIT_PACKETS	5
#define CREDIT_BYTES	500

struct {
	__uint(type, BPF_MAP_TYPE_FLOWMAP);
	__type(key, struct bpf_flowmap_key);
	__type(value, struct bpf_flowmap_value);
	__uint(max_entries, 1024);
} flowmap SEC(".maps");

struct bpf_map;

struct wanted {
	__be16 port;
	__u32 entries;
};

static long each(struct bpf_map *map, struct bpf_flowmap_key *key,
		 struct bpf_flowmap_value *value, struct wanted *wanted)
{
	if (key->sport == wanted->port && value->dport == key->dport)
		wanted->entries++;
	return 0;
}

static long enough(struct bpf_map *map, struct bpf_flowmap_key *key,
		   struct bpf_flowmap_value *value, void *ctx)
{
	return 1;
}

static __always_inline bool read_key(struct xdp_md *ctx, struct bpf_flowmap_key *key)
{
	struct bpf_flowmap_key *frame = (void *)(long)ctx->data;

	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return false;
	*key = *frame;
	return true;
}

/* Return: entries whose source port is the key's */
SEC("xdp")
int count(struct xdp_md *ctx)
{
	struct bpf_flowmap_key key;
	struct wanted wanted = {};

	if (!read_key(ctx, &key))
		return -1;
	wanted.port = key.sport;
	bpf_for_each_map_elem(&flowmap, each, &wanted, 0);
	return wanted.entries;
}

/* Return: entries that it was called for, until it had enough */
SEC("xdp")
int stop(struct xdp_md *ctx)
{
	return bpf_for_each_map_elem(&flowmap, enough, NULL, 0);
}

SEC("xdp")
int delete(struct xdp_md *ctx)
{
	struct bpf_flowmap_key key;

	return read_key(ctx, &key) ? bpf_map_delete_elem(&flowmap, &key) : -1;
}

SEC("xdp")
int credit(struct xdp_md *ctx)
{
	struct bpf_flowmap_value value = { .packets = CREDIT_PACKETS, .bytes = CREDIT_BYTES };
	struct bpf_flowmap_key key;

	return read_key(ctx, &key) ?
	       bpf_map_update_elem(&flowmap, &key, &value, BPF_EXIST) : -1;
}

char _license[] SEC("license") = "GPL";
