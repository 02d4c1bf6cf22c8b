// SPDX-License-Identifier: GPL-2.0-only
/*
 * Put xdp_ct.bpf.o on devices, take it off, and show what it does
 *
 * All state is in the kernel: a device has the program, the program holds its
 * maps, and whatever runs later finds them from there. Each device has a
 * program of its own, with its address and mode as constants, and a map of
 * counters; the flowmap is one for all devices of the network namespace.
 */
#include <argp.h>
#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <linux/ethtool.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <json-c/json.h>
#include <linux/bpf_flowmap.h>

#include "xdp_ct.skel.h"

#define MODULE		"nf_flow_table_bpf_flowmap"
#define MODULAR_MAPS	"/sys/kernel/bpf/modular_maps"
#define STATS_MAP	"xdp_ct_stats"

struct device {
	char	name[IF_NAMESIZE];
	int	ifindex;
	__u32	mode;		/* XDP_FLAGS_* of the program attached */
	__u32	prog_id;	/* 0: none */
	char	prog_name[BPF_OBJ_NAME_LEN];
	int	prog_fd;	/* -1, and so the maps, if it is not xdp_ct */
	int	flowmap_fd;
	int	stats_fd;
	int	new_fd;		/* what attach has loaded */
};

struct count {			/* as in xdp_ct.bpf.c */
	__u64	packets;
	__u64	bytes;
};

static struct {
	const char	*command;
	char		**names;
	int		num_names;
	const char	*pin;
	__u32		mode;
	__u32		max_entries;
	bool		counters;
	bool		watch;
	bool		json;
} opt = { .mode = XDP_FLAGS_DRV_MODE };

/* libbpf says more than its return values: kept for when it is needed */
static char libbpf_text[4096], netlink_text[256];

static int keep_libbpf_text(enum libbpf_print_level level, const char *fmt, va_list args)
{
	static const char netlink[] = "Kernel error message: ";
	size_t len = strlen(libbpf_text);
	char *at;

	if (level != LIBBPF_WARN)
		return 0;
	vsnprintf(libbpf_text + len, sizeof(libbpf_text) - len, fmt, args);
	at = strstr(libbpf_text + len, netlink);
	if (at)
		snprintf(netlink_text, sizeof(netlink_text), "%s", at + strlen(netlink));
	netlink_text[strcspn(netlink_text, "\n")] = 0;
	return 0;
}

static int error(const char *fmt, ...)
{
	va_list args;

	fputs("xdp_ct: ", stderr);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	return -1;
}

static int error_perm(void)
{
	return error("not permitted: run as root");
}

static int map_info(int fd, struct bpf_map_info *info)
{
	__u32 len = sizeof(*info);

	memset(info, 0, sizeof(*info));
	return bpf_obj_get_info_by_fd(fd, info, &len);
}

/* Devices and what is on them */

static void device_close(struct device *d)
{
	int *fd[] = { &d->prog_fd, &d->flowmap_fd, &d->stats_fd, &d->new_fd };
	size_t i;

	for (i = 0; i < sizeof(fd) / sizeof(*fd); i++) {
		if (*fd[i] >= 0)
			close(*fd[i]);
		*fd[i] = -1;
	}
}

/* It is xdp_ct if it is called so and has our two maps */
static int device_open_prog(struct device *d)
{
	struct bpf_prog_info info = {};
	__u32 len = sizeof(info), i;
	struct bpf_map_info map;
	__u32 ids[16];
	int fd;

	d->prog_fd = bpf_prog_get_fd_by_id(d->prog_id);
	if (d->prog_fd < 0)
		return errno == EPERM ? error_perm() :
		       error("%s: program %u: %s", d->name, d->prog_id, strerror(errno));

	info.map_ids = (unsigned long)ids;
	info.nr_map_ids = sizeof(ids) / sizeof(*ids);
	if (bpf_obj_get_info_by_fd(d->prog_fd, &info, &len))
		return error("%s: program %u: %s", d->name, d->prog_id, strerror(errno));
	memcpy(d->prog_name, info.name, sizeof(d->prog_name));

	for (i = 0; i < info.nr_map_ids && i < sizeof(ids) / sizeof(*ids); i++) {
		fd = bpf_map_get_fd_by_id(ids[i]);
		if (fd >= 0 && !map_info(fd, &map)) {
			if (map.type == BPF_MAP_TYPE_FLOWMAP && d->flowmap_fd < 0) {
				d->flowmap_fd = fd;
				continue;
			}
			if (!strcmp(map.name, STATS_MAP) && d->stats_fd < 0) {
				d->stats_fd = fd;
				continue;
			}
		}
		if (fd >= 0)
			close(fd);
	}
	if (strcmp(d->prog_name, "xdp_ct") || d->flowmap_fd < 0 || d->stats_fd < 0)
		device_close(d);
	return 0;
}

