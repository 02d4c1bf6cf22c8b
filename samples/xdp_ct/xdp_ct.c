// SPDX-License-Identifier: GPL-2.0-only
/*
 * Put xdp_ct.bpf.o on devices, take it off, and show what it does
 *
 * All state is in the kernel: a device has the program, the program holds its
 * maps, and whatever runs later finds them from there. Each device has a
 * program of its own, with its address and mode as constants, and a map of
 * counters; the flowmap is one for all devices of the network namespace, and so
 * is what --strict-tcp knows of connections.
 */
#include <argp.h>
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/ethtool.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bpf/libbpf.h>

#include "xdp_ct.h"
#include "xdp_ct.skel.h"

#define MODULE		"nf_flow_table_bpf_flowmap"
#define MODULAR_MAPS	"/sys/kernel/bpf/modular_maps"
#define DEFAULT_ENTRIES	65536

struct options opt = { .mode = XDP_FLAGS_DRV_MODE };

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

int error(const char *fmt, ...)
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

int map_info(int fd, struct bpf_map_info *info)
{
	__u32 len = sizeof(*info);

	memset(info, 0, sizeof(*info));
	return bpf_obj_get_info_by_fd(fd, info, &len);
}

/* Devices and what is on them */

void device_close(struct device *d)
{
	int *fd[] = { &d->prog_fd, &d->flowmap_fd, &d->stats_fd, &d->windows_fd, &d->new_fd };
	size_t i;

	for (i = 0; i < sizeof(fd) / sizeof(*fd); i++) {
		if (*fd[i] >= 0)
			close(*fd[i]);
		*fd[i] = -1;
	}
	d->flowmap.id = 0;
}

/* Which of our maps it is; NULL: none */
static int *device_map(struct device *d, const struct bpf_map_info *info)
{
	return info->type == BPF_MAP_TYPE_FLOWMAP ? &d->flowmap_fd :
	       !strcmp(info->name, "xdp_ct_stats") ? &d->stats_fd :
	       !strcmp(info->name, "tcp_windows") ? &d->windows_fd : NULL;
}

/* It is xdp_ct if it is called so and has our maps */
static int device_open_prog(struct device *d, __u32 id)
{
	struct bpf_prog_info info = {};
	__u32 len = sizeof(info), i;
	struct bpf_map_info map;
	__u32 ids[16];
	int fd, *to;

	d->prog_fd = bpf_prog_get_fd_by_id(id);
	if (d->prog_fd < 0)
		return errno == EPERM ? error_perm() :
		       error("%s: program %u: %s", d->name, id, strerror(errno));

	info.map_ids = (unsigned long)ids;
	info.nr_map_ids = sizeof(ids) / sizeof(*ids);
	if (bpf_obj_get_info_by_fd(d->prog_fd, &info, &len))
		return error("%s: program %u: %s", d->name, id, strerror(errno));
	d->prog_id = id;
	memcpy(d->prog_name, info.name, sizeof(d->prog_name));
	d->strict = !strcmp(d->prog_name, "xdp_ct_strict");

	for (i = 0; i < info.nr_map_ids && i < sizeof(ids) / sizeof(*ids); i++) {
		fd = bpf_map_get_fd_by_id(ids[i]);
		to = fd < 0 || map_info(fd, &map) ? NULL : device_map(d, &map);
		if (to == &d->flowmap_fd)
			d->flowmap = map;
		if (to && *to < 0)
			*to = fd;
		else if (fd >= 0)
			close(fd);
	}
	if (strncmp(d->prog_name, "xdp_ct", strlen("xdp_ct")) ||
	    d->flowmap_fd < 0 || d->stats_fd < 0)
		device_close(d);
	return 0;
}

/* libxdp's dispatcher calls the programs that are linked to it */
static int device_open_dispatched(struct device *d)
{
	struct bpf_link_info info;
	__u32 len, id = 0;
	int fd, err = 0;

	d->dispatcher = d->prog_id;
	while (!err && d->prog_fd < 0 && !bpf_link_get_next_id(id, &id)) {
		len = sizeof(info);
		memset(&info, 0, len);
		fd = bpf_link_get_fd_by_id(id);
		if (fd < 0)
			continue; /* gone meanwhile */
		if (!bpf_obj_get_info_by_fd(fd, &info, &len) &&
		    info.type == BPF_LINK_TYPE_TRACING &&
		    info.tracing.target_obj_id == d->dispatcher)
			err = device_open_prog(d, info.prog_id);
		close(fd);
	}
	return err;
}

