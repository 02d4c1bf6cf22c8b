/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of the loader share: the devices that xdp_ct is on, the options
 * of the command line, JSON
 */
#ifndef XDP_CT_H
#define XDP_CT_H

#include <linux/types.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdbool.h>

#include <bpf/bpf.h>
#include <json-c/json.h>
#include <linux/bpf_flowmap.h>

struct device {
	char	name[IF_NAMESIZE];
	int	ifindex;
	__u32	mode;		/* XDP_FLAGS_* of the program attached */
	__u32	prog_id;	/* 0: none */
	__u32	dispatcher;	/* libxdp's program, if it is that which is attached */
	char	prog_name[BPF_OBJ_NAME_LEN];
	bool	strict;		/* --strict-tcp */
	int	prog_fd;	/* -1, and so the maps, if it is not xdp_ct */
	int	flowmap_fd;
	struct bpf_map_info flowmap;
	int	stats_fd;
	int	windows_fd;	/* of --strict-tcp */
	int	new_fd;		/* what attach has loaded */
};

/* What flows are shown: of a connection as its client began it */
struct filter {
	__u8		family;		/* 0 and so on: any */
	__u8		proto;
	__u16		sport;
	__u16		dport;
	__u8		src_family;
	__u8		src_len;	/* bits of @src that count */
	__u8		dst_family;
	__u8		dst_len;
	union bpf_flowmap_addrs addr; /* each in the full length of IPv6 */
	int		ifindex;	/* in or out */
	bool		has_mark;
	__u32		mark;
	bool		has_zone;
	__u16		zone;
	bool		needs_stack;
};

struct options {
	char		**names;	/* devices */
	int		num_names;
	const char	*pin;
	__u32		mode;
	__u32		max_entries;
	bool		counters;
	bool		strict;
	bool		watch;
	bool		json;
	struct filter	filter;
};

extern struct options opt;

int error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
int map_info(int fd, struct bpf_map_info *info);

/* Those named, or, without names, those that xdp_ct is on */
int devices_open(struct device **devices, char **names, int num_names);
void devices_close(struct device *devices, int num);
void device_close(struct device *d);
/* Is the flowmap of @devices[i] that of one before? */
bool device_shares(const struct device *devices, int i);
const char *mode_name(__u32 mode);

void print_json(json_object *json);
void add_string(json_object *json, const char *name, const char *value);
void add_number(json_object *json, const char *name, __u64 value);
void add_bool(json_object *json, const char *name, bool value);

/* flows.c */
struct entry {
	struct bpf_flowmap_key		key;
	struct bpf_flowmap_value	value;
	bool				counters;
};

/* All flows, to be freed; their number, or -1. Of all devices that xdp_ct is on. */
int entries_get(const struct device *devices, int num_devices, struct entry **entries);
/* {"eth0": {"no_neigh": 2, ...}, ...}: by the device that they leave by */
json_object *entries_stack(const struct entry *entries, int num);
int flows(void);
int monitor(void);

/* stats.c */
int stats(void);

#endif /* XDP_CT_H */