static int device_open(struct device *d, const char *name)
{
	LIBBPF_OPTS(bpf_xdp_query_opts, query);
	int err;

	memset(d, 0, sizeof(*d));
	d->prog_fd = -1;
	d->flowmap_fd = -1;
	d->stats_fd = -1;
	d->new_fd = -1;
	snprintf(d->name, sizeof(d->name), "%s", name);
	d->ifindex = if_nametoindex(name);
	if (!d->ifindex)
		return error("%s: no such device in this network namespace: see ip link", name);

	err = bpf_xdp_query(d->ifindex, 0, &query);
	if (err)
		return error("%s: %s", name, strerror(-err));
	d->prog_id = query.prog_id;
	if (query.attach_mode == XDP_ATTACHED_SKB)
		d->mode = XDP_FLAGS_SKB_MODE;
	else if (query.attach_mode == XDP_ATTACHED_HW)
		d->mode = XDP_FLAGS_HW_MODE;
	else if (query.attach_mode == XDP_ATTACHED_DRV)
		d->mode = XDP_FLAGS_DRV_MODE;
	else if (query.attach_mode == XDP_ATTACHED_MULTI)
		return error("%s: has several XDP programs: ip link set dev %s xdp off",
			     name, name);
	return d->prog_id ? device_open_prog(d) : 0;
}

static void devices_close(struct device *devices, int num)
{
	while (num--)
		device_close(&devices[num]);
	free(devices);
}

static struct device *devices_alloc(int num)
{
	struct device *devices = calloc(num, sizeof(*devices));

	if (!devices)
		error("out of memory");
	return devices;
}

/* Those named, or, without names, those that xdp_ct is on */
static int devices_open(struct device **devices, char **names, int num_names)
{
	struct if_nameindex *all, *i;
	int num = 0;

	if (num_names) {
		*devices = devices_alloc(num_names);
		if (!*devices)
			return -1;
		for (num = 0; num < num_names; num++) {
			if (device_open(&(*devices)[num], names[num])) {
				devices_close(*devices, num + 1);
				return -1;
			}
		}
		return num;
	}

	all = if_nameindex();
	if (!all)
		return error("devices of this network namespace: %s", strerror(errno));
	for (i = all; i->if_index; i++)
		num++;
	*devices = devices_alloc(num);
	for (num = 0, i = all; *devices && i->if_index; i++) {
		struct device *d = &(*devices)[num];

		if (device_open(d, i->if_name)) {
			if (!if_nametoindex(i->if_name))
				continue; /* gone meanwhile */
			devices_close(*devices, num + 1);
			*devices = NULL;
		} else if (d->prog_fd >= 0) {
			num++;
		} else {
			device_close(d);
		}
	}
	if_freenameindex(all);
	return *devices ? num : -1;
}

/* Address of a device, in the first bytes of a word, and of its bridge */
static int link_get(int ifindex, __u64 *mac, int *master)
{
	struct {
		struct nlmsghdr		nh;
		struct ifinfomsg	ifi;
		char			room[16384];
	} msg = {
		.nh.nlmsg_len	= NLMSG_LENGTH(sizeof(msg.ifi)),
		.nh.nlmsg_type	= RTM_GETLINK,
		.nh.nlmsg_flags	= NLM_F_REQUEST,
		.ifi.ifi_index	= ifindex,
	};
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	struct rtattr *attr;
	int len = -1;

	*mac = 0;
	*master = 0;
	if (fd >= 0 && send(fd, &msg, msg.nh.nlmsg_len, 0) > 0)
		len = recv(fd, &msg, sizeof(msg), 0);
	close(fd);
	if (len < (int)NLMSG_LENGTH(sizeof(msg.ifi)) || msg.nh.nlmsg_type != RTM_NEWLINK)
		return -1;

	len = IFLA_PAYLOAD(&msg.nh);
	for (attr = IFLA_RTA(&msg.ifi); RTA_OK(attr, len); attr = RTA_NEXT(attr, len)) {
		if (attr->rta_type == IFLA_ADDRESS && RTA_PAYLOAD(attr) == ETH_ALEN)
			memcpy(mac, RTA_DATA(attr), ETH_ALEN);
		else if (attr->rta_type == IFLA_MASTER)
			memcpy(master, RTA_DATA(attr), sizeof(*master));
	}
	return 0;
}

static int check_lro(const struct device *d)
{
	struct ethtool_value flags = { .cmd = ETHTOOL_GFLAGS };
	struct ifreq ifr = { .ifr_data = (void *)&flags };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int err;

	memcpy(ifr.ifr_name, d->name, sizeof(d->name));
	err = ioctl(fd, SIOCETHTOOL, &ifr);
	close(fd);
	if (!err && flags.data & ETH_FLAG_LRO)
		return error("%s: LRO joins packets before XDP sees them: ethtool -K %s lro off",
			     d->name, d->name);
	return 0;
}

