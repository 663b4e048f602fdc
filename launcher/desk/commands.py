"""The desk's commands. Their docstrings are their help; each imports only what it needs."""

from __future__ import annotations

from collections.abc import Sequence


def show_list(words: Sequence[str]) -> int:
    """List the models, clusters and recipes there are, or your runs.

    Models and recipes show the GPU and ranks, the memory of the fullest rank and whether it fits;
    the cluster is CLUSTER's. Runs show state, age and speed, the newest first. They are looked for
    below the folders, or below OUTPUT_PATH, or below CLUSTER's OUTPUT_PATH, and in Slurm's queue.
    """
    from launcher.desk import listing

    return listing.show(words)


def status(words: Sequence[str]) -> int:
    """Print the state of runs: of those that wait or run, or of those that you name.

    RUN is a run directory, its name, or the id of a job.
    """
    from launcher.desk import status

    return status.status(words)


def logs(words: Sequence[str]) -> int:
    """Print the end of a run's log; -f goes on until the run is over.

    It goes on through requeues and through jobs that continue the run. Without RUN it is the newest
    one. -n says how many lines of the end are shown: 40 unless you say otherwise.
    """
    from launcher.desk import logs

    return logs.logs(words)


def cancel(words: Sequence[str]) -> int:
    """Cancel the jobs of runs. Checkpoints stay, and `resume` goes on from them."""
    from launcher.desk import control

    return control.cancel(words)


def resume(words: Sequence[str]) -> int:
    """Submit a run's own script again, which goes on after the run's last checkpoint.

    Nothing is submitted while a job of the run waits or runs.
    """
    from launcher.desk import control

    return control.resume(words)


def init_cluster(words: Sequence[str]) -> int:
    """Write a cluster config, filled in with what Slurm tells of this cluster.

    It asks sinfo, scontrol and sacctmgr, and looks for pyxis and Apptainer. What they cannot tell
    is taken from variables: CONTAINER_IMAGE, CONTAINER_MOUNTS, MEGATRON_PATH, OUTPUT_PATH and more.
    The rest stays YOUR_…, to fill in. NAME is a name, or the path of a new .conf.
    """
    from launcher.desk import init_cluster

    return init_cluster.init_cluster(words)


def check_cluster(words: Sequence[str]) -> int:
    """Check a cluster config, thing by thing, each with a ✓ or with what to change.

    The last check is a job of two minutes on two nodes. Its ranks are counted, add numbers up over
    the network, and tell their software's versions. --no-job leaves the job out.
    """
    from launcher.desk import check_cluster

    return check_cluster.check_cluster(words)


def version(words: Sequence[str]) -> int:
    """Print the versions of the launcher and of what it uses."""
    from launcher.desk import version

    return version.version(words)