static int device_open(struct device *d, const char *name)
{
	LIBBPF_OPTS(bpf_xdp_query_opts, query);
	int err;

	memset(d, 0, sizeof(*d));
	d->prog_fd = -1;
	d->flowmap_fd = -1;
	d->stats_fd = -1;
	d->windows_fd = -1;
	d->new_fd = -1;
	d->ifindex = if_nametoindex(name);
	if (!d->ifindex || !if_indextoname(d->ifindex, d->name)) /* it may have several */
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
	if (!d->prog_id)
		return 0;
	err = device_open_prog(d, d->prog_id);
	return !err && !strcmp(d->prog_name, "xdp_dispatcher") ? device_open_dispatched(d) : err;
}

void devices_close(struct device *devices, int num)
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

static bool devices_have(const struct device *devices, int num, int ifindex)
{
	while (num--)
		if (devices[num].ifindex == ifindex)
			return true;
	return false;
}

int devices_open(struct device **devices, char **names, int num_names)
{
	struct if_nameindex *all, *i;
	int num = 0;

	if (num_names) {
		*devices = devices_alloc(num_names);
		if (!*devices)
			return -1;
		for (; num_names--; names++) {
			struct device *d = &(*devices)[num];

			if (device_open(d, *names)) {
				devices_close(*devices, num + 1);
				return -1;
			}
			if (devices_have(*devices, num, d->ifindex))
				device_close(d);
			else
				num++;
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

static bool same_map(int a, int b)
{
	struct bpf_map_info info_a, info_b;

	return a >= 0 && b >= 0 && !map_info(a, &info_a) && !map_info(b, &info_b) &&
	       info_a.id == info_b.id;
}

/* All of a namespace do, unless ip link has loaded some */
bool device_shares(const struct device *devices, int i)
{
	int j;

	for (j = 0; j < i; j++)
		if (devices[i].flowmap.id == devices[j].flowmap.id)
			return true;
	return false;
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

static int ethtool(const struct device *d, void *data)
{
	struct ifreq ifr = { .ifr_data = data };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int err;

	memcpy(ifr.ifr_name, d->name, sizeof(d->name));
	err = ioctl(fd, SIOCETHTOOL, &ifr);
	close(fd);
	return err;
}

/* What a device does before XDP may change packets. Those that hand on what others
 * receive just say that they would take tags off.
 */
static int check_offloads(const struct device *d)
{
	struct ethtool_drvinfo info = { .cmd = ETHTOOL_GDRVINFO };
	struct ethtool_value flags = { .cmd = ETHTOOL_GFLAGS };

	if (ethtool(d, &flags))
		return 0;
	if (flags.data & ETH_FLAG_LRO)
		return error("%s: LRO joins packets before XDP sees them: ethtool -K %s lro off",
			     d->name, d->name);
	ethtool(d, &info);
	if (flags.data & ETH_FLAG_RXVLAN && strcmp(info.driver, "veth") &&
	    strcmp(info.driver, "bonding") && strcmp(info.driver, "team"))
		return error("%s: takes VLAN tags off before XDP: ethtool -K %s rxvlan off",
			     d->name, d->name);
	return 0;
}

/* How full it is, by /proc/net/nf_flowmap: the maps of this network namespace */
static bool map_room(__u32 id, __u32 *entries, unsigned long long *full)
{
	FILE *f = fopen("/proc/net/nf_flowmap", "r");
	bool found = false;
	char line[128];
	__u32 at;

	while (f && !found && fgets(line, sizeof(line), f))
		found = sscanf(line, "%u %u %*u %llu", &at, entries, full) == 3 && at == id;
	if (f)
		fclose(f);
	return found;
}

/* Attach */

static int load_error(int err)
{
	if (err == -EPERM || (err == -EACCES && geteuid())) /* or it is the verifier's */
		return error_perm();
	if (access(MODULAR_MAPS, F_OK))
		return error("no modular maps: boot a kernel with CONFIG_BPF_MODULAR_MAPS");
	if (access(MODULAR_MAPS "/flowmap", F_OK))
		return error("module " MODULE " is not loaded: modprobe " MODULE);
	if (err == -E2BIG && opt.max_entries)
		return error("--max-entries is above what a flowmap may have");
	return error("the kernel does not take the program: %s\n%s", strerror(-err), libbpf_text);
}

/* What all devices of a network namespace have in common */
struct shared {
	int	flowmap_fd;	/* -1: to be made */
	int	windows_fd;
	int	old_fd;		/* the flowmap that it takes the place of, or -1 */
	__u64	map_extra;
};

static int skel_configure(struct xdp_ct_bpf *skel, const struct device *d,
			  const struct shared *shared)
{
	__u64 own, bridge = 0;
	struct bpf_map_info stats;
	int master, none, err = 0;

	if (link_get(d->ifindex, &own, &master) || !own)
		return error("%s: not an Ethernet device", d->name);
	if (master)
		link_get(master, &bridge, &none);
	skel->rodata->own_mac = own;
	skel->rodata->bridge_mac = bridge ? bridge : own;
	skel->rodata->ingress = d->ifindex;
	skel->rodata->skb_mode = opt.mode == XDP_FLAGS_SKB_MODE;
	skel->rodata->counters = shared->map_extra & BPF_FLOWMAP_COUNTERS;

	bpf_program__set_autoload(skel->progs.xdp_ct, !opt.strict);
	bpf_program__set_autoload(skel->progs.xdp_ct_strict, opt.strict);
	bpf_program__set_autoload(skel->progs.xdp_ct_beside, false);
	bpf_map__set_autocreate(skel->maps.tcp_windows, opt.strict);
	bpf_map__set_map_extra(skel->maps.flowmap, shared->map_extra);
	if (opt.max_entries)
		bpf_map__set_max_entries(skel->maps.flowmap, opt.max_entries);

	if (shared->flowmap_fd >= 0)
		err = bpf_map__reuse_fd(skel->maps.flowmap, shared->flowmap_fd);
	bpf_map__set_max_entries(skel->maps.tcp_windows,
				 bpf_map__max_entries(skel->maps.flowmap));
	/* another xdp_ct's may have fewer reasons */
	if (!err && d->stats_fd >= 0 && !map_info(d->stats_fd, &stats) &&
	    stats.max_entries == bpf_map__max_entries(skel->maps.xdp_ct_stats))
		err = bpf_map__reuse_fd(skel->maps.xdp_ct_stats, d->stats_fd);
	if (!err && opt.strict && shared->windows_fd >= 0)
		err = bpf_map__reuse_fd(skel->maps.tcp_windows, shared->windows_fd);
	return err ? error("%s: its maps cannot be used: %s", d->name, strerror(-err)) : 0;
}

static int device_load(struct device *d, struct shared *shared)
{
	struct xdp_ct_bpf *skel = xdp_ct_bpf__open();
	int err;

	if (!skel)
		return error("xdp_ct.bpf.o: %s\n%s", strerror(errno), libbpf_text);

	err = skel_configure(skel, d, shared);
	if (err)
		goto out;
	err = xdp_ct_bpf__load(skel);
	if (err) {
		err = load_error(err);
		goto out;
	}

	d->new_fd = dup(bpf_program__fd(opt.strict ? skel->progs.xdp_ct_strict :
						     skel->progs.xdp_ct));
	if (shared->flowmap_fd < 0)
		shared->flowmap_fd = dup(bpf_map__fd(skel->maps.flowmap));
	if (opt.strict && shared->windows_fd < 0)
		shared->windows_fd = dup(bpf_map__fd(skel->maps.tcp_windows));
	if (d->new_fd < 0 || shared->flowmap_fd < 0 || (opt.strict && shared->windows_fd < 0))
		err = error("%s: %s", d->name, strerror(errno));
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
	const char *text = *netlink_text ? netlink_text : strerror(-err);

	if (err == -EPERM)
		return error_perm();
	if (err == -EBUSY || err == -EEXIST)
		return error("%s: another program is in the way: %s: see bpftool net",
			     d->name, text);
	if (err == -ERANGE || strstr(text, "MTU"))
		return error("%s: %s: lower the MTU, or use --mode skb", d->name, text);
	if (err == -EOPNOTSUPP && opt.mode == XDP_FLAGS_DRV_MODE)
		return error("%s: no native XDP: %s: or use --mode skb", d->name, text);
	return error("%s: attaching failed: %s", d->name, text);
}

static int check_attach(const struct device *d)
{
	if (d->dispatcher)
		return error("%s: has libxdp's dispatcher: see xdp-loader status, and xdp_ct(8)",
			     d->name);
	if (d->prog_id && d->prog_fd < 0)
		return error("%s: has XDP program %s: take it off, or run both by xdp-loader",
			     d->name, d->prog_name);
	if (d->prog_id && d->mode != opt.mode)
		return error("%s: xdp_ct is attached in the other mode: xdp_ct detach %s first",
			     d->name, d->name);
	return check_offloads(d);
}

/* What packets taught while a device had no program is not all there was. Packets
 * that come meanwhile teach anew: at most as many as there may be.
 */
static void windows_forget(int fd)
{
	struct bpf_map_info info;
	__u32 n = map_info(fd, &info) ? 0 : info.max_entries;
	__u64 key;

	while (n-- && !bpf_map_get_next_key(fd, NULL, &key))
		bpf_map_delete_elem(fd, &key);
}

/* The maps that there are, as they were made. If all devices that have them are to
 * get a new program there is nobody to share them with: what is not as it is
 * wanted now is made anew, and shows the same flows.
 */
static int find_shared(struct shared *shared, const struct device *devices, int num_devices)
{
	__u32 max_entries = opt.max_entries ? opt.max_entries : DEFAULT_ENTRIES;
	struct device *all, *one = NULL;
	bool all_named = true, fits;
	int num, i;

	*shared = (struct shared){ -1, -1, -1 };
	if (opt.counters || opt.strict) /* windows are known by the count of packets */
		shared->map_extra = BPF_FLOWMAP_COUNTERS;
	num = devices_open(&all, NULL, 0);
	if (num < 0)
		return -1;

	for (i = 0; i < num; i++) {
		if (all[i].dispatcher)
			continue; /* has maps of its own */
		all_named &= devices_have(devices, num_devices, all[i].ifindex);
		one = &all[i];
	}
	if (!one)
		goto out;
	if (all_named) {
		fits = one->flowmap.max_entries == max_entries &&
		       one->flowmap.map_extra == shared->map_extra;
		if (fits)
			shared->flowmap_fd = dup(one->flowmap_fd);
		else
			shared->old_fd = dup(one->flowmap_fd);
		goto out;
	}

	/* windows are learnt from both directions, and so by all devices */
	fits = (!opt.max_entries || one->flowmap.max_entries == max_entries) &&
	       !(shared->map_extra & ~one->flowmap.map_extra) && opt.strict == one->strict;
	if (!fits) {
		devices_close(all, num);
		return error("other devices have xdp_ct with other options: attach all at once");
	}
	shared->map_extra = one->flowmap.map_extra;
	shared->flowmap_fd = dup(one->flowmap_fd);
	if (opt.strict)
		shared->windows_fd = dup(one->windows_fd);
out:
	devices_close(all, num);
	return 0;
}

/* 2: pinned instead of the old one, 1: pinned, 0: was so already */
static int pin_flowmap(const struct shared *shared, const char *path)
{
	bool same, old;
	int fd;

	if (!bpf_obj_pin(shared->flowmap_fd, path))
		return 1;
	if (errno == EEXIST) {
		fd = bpf_obj_get(path);
		same = same_map(fd, shared->flowmap_fd);
		old = same_map(fd, shared->old_fd);
		if (fd >= 0)
			close(fd);
		if (same)
			return 0;
		if (!old)
			return error("%s is another map: remove it", path);
		if (!unlink(path) && !bpf_obj_pin(shared->flowmap_fd, path))
			return 2;
		error("%s: %s", path, strerror(errno));
		bpf_obj_pin(shared->old_fd, path);
		return -1;
	}
	return error("%s: %s: --pin needs a bpffs; ip netns exec hides it: use nsenter --net=",
		     path, strerror(errno));
}

/* Until this process ends nobody else looks for the shared map, or puts programs on */
static void take_turns(void)
{
	int fd = open("/run/xdp_ct.lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd >= 0)
		flock(fd, LOCK_EX);
}

static int attach(void)
{
	int num, i, err = -1, pinned = 0;
	char path[PATH_MAX];
	struct device *devices;
	struct shared shared;
	bool made = false;

	take_turns();
	num = devices_open(&devices, opt.names, opt.num_names);
	if (num < 0)
		return -1;
	if (find_shared(&shared, devices, num))
		goto out;

	for (i = 0; i < num; i++)
		if (check_attach(&devices[i]) || device_load(&devices[i], &shared))
			goto out;
	if (opt.pin) {
		snprintf(path, sizeof(path), "%s/flowmap", opt.pin);
		made = !mkdir(opt.pin, 0700);
		pinned = pin_flowmap(&shared, path);
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
		if (pinned)
			unlink(path);
		if (pinned == 2)
			bpf_obj_pin(shared.old_fd, path);
	} else if (opt.strict) {
		windows_forget(shared.windows_fd);
	}
out:
	if (err && made)
		rmdir(opt.pin);
	if (shared.flowmap_fd >= 0)
		close(shared.flowmap_fd);
	if (shared.windows_fd >= 0)
		close(shared.windows_fd);
	if (shared.old_fd >= 0)
		close(shared.old_fd);
	devices_close(devices, num);
	return err;
}

static int check_pin(const char *path)
{
	unsigned long long full;
	struct bpf_map_info info;
	int fd = bpf_obj_get(path);
	__u32 entries;
	bool ours;

	ours = fd >= 0 && !map_info(fd, &info) && info.type == BPF_MAP_TYPE_FLOWMAP &&
	       map_room(info.id, &entries, &full);
	if (fd >= 0)
		close(fd);
	return ours ? 0 : error("%s: no pinned flowmap of this network namespace: left as it is",
				path);
}

static int detach(void)
{
	char path[PATH_MAX];
	struct device *devices;
	int num, i, err = 0;

	take_turns();
	if (opt.pin) {
		snprintf(path, sizeof(path), "%s/flowmap", opt.pin);
		if (check_pin(path))
			return -1;
	}
	num = devices_open(&devices, opt.names, opt.num_names);
	if (num < 0)
		return -1;
	for (i = 0; i < num && !err; i++)
		if (devices[i].prog_fd < 0)
			err = error("%s: xdp_ct is not attached: see xdp_ct status",
				    devices[i].name);
		else if (devices[i].dispatcher)
			err = error("%s: is in libxdp's dispatcher: xdp-loader unload %s -i %u",
				    devices[i].name, devices[i].name, devices[i].prog_id);
	/* afterwards status would not find those that were not named */
	if (opt.json && !opt.num_names) {
		opt.names = calloc(num, sizeof(*opt.names));
		for (i = 0; i < num && opt.names; i++)
			opt.names[opt.num_names++] = strdup(devices[i].name);
	}
	for (i = 0; i < num && !err; i++) {
		err = device_set(&devices[i], devices[i].mode, devices[i].prog_fd, -1);
		if (err)
			error("%s: detaching failed: %s", devices[i].name, strerror(-err));
	}
	devices_close(devices, num);
	if (err || !opt.pin)
		return err;

	num = devices_open(&devices, NULL, 0);
	if (num < 0)
		return -1;
	devices_close(devices, num);
	if (num)
		return 0;
	if (unlink(path))
		return error("%s: %s", path, strerror(errno));
	rmdir(opt.pin);
	return 0;
}

/* Show */

void print_json(json_object *json)
{
	puts(json_object_to_json_string_ext(json, JSON_C_TO_STRING_NOSLASHESCAPE |
					    (opt.watch ? 0 : JSON_C_TO_STRING_PRETTY)));
	fflush(stdout);
	json_object_put(json);
}

void add_string(json_object *json, const char *name, const char *value)
{
	json_object_object_add(json, name, json_object_new_string(value));
}

void add_number(json_object *json, const char *name, __u64 value)
{
	json_object_object_add(json, name, json_object_new_int64(value));
}

void add_bool(json_object *json, const char *name, bool value)
{
	json_object_object_add(json, name, json_object_new_boolean(value));
}

const char *mode_name(__u32 mode)
{
	return mode == XDP_FLAGS_SKB_MODE ? "skb" :
	       mode == XDP_FLAGS_DRV_MODE ? "native" : "offload";
}

static json_object *status_device(const struct device *d)
{
	const struct bpf_map_info *map = &d->flowmap;
	bool counters = map->map_extra & BPF_FLOWMAP_COUNTERS;
	json_object *json = json_object_new_object();
	unsigned long long full = 0;
	__u32 entries = 0;

	add_string(json, "dev", d->name);
	add_bool(json, "attached", d->prog_fd >= 0);
	if (d->prog_fd < 0) {
		if (!opt.json)
			printf("%s: xdp_ct is not attached\n", d->name);
		return json;
	}
	add_string(json, "mode", mode_name(d->mode));
	add_number(json, "prog_id", d->prog_id);
	add_number(json, "flowmap_id", map->id);
	add_number(json, "max_entries", map->max_entries);
	map_room(map->id, &entries, &full);
	add_number(json, "entries", entries);
	add_number(json, "full", full);
	add_bool(json, "counters", counters);
	add_bool(json, "strict_tcp", d->strict);
	add_bool(json, "dispatcher", d->dispatcher);
	if (opt.json)
		return json;
	printf("%s: mode %s%s%s, program %u, flowmap %u (max_entries %u, %u entries",
	       d->name, mode_name(d->mode), d->strict ? " strict-tcp" : "",
	       d->dispatcher ? " in libxdp's dispatcher" : "", d->prog_id,
	       map->id, map->max_entries, entries);
	if (full)
		printf(", %llu flows did not fit", full);
	puts(counters ? ", counters)" : ")");
	return json;
}

/* What leaves by a device and must go through the stack, and why */
static void status_stack(json_object *json, const char *dev, json_object *reasons)
{
	json_object_object_add(json, "needs_stack", json_object_get(reasons));
	if (opt.json)
		return;
	json_object_object_foreach(reasons, reason, count)
		printf("%s: to it by the stack: %s flows, needs_stack=%s\n", dev,
		       json_object_get_string(count), reason);
}

static int status(void)
{
	json_object *json = json_object_new_object();
	json_object *list = json_object_new_array();
	bool loaded = !access(MODULAR_MAPS "/flowmap", F_OK);
	json_object *stack, *one, *reasons;
	struct entry *entries;
	struct device *devices, *all;
	int num, num_all, flows, i;

	num = devices_open(&devices, opt.names, opt.num_names);
	if (num < 0)
		return -1;
	num_all = devices_open(&all, NULL, 0);
	if (num_all < 0) {
		devices_close(devices, num);
		return -1;
	}
	flows = entries_get(all, num_all, &entries);
	devices_close(all, num_all);
	stack = entries_stack(entries, flows);
	free(entries);

	if (!opt.json)
		printf("module %s: %sloaded\n", MODULE, loaded ? "" : "not ");
	for (i = 0; i < num; i++) {
		const char *dev = devices[i].name;

		one = status_device(&devices[i]);
		if (!json_object_object_get_ex(stack, dev, &reasons))
			json_object_object_add(stack, dev, reasons = json_object_new_object());
		status_stack(one, dev, reasons);
		json_object_object_del(stack, dev);
		json_object_array_add(list, one);
	}
	devices_close(devices, num);

	/* those that xdp_ct is not on, and perhaps cannot send by */
	json_object_object_foreach(stack, dev, why) {
		if (opt.num_names)
			break;
		one = json_object_new_object();
		add_string(one, "dev", dev);
		add_bool(one, "attached", false);
		status_stack(one, dev, why);
		json_object_array_add(list, one);
	}
	json_object_put(stack);

	add_string(json, "module", MODULE);
	add_bool(json, "loaded", loaded);
	json_object_object_add(json, "devices", list);
	if (opt.json)
		print_json(json);
	else
		json_object_put(json);
	return flows < 0 ? -1 : 0;
}

/* Command line */

enum { OPT_SPORT = 256, OPT_DPORT, OPT_NEEDS_STACK };

#define OPTION_JSON	{ "json", 'j', NULL, 0, "Print JSON", 0 }
#define OPTION_WATCH(text) { "watch", 'w', NULL, 0, text, 0 }
#define OPTION_PIN	{ "pin", 'P', "DIR", 0, "Keep the flowmap at DIR/flowmap, too", 0 }
static const struct argp_option attach_options[] = {
	{ "mode",	'M', "native|skb", 0, "In the driver (default), or generic XDP", 0 },
	{ "counters",	'c', NULL, 0, "Count what is forwarded, by device and flow", 0 },
	{ "strict-tcp",	't', NULL, 0, "TCP outside its windows goes to the stack", 0 },
	{ "max-entries", 'n', "N", 0, "Size of the flowmap, two a connection (65536)", 0 },
	OPTION_PIN,
	OPTION_JSON,
	{}
};

static const struct argp_option detach_options[] = {
	OPTION_PIN,
	OPTION_JSON,
	{}
};

static const struct argp_option json_options[] = {
	OPTION_JSON,
	{}
};

static const struct argp_option stats_options[] = {
	OPTION_WATCH("Rates, each second"),
	OPTION_JSON,
	{}
};

static const struct argp_option filter_options[] = {
	{ "proto", 'p', "PROTO", 0, "tcp, udp, gre or a number", 1 },
	{ "src", 's', "ADDR[/LEN]", 0, "Source of the original direction", 1 },
	{ "dst", 'd', "ADDR[/LEN]", 0, "Destination of the original direction", 1 },
	{ "sport", OPT_SPORT, "PORT", 0, "Source port of the original direction", 1 },
	{ "dport", OPT_DPORT, "PORT", 0, "Destination port of the original direction", 1 },
	{ "family", 'f', "ipv4|ipv6", 0, "Family of addresses", 1 },
	{ "dev", 'i', "DEV", 0, "In or out by DEV", 1 },
	{ "mark", 'm', "MARK", 0, "Conntrack's mark", 1 },
	{ "zone", 'z', "ZONE", 0, "Conntrack's zone", 1 },
	{ "needs-stack", OPT_NEEDS_STACK, NULL, 0, "Only what is not on XDP", 1 },
	{}
};

static const struct argp_option flows_options[] = {
	OPTION_WATCH("Again each second"),
	OPTION_JSON,
	{}
};

static const struct command {
	const char			*name;
	int				(*run)(void);
	const struct argp_option	*options;
	const char			*args;
	const char			*doc;
	bool				filter;
} commands[] = {
	{ "attach", attach, attach_options, "DEV...",
	  "Put xdp_ct on all of the devices, or on none.\v"
	  "Examples:\n"
	  "  xdp_ct attach eth0 eth1\n"
	  "  xdp_ct attach --counters --strict-tcp eth0 eth1\n"
	  "  xdp_ct attach --mode skb wlan0" },
	{ "detach", detach, detach_options, "[DEV...]",
	  "Take xdp_ct off the devices, or off all.\v"
	  "Examples:\n"
	  "  xdp_ct detach\n"
	  "  xdp_ct detach eth0" },
	{ "status", status, json_options, "[DEV...]",
	  "Devices that have xdp_ct, with mode and map, and the module.\v"
	  "Examples:\n"
	  "  xdp_ct status\n"
	  "  xdp_ct status --json | jq '.devices[].dev'" },
	{ "stats", stats, stats_options, "[DEV...]",
	  "Packets forwarded, passed up by reason, dropped.\v"
	  "Examples:\n"
	  "  xdp_ct stats\n"
	  "  xdp_ct stats --watch eth0" },
	{ "flows", flows, flows_options, "",
	  "Flows, one direction a line, and why one is not on XDP.\v"
	  "Examples:\n"
	  "  xdp_ct flows\n"
	  "  xdp_ct flows -p tcp -s 10.0.1.0/24 --dport 443\n"
	  "  xdp_ct flows --needs-stack --watch", true },
	{ "monitor", monitor, json_options, "",
	  "Flows and devices as they come, change and go.\v"
	  "Examples:\n"
	  "  xdp_ct monitor -p udp --dport 53\n"
	  "  xdp_ct monitor --json | jq 'select(.event == \"destroy\")'", true },
};

static unsigned long parse_number(struct argp_state *state, const char *arg, const char *what,
				  unsigned long min, unsigned long max)
{
	unsigned long n;
	char *end;

	errno = 0;
	n = strtoul(arg, &end, 0);
	if (errno || *end || !*arg || n < min || n > max || *arg == '-')
		argp_error(state, "--%s: a number from %lu to %lu", what, min, max);
	return n;
}

static __u8 protocol(struct argp_state *state, const char *arg)
{
	return !strcmp(arg, "tcp") ? IPPROTO_TCP :
	       !strcmp(arg, "udp") ? IPPROTO_UDP :
	       !strcmp(arg, "gre") ? IPPROTO_GRE : parse_number(state, arg, "proto", 1, 255);
}

static void network(struct argp_state *state, const char *arg, void *addr, __u8 *family, __u8 *len)
{
	char text[INET6_ADDRSTRLEN];
	const char *slash = strchr(arg, '/');

	*family = strchr(arg, ':') ? AF_INET6 : AF_INET;
	*len = *family == AF_INET6 ? 128 : 32;
	snprintf(text, sizeof(text), "%.*s", (int)(slash ? slash - arg : (long)strlen(arg)), arg);
	if (inet_pton(*family, text, addr) != 1)
		argp_error(state, "%s is not an address", text);
	if (slash)
		*len = parse_number(state, slash + 1, "src and --dst: the length", 0, *len);
}

static error_t parse_filter(int key, char *arg, struct argp_state *state)
{
	struct filter *f = &opt.filter;

	switch (key) {
	case 'p':
		f->proto = protocol(state, arg);
		break;
	case 's':
		network(state, arg, f->addr.v6.saddr, &f->src_family, &f->src_len);
		break;
	case 'd':
		network(state, arg, f->addr.v6.daddr, &f->dst_family, &f->dst_len);
		break;
	case OPT_SPORT:
		f->sport = parse_number(state, arg, "sport", 1, 65535);
		break;
	case OPT_DPORT:
		f->dport = parse_number(state, arg, "dport", 1, 65535);
		break;
	case 'f':
		f->family = !strcmp(arg, "ipv4") ? AF_INET : !strcmp(arg, "ipv6") ? AF_INET6 : 0;
		if (!f->family)
			argp_error(state, "--family is ipv4 or ipv6");
		break;
	case 'i':
		f->ifindex = if_nametoindex(arg);
		if (!f->ifindex)
			argp_error(state, "%s: no such device in this network namespace", arg);
		break;
	case 'm':
		f->has_mark = true;
		f->mark = parse_number(state, arg, "mark", 0, UINT_MAX);
		break;
	case 'z':
		f->has_zone = true;
		f->zone = parse_number(state, arg, "zone", 0, 65535);
		break;
	case OPT_NEEDS_STACK:
		f->needs_stack = true;
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

static error_t parse_opt(int key, char *arg, struct argp_state *state)
{
	const struct command *command = state->input;

	switch (key) {
	case 'M':
		if (!strcmp(arg, "skb"))
			opt.mode = XDP_FLAGS_SKB_MODE;
		else if (strcmp(arg, "native"))
			argp_error(state, "--mode is native or skb");
		break;
	case 'c':
		opt.counters = true;
		break;
	case 't':
		opt.strict = true;
		break;
	case 'n':
		opt.max_entries = parse_number(state, arg, "max-entries", 2, UINT_MAX);
		break;
	case 'P':
		opt.pin = arg;
		break;
	case 'w':
		opt.watch = true;
		break;
	case 'j':
		opt.json = true;
		break;
	case ARGP_KEY_ARGS:
		opt.names = &state->argv[state->next];
		opt.num_names = state->argc - state->next;
		if (!*command->args)
			argp_error(state, "%s takes no device", command->name);
		break;
	case ARGP_KEY_END:
		if (!opt.num_names && command->run == attach)
			argp_error(state, "attach to which device?");
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

static int usage(FILE *to)
{
	size_t i;

	fputs("Usage: xdp_ct COMMAND [OPTION...] [DEV...]\n"
	      "Forward netfilter's offloaded connections in XDP.\n\n", to);
	for (i = 0; i < sizeof(commands) / sizeof(*commands); i++)
		fprintf(to, "  %-8s %.*s\n", commands[i].name,
			(int)strcspn(commands[i].doc, "\v"), commands[i].doc);
	fputs("\nExamples:\n"
	      "  xdp_ct attach eth0 eth1 --counters\n"
	      "  xdp_ct stats --watch\n"
	      "  xdp_ct flows -p tcp --dport 443\n"
	      "  xdp_ct detach\n"
	      "\n"
	      "Options: xdp_ct COMMAND --help\n"
	      "All is about the network namespace that xdp_ct runs in. For another:\n"
	      "  nsenter --net=/run/netns/NAME xdp_ct ...\n", to);
	return to == stdout ? EXIT_SUCCESS : argp_err_exit_status;
}

static const struct command *find_command(const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(commands) / sizeof(*commands); i++)
		if (!strcmp(name, commands[i].name))
			return &commands[i];
	return NULL;
}

int main(int argc, char **argv)
{
	const struct command *command = argc > 1 ? find_command(argv[1]) : NULL;
	static const struct argp filter = { .options = filter_options, .parser = parse_filter };
	static const struct argp_child children[] = { { &filter, 0, NULL, 0 }, {} };
	struct argp argp = { .parser = parse_opt };
	char name[32];
	int err;

	if (!command)
		return usage(argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") ||
					  !strcmp(argv[1], "help")) ? stdout : stderr);

	argp.options = command->options;
	argp.args_doc = command->args;
	argp.doc = command->doc;
	argp.children = command->filter ? children : NULL;
	snprintf(name, sizeof(name), "xdp_ct %s", command->name);
	argv[1] = name;
	argp_parse(&argp, argc - 1, argv + 1, 0, NULL, (void *)command);
	libbpf_set_print(keep_libbpf_text);
	err = command->run();
	/* what has come of it */
	if (!err && opt.json && (command->run == attach || command->run == detach))
		err = status();
	return err ? EXIT_FAILURE : EXIT_SUCCESS;
}