/* Attach */

static int load_error(int err)
{
	if (err == -EPERM || err == -EACCES)
		return error_perm();
	if (access(MODULAR_MAPS, F_OK))
		return error("no modular maps: boot a kernel with CONFIG_BPF_MODULAR_MAPS");
	if (access(MODULAR_MAPS "/flowmap", F_OK))
		return error("module " MODULE " is not loaded: modprobe " MODULE);
	if (err == -E2BIG)
		return error("--max-entries is above what a flowmap may have");
	return error("the kernel does not take the program: %s\n%s", strerror(-err), libbpf_text);
}

static int device_load(struct device *d, int *flowmap_fd, __u64 map_extra)
{
	struct xdp_ct_bpf *skel = xdp_ct_bpf__open();
	__u64 own, bridge = 0;
	int master, none, err;

	if (!skel)
		return error("xdp_ct.bpf.o: %s\n%s", strerror(errno), libbpf_text);

	if (link_get(d->ifindex, &own, &master) || !own) {
		err = error("%s: not an Ethernet device", d->name);
		goto out;
	}
	if (master)
		link_get(master, &bridge, &none);
	skel->rodata->own_mac = own;
	skel->rodata->bridge_mac = bridge ? bridge : own;
	skel->rodata->ingress = d->ifindex;
	skel->rodata->skb_mode = opt.mode == XDP_FLAGS_SKB_MODE;
	skel->rodata->counters = map_extra & BPF_FLOWMAP_COUNTERS;

	bpf_map__set_map_extra(skel->maps.flowmap, map_extra);
	if (opt.max_entries)
		bpf_map__set_max_entries(skel->maps.flowmap, opt.max_entries);
	err = 0;
	if (*flowmap_fd >= 0)
		err = bpf_map__reuse_fd(skel->maps.flowmap, *flowmap_fd);
	if (!err && d->stats_fd >= 0)
		err = bpf_map__reuse_fd(skel->maps.xdp_ct_stats, d->stats_fd);
	if (!err)
		err = xdp_ct_bpf__load(skel);
	if (err) {
		err = load_error(err);
		goto out;
	}

	d->new_fd = dup(bpf_program__fd(skel->progs.xdp_ct));
	if (*flowmap_fd < 0)
		*flowmap_fd = dup(bpf_map__fd(skel->maps.flowmap));
out:
	xdp_ct_bpf__destroy(skel);
	return err;
}

/* From what is on the device, nothing (-1) included, to another program */
static int device_set(const struct device *d, __u32 mode, int from_fd, int to_fd)
{
	LIBBPF_OPTS(bpf_xdp_attach_opts, attach, .old_prog_fd = from_fd);

	if (from_fd < 0)
		return bpf_xdp_attach(d->ifindex, to_fd, mode | XDP_FLAGS_UPDATE_IF_NOEXIST, NULL);
	return bpf_xdp_attach(d->ifindex, to_fd, mode | XDP_FLAGS_REPLACE, &attach);
}

static int attach_error(const struct device *d, int err)
{
	if (err == -EPERM)
		return error_perm();
	if (err == -EBUSY || err == -EEXIST)
		return error("%s: another program was attached meanwhile: try again", d->name);
	if (err == -EOPNOTSUPP && opt.mode == XDP_FLAGS_DRV_MODE)
		return error("%s: its driver has no native XDP: use --mode skb", d->name);
	return error("%s: attaching failed: %s", d->name,
		     *netlink_text ? netlink_text : strerror(-err));
}

static int check_attach(const struct device *d)
{
	if (d->prog_id && d->prog_fd < 0)
		return error("%s: has XDP program %s: take it off, or run both by xdp-loader",
			     d->name, d->prog_name);
	if (d->prog_id && d->mode != opt.mode)
		return error("%s: xdp_ct is attached in the other mode: xdp_ct detach %s first",
			     d->name, d->name);
	return check_lro(d);
}

/* The flowmap of this network namespace, if there is one, as it was made */
static int find_flowmap(__u64 *map_extra)
{
	struct bpf_map_info info;
	struct device *devices;
	int fd = -1;
	int num = devices_open(&devices, NULL, 0);

	if (num < 0)
		return -2;
	*map_extra = opt.counters ? BPF_FLOWMAP_COUNTERS : 0;
	if (num) {
		fd = dup(devices[0].flowmap_fd);
		if (map_info(fd, &info) ||
		    (opt.max_entries && opt.max_entries != info.max_entries) ||
		    (opt.counters && !(info.map_extra & BPF_FLOWMAP_COUNTERS))) {
			error("%s: its flowmap was made with other options: xdp_ct detach first",
			      devices[0].name);
			close(fd);
			fd = -2;
		}
		*map_extra = info.map_extra;
	}
	devices_close(devices, num);
	return fd;
}

