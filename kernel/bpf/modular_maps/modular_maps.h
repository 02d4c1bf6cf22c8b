/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _MODULAR_MAPS_H
#define _MODULAR_MAPS_H

#include <linux/bpf.h>

extern const struct bpf_iter_seq_info modular_map_iter_seq_info;

#endif /* _MODULAR_MAPS_H */
