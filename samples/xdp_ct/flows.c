// SPDX-License-Identifier: GPL-2.0-only
/*
 * xdp_ct flows and xdp_ct monitor: the flowmap, and how it changes
 *
 * monitor compares what it finds with what it found before: a flow that comes
 * and goes between two looks is not seen.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <bpf/libbpf.h>

#include "xdp_ct.h"

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof(*(a)))
#define BATCH		1024	/* entries of one system call */
#define NOT_ATTACHED	0x80000000 /* to where it comes in: one of the value's flags */
#define NOT_ON_XDP	(BPF_FLOWMAP_NEEDS_STACK | NOT_ATTACHED)

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
	{ BPF_FLOWMAP_HOOKS,	"hooks" },
	{ NOT_ATTACHED,		"not_attached" },
};

/* Entries */

/* Each map has all flows of the namespace. One is shown as the map of the device
 * that it comes in by has it, which counts it; as the first has it, if none is that.
 * What that device is adds to the reasons for the stack, or takes one away.
 */
static bool is_shown(const struct device *devices, int num, int i, struct entry *e)
{
	int j;

	for (j = 0; j < num; j++) {
		if (devices[j].flowmap_fd < 0 || devices[j].ifindex != (int)e->key.ifindex)
			continue;
		/* the dispatcher's programs do not know their mode */
		if (devices[j].mode == XDP_FLAGS_SKB_MODE && !devices[j].dispatcher)
			e->value.flags &= ~BPF_FLOWMAP_NO_XMIT;
		return devices[j].flowmap.id == devices[i].flowmap.id;
	}
	e->value.flags |= NOT_ATTACHED;
	for (j = 0; devices[j].flowmap_fd < 0; j++)
		;
	return j == i;
}

int entries_get(const struct device *devices, int num_devices, struct entry **entries)
{
	struct bpf_flowmap_value *values = calloc(BATCH, sizeof(*values));
	struct bpf_flowmap_key *keys = calloc(BATCH, sizeof(*keys)), at;
	int num = 0, err = keys && values ? 0 : -ENOMEM, d;
	struct entry *more;
	bool first;
	__u32 n, i;

	*entries = NULL;
	for (d = 0; d < num_devices; d++) {
		if (devices[d].flowmap_fd < 0 || device_shares(devices, d))
			continue;
		for (first = true; !err; first = false) {
			n = BATCH;
			err = bpf_map_lookup_batch(devices[d].flowmap_fd, first ? NULL : &at, &at,
						   keys, values, &n, NULL);
			if (err && err != -ENOENT)
				break;
			more = realloc(*entries, (num + n + 1) * sizeof(**entries));
			if (!more) {
				err = -ENOMEM;
				break;
			}
			*entries = more;
			for (i = 0; i < n; i++) {
				more[num] = (struct entry){ keys[i], values[i] };
				more[num].counters = devices[d].flowmap.map_extra &
						     BPF_FLOWMAP_COUNTERS;
				num += is_shown(devices, num_devices, d, &more[num]);
			}
			if (!n)
				break;
		}
		if (err == -ENOENT) /* the end */
			err = 0;
	}
	free(keys);
	free(values);
	if (!err)
		return num;
	free(*entries);
	*entries = NULL;
	return error("flowmap: %s", strerror(-err));
}

json_object *entries_stack(const struct entry *entries, int num)
{
	json_object *json = json_object_new_object(), *dev, *count;
	char name[IF_NAMESIZE];
	size_t f;
	int i;

	for (i = 0; i < num; i++) {
		const struct bpf_flowmap_value *value = &entries[i].value;

		if (!(value->flags & NOT_ON_XDP) || !if_indextoname(value->ifindex, name))
			continue;
		if (!json_object_object_get_ex(json, name, &dev))
			json_object_object_add(json, name, dev = json_object_new_object());
		for (f = 0; f < ARRAY_SIZE(stack_flags); f++) {
			if (!(value->flags & stack_flags[f].flag))
				continue;
			if (!json_object_object_get_ex(dev, stack_flags[f].name, &count))
				add_number(dev, stack_flags[f].name, 1);
			else
				json_object_int_inc(count, 1);
		}
	}
	return json;
}

/* As JSON */

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