/* 1: pinned, 0: was so already */
static int pin_flowmap(int flowmap_fd, const char *dir, const char *path)
{
	struct bpf_map_info info, old;
	int made, fd;

	made = !mkdir(dir, 0700);
	if (!bpf_obj_pin(flowmap_fd, path))
		return 1;
	if (errno == EEXIST) {
		fd = bpf_obj_get(path);
		if (fd >= 0 && !map_info(fd, &old) && !map_info(flowmap_fd, &info) &&
		    old.id == info.id) {
			close(fd);
			return 0;
		}
		if (fd >= 0)
			close(fd);
		return error("%s is another map: remove it", path);
	}
	error("%s: %s: --pin needs a bpffs; ip netns exec hides it: use nsenter --net=",
	      path, strerror(errno));
	if (made)
		rmdir(dir);
	return -1;
}

static int attach(void)
{
	int flowmap_fd, num, i, err = -1, pinned = 0;
	char path[PATH_MAX];
	struct device *devices;
	__u64 map_extra;

	num = devices_open(&devices, opt.names, opt.num_names);
	if (num < 0)
		return -1;
	flowmap_fd = find_flowmap(&map_extra);
	if (flowmap_fd == -2)
		goto out;

	for (i = 0; i < num; i++)
		if (check_attach(&devices[i]) || device_load(&devices[i], &flowmap_fd, map_extra))
			goto out;
	if (opt.pin) {
		snprintf(path, sizeof(path), "%s/flowmap", opt.pin);
		pinned = pin_flowmap(flowmap_fd, opt.pin, path);
		if (pinned < 0)
			goto out;
	}

	for (i = 0; i < num; i++) {
		err = device_set(&devices[i], opt.mode, devices[i].prog_fd, devices[i].new_fd);
		if (err)
			break;
	}
	if (err) {
		err = attach_error(&devices[i], err);
		while (i--)
			device_set(&devices[i], opt.mode, devices[i].new_fd, devices[i].prog_fd);
		if (pinned) {
			unlink(path);
			rmdir(opt.pin);
		}
	}
out:
	if (flowmap_fd >= 0)
		close(flowmap_fd);
	devices_close(devices, num);
	return err;
}

static int detach(void)
{
	char path[PATH_MAX];
	struct device *devices;
	int num, i, err = 0;

	num = devices_open(&devices, opt.names, opt.num_names);
	if (num < 0)
		return -1;
	for (i = 0; i < num && !err; i++)
		if (devices[i].prog_fd < 0)
			err = error("%s: xdp_ct is not attached: see xdp_ct status",
				    devices[i].name);
	for (i = 0; i < num && !err; i++) {
		err = device_set(&devices[i], devices[i].mode, devices[i].prog_fd, -1);
		if (err)
			error("%s: detaching failed: %s", devices[i].name, strerror(-err));
	}
	devices_close(devices, num);
	if (err || !opt.pin)
		return err;

	num = devices_open(&devices, NULL, 0);
	if (num == 0) {
		snprintf(path, sizeof(path), "%s/flowmap", opt.pin);
		unlink(path);
		rmdir(opt.pin);
	}
	if (num >= 0)
		devices_close(devices, num);
	return 0;
}

/* Show */

static void print_json(json_object *json)
{
	puts(json_object_to_json_string_ext(json, JSON_C_TO_STRING_NOSLASHESCAPE |
					    (opt.watch ? 0 : JSON_C_TO_STRING_PRETTY)));
	fflush(stdout);
	json_object_put(json);
}

static void add_string(json_object *json, const char *name, const char *value)
{
	json_object_object_add(json, name, json_object_new_string(value));
}

static void add_number(json_object *json, const char *name, __u64 value)
{
	json_object_object_add(json, name, json_object_new_int64(value));
}

static void add_bool(json_object *json, const char *name, bool value)
{
	json_object_object_add(json, name, json_object_new_boolean(value));
}

static const char *mode_name(__u32 mode)
{
	return mode == XDP_FLAGS_SKB_MODE ? "skb" :
	       mode == XDP_FLAGS_DRV_MODE ? "native" : "offload";
}

