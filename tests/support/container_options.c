/*
 * Stands in for NVIDIA's pyxis plugin: takes the options that the launcher uses, and tells each task
 * what it was given, in TOLD_<name>. It starts no container. It also takes sbatch's --segment, which
 * Slurm itself knows from 23.11 on.
 */
#include <slurm/spank.h>
#include <stdio.h>

SPANK_PLUGIN(container_options, 1);

static const char *const names[] = {"container_image", "container_mounts", "container_workdir",
				    "no_container_mount_home", "segment"};
static char given[5][4096];

static int take(int which, const char *value, int remote)
{
	snprintf(given[which], sizeof(given[which]), "%s", value && *value ? value : "yes");
	return 0;
}

static struct spank_option options[] = {
	{"container-image", "IMAGE", "image of the container", 1, 0, take},
	{"container-mounts", "SOURCE:TARGET[,...]", "mounts into the container", 1, 1, take},
	{"container-workdir", "PATH", "working directory in the container", 1, 2, take},
	{"no-container-mount-home", NULL, "leave the home directory out", 0, 3, take},
	{"segment", "NODES", "nodes that share a domain", 1, 4, take},
	SPANK_OPTIONS_TABLE_END,
};

int slurm_spank_init(spank_t spank, int argc, char *argv[])
{
	for (int i = 0; options[i].name; i++)
		if (spank_option_register(spank, &options[i]) != ESPANK_SUCCESS)
			return -1;
	return 0;
}

int slurm_spank_task_init(spank_t spank, int argc, char *argv[])
{
	char name[64];

	for (int i = 0; options[i].name; i++) {
		snprintf(name, sizeof(name), "TOLD_%s", names[i]);
		if (given[i][0])
			spank_setenv(spank, name, given[i], 1);
	}
	return 0;
}
