/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * Numbers of BPF map types that modules register
 *
 * A modular type keeps its number on every kernel, far from enum
 * bpf_map_type. The upper half of the range is for experiments and for types
 * that never leave their owner's machines; the lower half is assigned here.
 */
#ifndef _UAPI_LINUX_BPF_MODULAR_MAPS_H
#define _UAPI_LINUX_BPF_MODULAR_MAPS_H

#define BPF_MAP_TYPE_MODULAR_MIN	0x10000
#define BPF_MAP_TYPE_MODULAR_LOCAL	0x18000
#define BPF_MAP_TYPE_MODULAR_MAX	0x1ffff

/* Assigned: BPF_MAP_TYPE_FLOWMAP	0x10001	linux/bpf_flowmap.h */

#endif /* _UAPI_LINUX_BPF_MODULAR_MAPS_H */