static int status(void)
{
	json_object *json = json_object_new_object();
	json_object *list = json_object_new_array();
	bool loaded = !access(MODULAR_MAPS "/flowmap", F_OK);
	struct bpf_map_info info;
	struct device *devices;
	int num, i;

	num = devices_open(&devices, opt.names, opt.num_names);
	if (num < 0)
		return -1;
	if (!opt.json)
		printf("module %s: %sloaded\n", MODULE, loaded ? "" : "not ");
	for (i = 0; i < num; i++) {
		json_object *one = json_object_new_object();
		struct device *d = &devices[i];

		add_string(one, "dev", d->name);
		add_bool(one, "attached", d->prog_fd >= 0);
		json_object_array_add(list, one);
		if (d->prog_fd < 0 || map_info(d->flowmap_fd, &info)) {
			if (!opt.json)
				printf("%s: xdp_ct is not attached\n", d->name);
			continue;
		}
		add_string(one, "mode", mode_name(d->mode));
		add_number(one, "prog_id", d->prog_id);
		add_number(one, "flowmap_id", info.id);
		add_number(one, "max_entries", info.max_entries);
		add_bool(one, "counters", info.map_extra & BPF_FLOWMAP_COUNTERS);
		if (!opt.json)
			printf("%s: mode %s, program %u, flowmap %u (max_entries %u%s)\n",
			       d->name, mode_name(d->mode), d->prog_id, info.id, info.max_entries,
			       info.map_extra & BPF_FLOWMAP_COUNTERS ? ", counters" : "");
	}
	devices_close(devices, num);
	add_string(json, "module", MODULE);
	add_bool(json, "loaded", loaded);
	json_object_object_add(json, "devices", list);
	if (opt.json)
		print_json(json);
	else
		json_object_put(json);
	return 0;
}

/* Names of the reasons, from the BTF of the very map that is shown */
static const char *reason_name(const struct btf *btf, __u32 reason, char *name, size_t size)
{
	static const char prefix[] = "FLOWMAP_";
	const struct btf_type *type;
	int id = btf ? btf__find_by_name_kind(btf, "flowmap_reason", BTF_KIND_ENUM) : -1;
	const char *s = NULL;
	char *c;

	type = id < 0 ? NULL : btf__type_by_id(btf, id);
	if (type && reason < btf_vlen(type))
		s = btf__name_by_offset(btf, btf_enum(type)[reason].name_off);
	if (!s || strncmp(s, prefix, strlen(prefix)))
		snprintf(name, size, "reason_%u", reason);
	else
		snprintf(name, size, "%s", s + strlen(prefix));
	for (c = name; *c; c++)
		if (*c >= 'A' && *c <= 'Z')
			*c += 'a' - 'A';
	return name;
}

/* {"forwarded": {"packets": ..., "bytes": ...}, "miss": ...}: those not 0 */
static json_object *device_stats(const struct device *d)
{
	int cpus = libbpf_num_possible_cpus(), cpu;
	json_object *json = json_object_new_object();
	struct bpf_map_info info;
	struct count *counts;
	struct btf *btf;
	char name[64];
	__u32 reason;

	if (cpus < 0 || map_info(d->stats_fd, &info) || info.value_size != sizeof(*counts))
		return json;
	counts = calloc(cpus, sizeof(*counts));
	btf = btf__load_from_kernel_by_id(info.btf_id);
	for (reason = 0; counts && reason < info.max_entries; reason++) {
		json_object *one;

		if (bpf_map_lookup_elem(d->stats_fd, &reason, counts))
			break;
		for (cpu = 1; cpu < cpus; cpu++) {
			counts[0].packets += counts[cpu].packets;
			counts[0].bytes += counts[cpu].bytes;
		}
		if (!counts[0].packets)
			continue;
		one = json_object_new_object();
		add_number(one, "packets", counts[0].packets);
		add_number(one, "bytes", counts[0].bytes);
		json_object_object_add(json, reason_name(btf, reason, name, sizeof(name)), one);
	}
	btf__free(btf);
	free(counts);
	return json;
}

static json_object *stats_get(void)
{
	struct device *devices;
	json_object *json;
	int num, i;

	num = devices_open(&devices, opt.names, opt.num_names);
	if (num < 0)
		return NULL;
	json = json_object_new_object();
	for (i = 0; i < num; i++) {
		if (devices[i].prog_fd < 0) {
			error("%s: xdp_ct is not attached: see xdp_ct status", devices[i].name);
			json_object_put(json);
			json = NULL;
			break;
		}
		json_object_object_add(json, devices[i].name, device_stats(&devices[i]));
	}
	devices_close(devices, num);
	return json;
}

static __u64 member(json_object *json, const char *a, const char *b, const char *c)
{
	const char *const path[] = { a, b, c };
	int i;

	for (i = 0; i < 3; i++)
		if (!json_object_object_get_ex(json, path[i], &json))
			return 0;
	return json_object_get_int64(json);
}