static json_object *flow_json(const struct entry *e)
{
	json_object *in = json_object_new_object(), *out = json_object_new_object();
	json_object *flow = json_object_new_object();
	json_object *why = json_object_new_array();
	const struct bpf_flowmap_value *value = &e->value;
	const struct bpf_flowmap_key *key = &e->key;
	struct timespec now;
	char number[16];
	size_t i;

	snprintf(number, sizeof(number), "%u", key->l4proto);
	add_string(flow, "protocol", key->l4proto == IPPROTO_TCP ? "tcp" :
		    key->l4proto == IPPROTO_UDP ? "udp" :
		    key->l4proto == IPPROTO_GRE ? "gre" : number);
	add_string(flow, "direction", value->flags & BPF_FLOWMAP_REPLY ? "reply" : "original");
	if (key->l4proto == IPPROTO_TCP && value->tcp_state < ARRAY_SIZE(tcp_states))
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
	if (e->counters) {
		add_number(flow, "packets", value->packets);
		add_number(flow, "bytes", value->bytes);
	}
	clock_gettime(CLOCK_MONOTONIC, &now);
	add_number(flow, "idle", now.tv_sec > value->last_used ?
		    now.tv_sec - value->last_used : 0);
	add_number(flow, "status", value->ct_status);
	add_number(flow, "mark", value->ct_mark);
	add_number(flow, "zone", value->ct_zone);
	add_number(flow, "id", value->ct_id);
	for (i = 0; i < ARRAY_SIZE(stack_flags); i++)
		if (value->flags & stack_flags[i].flag)
			json_object_array_add(why, json_object_new_string(stack_flags[i].name));
	json_object_object_add(flow, "needs_stack", why);
	return flow;
}

/* As text: as conntrack -L has it, one direction a line */

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
	for (i = 0; i < ARRAY_SIZE(fields); i++)
		if (text_of(flow, fields[i]))
			printf(" %s=%s", fields[i], text_of(flow, fields[i]));
	json_object_object_get_ex(flow, "needs_stack", &why);
	for (i = 0; i < json_object_array_length(why); i++)
		printf(" needs_stack=%s",
		       json_object_get_string(json_object_array_get_idx(why, i)));
	putchar('\n');
}

/* Which are shown */

/* The first @len bits are the same */
static bool same_net(const __be32 *a, const __be32 *b, unsigned int len)
{
	unsigned int i;

	for (i = 0; len; i++) {
		unsigned int bits = len < 32 ? len : 32;

		if ((ntohl(a[i]) ^ ntohl(b[i])) >> (32 - bits))
			return false;
		len -= bits;
	}
	return true;
}

static bool flow_matches(const struct entry *e)
{
	const union bpf_flowmap_addrs *addr = &e->key.addr;
	__be16 sport = e->key.sport, dport = e->key.dport;
	bool reply = e->value.flags & BPF_FLOWMAP_REPLY;
	const struct filter *f = &opt.filter;
	const __be32 *src, *dst;

	if (reply) { /* what goes back to the client has its tuple mirrored */
		addr = &e->value.addr;
		sport = e->value.dport;
		dport = e->value.sport;
	}
	src = e->key.family == AF_INET ? &addr->v4.saddr : addr->v6.saddr;
	dst = e->key.family == AF_INET ? &addr->v4.daddr : addr->v6.daddr;

	return (!f->family || f->family == e->key.family) &&
	       (!f->proto || f->proto == e->key.l4proto) &&
	       (!f->sport || f->sport == ntohs(sport)) &&
	       (!f->dport || f->dport == ntohs(dport)) &&
	       (!f->src_family || (f->src_family == e->key.family &&
		same_net(f->addr.v6.saddr, reply ? dst : src, f->src_len))) &&
	       (!f->dst_family || (f->dst_family == e->key.family &&
		same_net(f->addr.v6.daddr, reply ? src : dst, f->dst_len))) &&
	       (!f->ifindex || f->ifindex == (int)e->key.ifindex ||
		f->ifindex == (int)e->value.ifindex) &&
	       (!f->has_mark || f->mark == e->value.ct_mark) &&
	       (!f->has_zone || f->zone == e->value.ct_zone) &&
	       (!f->needs_stack || e->value.flags & NOT_ON_XDP);
}

/* Flows */

static int flows_once(void)
{
	json_object *list = json_object_new_array(), *flow;
	struct device *devices;
	struct entry *entries;
	int num, devs, i;

	devs = devices_open(&devices, NULL, 0);
	if (devs <= 0)
		return devs ? -1 :
		       error("xdp_ct is on no device of this network namespace: xdp_ct attach DEV");
	num = entries_get(devices, devs, &entries);
	devices_close(devices, devs);
	for (i = 0; i < num; i++) {
		if (!flow_matches(&entries[i]))
			continue;
		flow = flow_json(&entries[i]);
		if (opt.json) {
			json_object_array_add(list, flow);
		} else {
			flow_print(flow);
			json_object_put(flow);
		}
	}
	free(entries);
	if (opt.json && num >= 0)
		print_json(list);
	else
		json_object_put(list);
	return num < 0 ? -1 : 0;
}

int flows(void)
{
	bool clear = opt.watch && !opt.json && isatty(STDOUT_FILENO);
	int err;

	do {
		if (clear)
			fputs("\033[H\033[2J", stdout);
		err = flows_once();
		if (opt.watch && !clear && !opt.json)
			putchar('\n');
		fflush(stdout);
	} while (!err && opt.watch && !sleep(1));
	return err;
}

/* Monitor */

/* What is there at one look */
struct look {
	struct entry	*entries; /* by key */
	int		num;
	struct device	*devices; /* by number; without file descriptors */
	int		num_devices;
};

