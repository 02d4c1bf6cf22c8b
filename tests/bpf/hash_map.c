// SPDX-License-Identifier: GPL-2.0-only
/*
 * The cases that the kernel's own selftests have for a hash map, on the map type
 * whose number is the argument; with a second, so many of them. Their source is the
 * kernel's test_maps.c and map_tests/htab_map_batch_ops.c as they are, but for the
 * type.
 */
#include <bpf/bpf.h>

static unsigned int type;

static enum bpf_map_type instead_of(enum bpf_map_type t)
{
	return t == BPF_MAP_TYPE_HASH ? type : t;
}

#define bpf_map_create(t, ...) bpf_map_create(instead_of(t), __VA_ARGS__)
#include "test_maps.cases.c"
#include "map_tests/htab_map_batch_ops.c"

static void hashmap(void)
{
	test_hashmap(0, NULL);
}

static void hashmap_sizes(void)
{
	test_hashmap_sizes(0, NULL);
}

static void hashmap_walk(void)
{
	test_hashmap_walk(0, NULL);
}

static void map_stress(void)
{
	run_parallel(TASKS, test_hashmap_walk, NULL);
	run_parallel(TASKS, test_hashmap, NULL);
	run_parallel(TASKS, test_hashmap_sizes, NULL);
}

static const struct {
	const char *name;
	void (*run)(void);
} cases[] = {
	{ "test_hashmap", hashmap },
	{ "test_hashmap_sizes", hashmap_sizes },
	{ "test_hashmap_walk", hashmap_walk },
	{ "test_map_large", test_map_large },
	{ "test_map_rdonly", test_map_rdonly },
	{ "test_map_wronly", test_map_wronly_hash },
	{ "test_htab_map_batch_ops", htab_map_batch_ops },
	{ "test_map_parallel", test_map_parallel },
	{ "test_map_stress", map_stress },
};

/* A case ends by assert() or exit(), so each has a process of its own */
static bool passes(void (*run)(void))
{
	int status = -1;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (!pid) {
		dup2(STDOUT_FILENO, STDERR_FILENO);
		run();
		exit(0);
	}
	return waitpid(pid, &status, 0) == pid && !status;
}

int main(int argc, char **argv)
{
	unsigned int i, n, failed = 0;

	if (argc < 2) {
		fprintf(stderr, "usage: hash_map TYPE [CASES]\n");
		return 2;
	}
	type = strtoul(argv[1], NULL, 0);
	n = argc > 2 ? strtoul(argv[2], NULL, 0) : ARRAY_SIZE(cases);
	for (i = 0; i < n && i < ARRAY_SIZE(cases); i++) {
		bool ok = passes(cases[i].run);

		printf("%sok - test_maps: %s\n", ok ? "" : "not ", cases[i].name);
		failed += !ok;
	}
	return !!failed;
}