/* Totals, or with what was before, a second's */
static void stats_print(json_object *now, json_object *before)
{
	json_object_object_foreach(now, dev, reasons) {
		__u64 packets = member(now, dev, "forwarded", "packets");
		__u64 bytes = member(now, dev, "forwarded", "bytes");

		packets -= member(before, dev, "forwarded", "packets");
		bytes -= member(before, dev, "forwarded", "bytes");
		printf("%s:", dev);
		if (before)
			printf(" forwarded %llu packets/s %llu bit/s", packets, bytes * 8);
		else if (packets)
			printf(" forwarded %llu packets %llu bytes", packets, bytes);
		printf("%s", before ? " passed/s" : " passed");
		json_object_object_foreach(reasons, reason, unused) {
			(void)unused;
			packets = member(now, dev, reason, "packets") -
				  member(before, dev, reason, "packets");
			if (packets && strcmp(reason, "forwarded"))
				printf(" %s %llu", reason, packets);
		}
		putchar('\n');
	}
	fflush(stdout);
}

static int stats(void)
{
	json_object *before = NULL, *now = stats_get();

	while (now) {
		if (opt.json)
			print_json(json_object_get(now));
		else if (!opt.watch || before)
			stats_print(now, before);
		json_object_put(before);
		before = now;
		if (!opt.watch)
			break;
		sleep(1);
		now = stats_get();
	}
	json_object_put(before);
	return now ? 0 : -1;
}

/* Flows */

static const char *const tcp_states[] = {
	[TCP_CONNTRACK_NONE]		= "NONE",
	[TCP_CONNTRACK_SYN_SENT]	= "SYN_SENT",
	[TCP_CONNTRACK_SYN_RECV]	= "SYN_RECV",
	[TCP_CONNTRACK_ESTABLISHED]	= "ESTABLISHED",
	[TCP_CONNTRACK_FIN_WAIT]	= "FIN_WAIT",
	[TCP_CONNTRACK_CLOSE_WAIT]	= "CLOSE_WAIT",
	[TCP_CONNTRACK_LAST_ACK]	= "LAST_ACK",
	[TCP_CONNTRACK_TIME_WAIT]	= "TIME_WAIT",
	[TCP_CONNTRACK_CLOSE]		= "CLOSE",
	[TCP_CONNTRACK_SYN_SENT2]	= "SYN_SENT2",
};

static const struct {
	__u32		flag;
	const char	*name;
} stack_flags[] = {
	{ BPF_FLOWMAP_NO_NEIGH,	"no_neigh" },
	{ BPF_FLOWMAP_NO_XMIT,	"no_xmit" },
	{ BPF_FLOWMAP_NO_ETHER,	"no_ether" },
	{ BPF_FLOWMAP_XFRM,	"xfrm" },
	{ BPF_FLOWMAP_TUNNEL,	"tunnel" },
};

static void add_device(json_object *json, __u32 ifindex)
{
	char name[IF_NAMESIZE];

	add_string(json, "dev", if_indextoname(ifindex, name) ? name : "");
	add_number(json, "ifindex", ifindex);
}

static void add_tuple(json_object *json, __u8 family, const union bpf_flowmap_addrs *addr,
		      __be16 sport, __be16 dport, const struct bpf_flowmap_encap *encap)
{
	json_object *list = json_object_new_array();
	char text[INET6_ADDRSTRLEN];
	int i;

	add_string(json, "src", inet_ntop(family, family == AF_INET ? (void *)&addr->v4.saddr :
					  (void *)addr->v6.saddr, text, sizeof(text)));
	add_string(json, "dst", inet_ntop(family, family == AF_INET ? (void *)&addr->v4.daddr :
					  (void *)addr->v6.daddr, text, sizeof(text)));
	add_number(json, "sport", ntohs(sport));
	add_number(json, "dport", ntohs(dport));
	for (i = 0; i < BPF_FLOWMAP_ENCAP_MAX && encap[i].proto; i++) {
		json_object *one = json_object_new_object();

		add_string(one, "proto", encap[i].proto == htons(ETH_P_PPP_SES) ? "pppoe" :
			   encap[i].proto == htons(ETH_P_8021AD) ? "802.1ad" : "802.1q");
		add_number(one, "id", encap[i].id);
		json_object_array_add(list, one);
	}
	json_object_object_add(json, "encap", list);
}