static int cmp_entries(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct bpf_flowmap_key));
}

static int cmp_devices(const void *a, const void *b)
{
	return ((const struct device *)a)->ifindex - ((const struct device *)b)->ifindex;
}

static void look_free(struct look *l)
{
	free(l->entries);
	free(l->devices);
}

static int look_at(struct look *l)
{
	int i;

	memset(l, 0, sizeof(*l));
	l->num_devices = devices_open(&l->devices, NULL, 0);
	if (l->num_devices < 0)
		return -1;
	l->num = entries_get(l->devices, l->num_devices, &l->entries);
	if (l->num < 0)
		return -1;
	for (i = 0; i < l->num_devices; i++)
		device_close(&l->devices[i]);
	if (l->num)
		qsort(l->entries, l->num, sizeof(*l->entries), cmp_entries);
	qsort(l->devices, l->num_devices, sizeof(*l->devices), cmp_devices);
	return 0;
}

/* [1763708400.123456]       new ..., much as conntrack -E -o timestamp, or a line of JSON */
static json_object *event_begin(const char *event)
{
	json_object *json = json_object_new_object();
	struct timespec now;
	char text[32];

	clock_gettime(CLOCK_REALTIME, &now);
	snprintf(text, sizeof(text), "%lld.%06ld", (long long)now.tv_sec, now.tv_nsec / 1000);
	json_object_object_add(json, "time", json_object_new_double_s(strtod(text, NULL), text));
	add_string(json, "event", event);
	if (!opt.json)
		printf("[%s] %9s ", text, event);
	return json;
}

static void event_flow(const char *event, const struct entry *e)
{
	json_object *json, *flow;

	if (!flow_matches(e))
		return;
	json = event_begin(event);
	flow = flow_json(e);
	if (opt.json) {
		json_object_object_add(json, "flow", flow);
		print_json(json);
		return;
	}
	flow_print(flow);
	json_object_put(flow);
	json_object_put(json);
}

static void event_device(const char *event, const struct device *d)
{
	json_object *json = event_begin(event);

	if (opt.json) {
		add_string(json, "dev", d->name);
		add_string(json, "mode", mode_name(d->mode));
		add_bool(json, "strict_tcp", d->strict);
		add_number(json, "prog_id", d->prog_id);
		print_json(json);
		return;
	}
	printf("%s mode %s%s program %u\n", d->name, mode_name(d->mode),
	       d->strict ? " strict-tcp" : "", d->prog_id);
	json_object_put(json);
}

/* Not what changes with each packet */
static bool flow_changed(const struct entry *a, const struct entry *b)
{
	return a->value.ct_id != b->value.ct_id || a->value.flags != b->value.flags ||
	       a->value.tcp_state != b->value.tcp_state ||
	       a->value.ct_mark != b->value.ct_mark ||
	       memcmp(&a->value.ifindex, &b->value.ifindex,
		      offsetof(struct bpf_flowmap_value, ct_status) -
		      offsetof(struct bpf_flowmap_value, ifindex));
}

static void compare(const struct look *old, const struct look *new)
{
	int a = 0, b = 0, cmp;

	while (a < old->num_devices || b < new->num_devices) {
		cmp = a == old->num_devices ? 1 : b == new->num_devices ? -1 :
		      cmp_devices(&old->devices[a], &new->devices[b]);
		if (cmp < 0)
			event_device("detach", &old->devices[a++]);
		else if (cmp > 0)
			event_device("attach", &new->devices[b++]);
		else if (old->devices[a++].prog_id != new->devices[b++].prog_id)
			event_device("replace", &new->devices[b - 1]);
	}
	for (a = 0, b = 0; a < old->num || b < new->num;) {
		cmp = a == old->num ? 1 : b == new->num ? -1 :
		      cmp_entries(&old->entries[a], &new->entries[b]);
		if (cmp < 0)
			event_flow("destroy", &old->entries[a++]);
		else if (cmp > 0)
			event_flow("new", &new->entries[b++]);
		else if (flow_changed(&old->entries[a++], &new->entries[b++]))
			event_flow("update", &new->entries[b - 1]);
	}
	fflush(stdout);
}

int monitor(void)
{
	const long shortest = 200000000; /* ns */
	struct timespec start, end, pause;
	struct look old, new;
	long long took;

	opt.watch = true; /* a line each */
	if (look_at(&old))
		return -1;
	for (;;) {
		clock_gettime(CLOCK_MONOTONIC, &start);
		if (look_at(&new))
			return -1;
		compare(&old, &new);
		look_free(&old);
		old = new;
		clock_gettime(CLOCK_MONOTONIC, &end);
		/* a tenth of a CPU at most, however large the map is */
		took = (end.tv_sec - start.tv_sec) * 1000000000LL + end.tv_nsec - start.tv_nsec;
		took = 9 * took > shortest ? 9 * took : shortest;
		pause = (struct timespec){ took / 1000000000, took % 1000000000 };
		nanosleep(&pause, NULL);
	}
}