static void add_mac(json_object *json, const char *name, const __u8 *mac)
{
	char text[18];

	snprintf(text, sizeof(text), "%02x:%02x:%02x:%02x:%02x:%02x",
		 mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
	add_string(json, name, text);
}

static json_object *flow_json(const struct bpf_flowmap_key *key,
			      const struct bpf_flowmap_value *value, bool counters)
{
	json_object *in = json_object_new_object(), *out = json_object_new_object();
	json_object *flow = json_object_new_object();
	json_object *why = json_object_new_array();
	char number[16];
	struct timespec now;
	size_t i;

	snprintf(number, sizeof(number), "%u", key->l4proto);
	add_string(flow, "protocol", key->l4proto == IPPROTO_TCP ? "tcp" :
		   key->l4proto == IPPROTO_UDP ? "udp" :
		   key->l4proto == IPPROTO_GRE ? "gre" : number);
	add_string(flow, "direction", value->flags & BPF_FLOWMAP_REPLY ? "reply" : "original");
	if (key->l4proto == IPPROTO_TCP &&
	    value->tcp_state < sizeof(tcp_states) / sizeof(*tcp_states))
		add_string(flow, "state", tcp_states[value->tcp_state]);

	add_device(in, key->ifindex);
	add_tuple(in, key->family, &key->addr, key->sport, key->dport, key->encap);
	json_object_object_add(flow, "ingress", in);

	add_device(out, value->ifindex);
	add_tuple(out, key->family, &value->addr, value->sport, value->dport, value->encap);
	add_mac(out, "lladdr", value->h_dest);
	add_mac(out, "source_lladdr", value->h_source);
	add_number(out, "mtu", value->mtu);
	json_object_object_add(flow, "egress", out);

	add_bool(flow, "snat", value->flags & BPF_FLOWMAP_SNAT);
	add_bool(flow, "dnat", value->flags & BPF_FLOWMAP_DNAT);
	if (counters) {
		add_number(flow, "packets", value->packets);
		add_number(flow, "bytes", value->bytes);
	}
	clock_gettime(CLOCK_MONOTONIC, &now);
	if (value->last_used)
		add_number(flow, "idle", now.tv_sec > value->last_used ?
			   now.tv_sec - value->last_used : 0);
	add_number(flow, "status", value->ct_status);
	add_number(flow, "mark", value->ct_mark);
	add_number(flow, "zone", value->ct_zone);
	add_number(flow, "id", value->ct_id);
	for (i = 0; i < sizeof(stack_flags) / sizeof(*stack_flags); i++)
		if (value->flags & stack_flags[i].flag)
			json_object_array_add(why, json_object_new_string(stack_flags[i].name));
	json_object_object_add(flow, "needs_stack", why);
	return flow;
}

static const char *text_of(json_object *json, const char *name)
{
	return json_object_object_get_ex(json, name, &json) ? json_object_get_string(json) : NULL;
}

static void print_tuple(json_object *flow, const char *side, const char *dev)
{
	json_object *json, *list;
	size_t i;

	json_object_object_get_ex(flow, side, &json);
	printf(" %s=%s", dev, text_of(json, "dev"));
	json_object_object_get_ex(json, "encap", &list);
	for (i = 0; i < json_object_array_length(list); i++)
		printf(" %s=%s", text_of(json_object_array_get_idx(list, i), "proto"),
		       text_of(json_object_array_get_idx(list, i), "id"));
	printf(" src=%s dst=%s sport=%s dport=%s", text_of(json, "src"), text_of(json, "dst"),
	       text_of(json, "sport"), text_of(json, "dport"));
}

/* As conntrack -L has it, one direction a line */
static void flow_print(json_object *flow)
{
	static const char *const fields[] = { "packets", "bytes", "idle", "mark", "zone", "id" };
	json_object *why;
	size_t i;

	printf("%s", text_of(flow, "protocol"));
	if (text_of(flow, "state"))
		printf(" %s", text_of(flow, "state"));
	printf(" %s", text_of(flow, "direction"));
	print_tuple(flow, "ingress", "iif");
	print_tuple(flow, "egress", "oif");
	if (!strcmp(text_of(flow, "snat"), "true"))
		printf(" [SNAT]");
	if (!strcmp(text_of(flow, "dnat"), "true"))
		printf(" [DNAT]");
	for (i = 0; i < sizeof(fields) / sizeof(*fields); i++)
		if (text_of(flow, fields[i]))
			printf(" %s=%s", fields[i], text_of(flow, fields[i]));
	json_object_object_get_ex(flow, "needs_stack", &why);
	for (i = 0; i < json_object_array_length(why); i++)
		printf(" needs_stack=%s",
		       json_object_get_string(json_object_array_get_idx(why, i)));
	putchar('\n');
}

/* All devices of a namespace share one flowmap, unless ip link has loaded some */
static bool seen(const struct device *devices, int num, __u32 id)
{
	struct bpf_map_info info;

	while (num--)
		if (!map_info(devices[num].flowmap_fd, &info) && info.id == id)
			return true;
	return false;
}

static int flows(void)
{
	struct bpf_flowmap_value value;
	json_object *list = json_object_new_array();
	struct bpf_flowmap_key key;
	struct bpf_map_info info;
	struct device *devices;
	int num, i;

	num = devices_open(&devices, NULL, 0);
	if (num < 0)
		return -1;
	if (!num)
		error("xdp_ct is on no device of this network namespace: xdp_ct attach DEV");
	for (i = 0; i < num; i++) {
		void *prev = NULL;
		json_object *flow;

		if (map_info(devices[i].flowmap_fd, &info) || seen(devices, i, info.id))
			continue;
		for (; !bpf_map_get_next_key(devices[i].flowmap_fd, prev, &key); prev = &key) {
			if (bpf_map_lookup_elem(devices[i].flowmap_fd, &key, &value))
				continue; /* ended meanwhile */
			flow = flow_json(&key, &value, info.map_extra & BPF_FLOWMAP_COUNTERS);
			if (opt.json) {
				json_object_array_add(list, flow);
			} else {
				flow_print(flow);
				json_object_put(flow);
			}
		}
	}
	devices_close(devices, num);
	if (opt.json)
		print_json(list);
	else
		json_object_put(list);
	return num ? 0 : -1;
}

/* Command line */

static const struct command {
	const char	*name;
	int		(*run)(void);
	const char	*options;
	bool		devices;
} commands[] = {
	{ "attach",	attach,	"mcpn",	true },
	{ "detach",	detach,	"p",	true },
	{ "status",	status,	"j",	true },
	{ "stats",	stats,	"jw",	true },
	{ "flows",	flows,	"j",	false },
};

static const struct argp_option options[] = {
	{ "mode",	'm', "native|skb", 0, "attach: in the driver (default), or generic", 0 },
	{ "counters",	'c', NULL, 0, "attach: count what is forwarded, by device and flow", 0 },
	{ "max-entries", 'n', "N", 0, "attach: size of the flowmap, two a connection (65536)", 0 },
	{ "pin",	'p', "DIR", 0, "attach, detach: keep the flowmap at DIR/flowmap, too", 0 },
	{ "watch",	'w', NULL, 0, "stats: show rates, each second", 0 },
	{ "json",	'j', NULL, 0, "status, stats, flows: print JSON", 0 },
	{}
};

static error_t parse_opt(int key, char *arg, struct argp_state *state)
{
	static char given[16];
	size_t i;
	char *end;

	switch (key) {
	case 'm':
		if (!strcmp(arg, "skb"))
			opt.mode = XDP_FLAGS_SKB_MODE;
		else if (strcmp(arg, "native"))
			argp_error(state, "--mode is native or skb");
		break;
	case 'c':
		opt.counters = true;
		break;
	case 'n':
		errno = 0;
		opt.max_entries = strtoul(arg, &end, 0);
		if (errno || *end || !opt.max_entries || *arg == '-')
			argp_error(state, "--max-entries takes a number");
		break;
	case 'p':
		opt.pin = arg;
		break;
	case 'w':
		opt.watch = true;
		break;
	case 'j':
		opt.json = true;
		break;
	case ARGP_KEY_ARGS:
		opt.command = state->argv[state->next];
		opt.names = &state->argv[state->next + 1];
		opt.num_names = state->argc - state->next - 1;
		return 0;
	case ARGP_KEY_END:
		for (i = 0; opt.command && i < sizeof(commands) / sizeof(*commands); i++) {
			if (strcmp(opt.command, commands[i].name))
				continue;
			if (given[strspn(given, commands[i].options)])
				argp_error(state, "%s has no option -%c", opt.command,
					   given[strspn(given, commands[i].options)]);
			if (opt.num_names && !commands[i].devices)
				argp_error(state, "%s takes no device", opt.command);
			if (!opt.num_names && commands[i].run == attach)
				argp_error(state, "attach to which device?");
			*(const struct command **)state->input = &commands[i];
			return 0;
		}
		argp_error(state, "the command is attach, detach, status, stats or flows");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	if (strlen(given) < sizeof(given) - 1)
		given[strlen(given)] = key;
	return 0;
}

static const char doc[] =
	"Forward netfilter's offloaded connections in XDP.\v"
	"Examples:\n"
	"  xdp_ct attach eth0 eth1 --counters\n"
	"  xdp_ct stats --watch\n"
	"  xdp_ct flows\n"
	"  xdp_ct detach\n"
	"\n"
	"All is about the network namespace that xdp_ct runs in. For another:\n"
	"  nsenter --net=/run/netns/NAME xdp_ct ...\n";

int main(int argc, char **argv)
{
	static const struct argp argp = {
		.options	= options,
		.parser		= parse_opt,
		.args_doc	= "attach DEV...\n{detach|status|stats} [DEV...]\nflows",
		.doc		= doc,
	};
	const struct command *command = NULL;

	argp_parse(&argp, argc, argv, 0, NULL, &command);
	libbpf_set_print(keep_libbpf_text);
	return command->run() ? EXIT_FAILURE : EXIT_SUCCESS;
}
