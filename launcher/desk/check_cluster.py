"""`moe-zoo check-cluster`: each thing that a job needs of a cluster, with ✓ or what to change."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher import ROOT, terminal
from launcher.config import bash_layers
from launcher.config.releases import release_of
from launcher.config.settings import Settings, placeholders
from launcher.desk import site
from launcher.errors import UsageError
from launcher.job import container, request
from launcher.job.build import build
from launcher.job.draft import Job
from launcher.job.request import Request
from launcher.megatron.cluster_probe import MARK
from launcher.records import dataclass
from launcher.run import follow, slurm, start, submission

MODEL = ROOT / "launcher" / "desk" / "cluster-check.yaml"
PROBE = ROOT / "launcher" / "megatron" / "cluster_probe.py"
NODES = 2
LINES = 8  # of a failed job's log


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    good: bool | None  # None: it could not be looked at from here
    said: str  # what was found, or what is wrong and what to change

    def __str__(self) -> str:
        mark = {True: "✓", False: "✗", None: "-"}[self.good]
        return f"{mark} {self.name:11} {self.said}"


def check_cluster(words: Sequence[str]) -> int:
    """Print a line for each check; return 1 where one failed."""
    with_job = "--no-job" not in words
    left = [word for word in words if word != "--no-job"]
    if left:
        raise UsageError(
            f"check-cluster takes --no-job and no other words; given: {' '.join(left)}"
        )
    if os.environ.get("CLUSTER", "") in ("", "local", "template"):
        raise UsageError(
            "check-cluster needs CLUSTER=NAME, a config of a Slurm cluster; "
            "`moe-zoo init-cluster NAME` writes one"
        )
    asked = _request(os.environ)
    job = build(asked)
    print(f"{job.settings.CLUSTER}: {job.nodes} nodes × {job.tasks_per_node} for the check")
    failed = _show([*_names(job), *_slurm(job), *_paths(job), *_container(job)])
    if with_job and failed:
        print("no job was submitted: the lines with ✗ come first")
    elif with_job:
        failed = _show(_job(asked))
    return 1 if failed else 0


def _request(environ: Mapping[str, str]) -> Request:
    """Return the check's own job: two nodes, two minutes, no parallelism."""
    sizes = dict.fromkeys(("TP", "PP", "EP", "CP", "VPP", "MBS"), "1")
    given = {**environ, **sizes, "MODEL": str(MODEL), "NNODES": str(NODES), "RUN_TIME": "2"}
    given |= {"GBS": "1024", "SEQ_LEN": "64", "VERIFY": "0", "PR": "bf16", "SMOKE": "0"}
    given |= {"PRETRAIN": "1", "A2A_OVERLAP": "0", "OPTIMIZER_OFFLOAD": "0", "PROFILE": "0"}
    for name in ("LOAD_PATH", "DATA_PATH", "RESUBMIT", "RESUME", "TRAINING_PARAMS", "SEGMENT"):
        given.pop(name, None)
    layers, words = bash_layers.source(bash_layers.ENTRY, [], given)
    output = bash_layers.settings_of(layers).OUTPUT_PATH
    layers["TRAINING_SCRIPT_PATH"] = str(Path(output).absolute() / PROBE.name)
    for name in ("LOAD_PATH", "DATA_PATH", "SEGMENT"):
        layers.pop(name, None)
    if layers.get("GPU") == "none" and not layers.get("TASKS_PER_NODE"):
        layers["TASKS_PER_NODE"] = "2"
    return request.read(bash_layers.settings_of(layers), words, layers)


def _show(checks: Sequence[Check] | Iterator[Check]) -> int:
    """Print checks as they come; return how many failed."""
    failed = 0
    for check in checks:
        print(terminal.fold(str(check), terminal.width(sys.stdout), 14), flush=True)
        failed += check.good is False
    return failed


def _names(job: Job) -> Iterator[Check]:
    left = placeholders(job.settings)
    for line in left:
        yield Check("names", False, line)
    for line in job.doubts:
        yield Check("names", None, line)
    if not left:
        yield Check("names", True, f"no placeholder is left; {job.settings.origin('PARTITION')}")


def _slurm(job: Job) -> Iterator[Check]:
    """Check that Slurm answers and has the partition, the account and the MPI."""
    settings = job.settings
    if not shutil.which("sbatch"):
        yield Check("slurm", False, "sbatch is not on PATH: run this on a Slurm login node")
        return
    try:
        found = site.look()
    except (slurm.Refused, slurm.NoAnswer) as error:
        yield Check(
            "slurm", False, f"does not answer: {error}.{submission.advice(job, str(error))}"
        )
        return
    yield Check("slurm", True, f"{found.name}, Slurm {found.version}")
    yield _partition(job, found)
    account = settings.ACCOUNT
    if found.accounts is None:
        yield Check("account", None, f"{account or 'none'}; this Slurm has no accounts to ask for")
    elif account in found.accounts or (not account and found.accounts):
        yield Check("account", True, account or f"Slurm's default of {', '.join(found.accounts)}")
    else:
        yours = ", ".join(found.accounts)
        yield Check("account", False, f"ACCOUNT={account} is none of yours: {yours}")
    kind = settings.MPI_TYPE or ("pmix" if "pmix" in found.mpi else "none")
    if kind in (*found.mpi, "none"):
        missing = "" if kind != "none" else "; pmix is not there, and the training needs none"
        yield Check("mpi", True, f"srun --mpi={kind}{missing}")
    else:
        yield Check("mpi", False, f"MPI_TYPE={kind} is none of {', '.join(found.mpi)}")


def _partition(job: Job, found: site.Site) -> Check:
    name = job.settings.PARTITION
    names = (name or "").split(",")
    known = [one for one in found.partitions if one.name in names or (not name and one.default)]
    if not known:
        there = ", ".join(map(str, found.partitions))
        wrong = f"PARTITION={name} is none" if name else "PARTITION is not set, and none is default"
        return Check("partition", False, f"{wrong}; there are {there}")
    best = max(known, key=lambda one: one.nodes)
    if not best.up:
        return Check(
            "partition", False, f"{best} is down: ask its administrators, or choose another"
        )
    if best.nodes < job.nodes:
        return Check("partition", False, f"{best}: the check needs {job.nodes} nodes")
    if best.gpu and best.gpu != job.settings.GPU:
        return Check(
            "partition", False, f"{best} has {best.gpu}; GPU={job.settings.GPU}: change GPU"
        )
    if best.gpus and best.gpus < job.tasks_per_node:
        said = f"{best} has {best.gpus} GPUs a node: TASKS_PER_NODE={best.gpus}"
        return Check("partition", False, said)
    gpus = f", {best.gpus} {best.gpu or 'GPUs'} a node" if best.gpus else ""
    return Check("partition", True, f"{best}{gpus}")


def _paths(job: Job) -> Iterator[Check]:
    """Check what this machine sees of the job's paths."""
    settings = job.settings
    place = Path(settings.OUTPUT_PATH)
    there = next(path for path in (place, *place.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            yield Check("output", True, f"{place} can be written here")
    except OSError as error:
        said = f"OUTPUT_PATH={place}: {there} cannot be written: {error.strerror}"
        yield Check("output", False, said)
    for line in container.unseen(settings):
        yield Check("output", False, line)
    missing = container.missing(settings)
    for line in missing:
        yield Check("paths", False, line)
    if not missing:
        yield Check(
            "paths", True, "image, mounts and set-up file are there, as far as seen from here"
        )
    yield _megatron(settings)


def _megatron(settings: Settings) -> Check:
    if not settings.MEGATRON_PATH:
        return Check("megatron", True, "the installed megatron-core of this repository")
    path = Path(container.on_the_node(settings, settings.MEGATRON_PATH))
    if not path.is_dir():
        return Check("megatron", None, f"{path} is not on this machine; the job tells")
    if not (path / "pretrain_gpt.py").is_file():
        return Check("megatron", False, f"MEGATRON_PATH: {path} has no pretrain_gpt.py")
    release = release_of(path)
    return Check("megatron", True, f"{path}, release {release or 'unknown'}")


def _container(job: Job) -> Iterator[Check]:
    runtime = job.settings.CONTAINER_RUNTIME
    if runtime == "none":
        yield Check("container", True, "none: the tasks run on the node itself")
    elif runtime == "apptainer":
        found = shutil.which("apptainer")
        said = found or "apptainer is not on PATH here; the job tells whether nodes have it"
        yield Check("container", True if found else None, said)
    else:
        lines = container.without_pyxis(job.settings)
        said = "; ".join(lines) + ": CONTAINER_RUNTIME=apptainer or none does without"
        yield Check("container", not lines, said if lines else "srun has pyxis's --container-image")


def _job(asked: Request) -> Iterator[Check]:
    """Submit the job, wait for it, and check what its ranks have seen."""
    job = build(asked)
    try:
        place = Path(job.settings.OUTPUT_PATH)
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROBE, place / PROBE.name)
        prepared, _ = start.prepare(asked)
        job_id = submission.hand_over(prepared, asked.environ)
    except (UsageError, OSError) as error:
        yield Check("job", False, str(error))
        return
    print(f"job {job_id} on {job.nodes} nodes, at most 2 minutes; Ctrl-C cancels it …", flush=True)
    try:
        job_id, status = follow.follow(job_id, prepared.run_dir)
    except KeyboardInterrupt:
        slurm.run(["scancel", job_id], slurm.ASK_SECONDS)
        raise
    log = prepared.run_dir / "log"
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    told = _told(text)
    if told is None or "failed" in told or status != 0:
        reason = f"rank {told['rank']}: {told['failed']}" if told and "failed" in told else ""
        end = reason or " / ".join(text.splitlines()[-LINES:]) or "it wrote no log"
        yield Check("job", False, f"job {job_id} ended with status {status}: {end} ({log})")
        return
    yield Check("job", True, f"job {job_id} started and ended on {job.nodes} nodes")
    yield from judged(told, prepared)


def _told(text: str) -> dict[str, Any] | None:
    """Return what the job has printed: of a failure the first, else rank 0's."""
    lines = [line.partition(MARK)[2] for line in text.splitlines() if f"{MARK} {{" in line]
    told = [json.loads(line) for line in lines]
    return next((one for one in told if "failed" in one), told[0] if told else None)


def judged(told: Mapping[str, Any], job: Job) -> Iterator[Check]:
    """Yield the checks of what the ranks have seen."""
    settings, ranks, world = job.settings, told["ranks"], job.world_size
    hosts: dict[str, list[int]] = {}
    for one in ranks:
        hosts.setdefault(one["host"], []).append(one["local_rank"])
    spread = ", ".join(f"{host} {len(local)}" for host, local in hosts.items())
    right = [one["rank"] for one in ranks] == list(range(world)) and len(hosts) == job.nodes
    right = right and all(
        sorted(local) == list(range(job.tasks_per_node)) for local in hosts.values()
    )
    wanted = f"{job.nodes} × {job.tasks_per_node} were asked for"
    yield Check("ranks", right, f"{len(ranks)}: {spread}" + ("" if right else f"; {wanted}"))
    correct = told["sum"] == world * (world + 1) / 2
    rate = f"{told['backend']} over {world} ranks, {told['gigabytes_per_second']:.2f} GB/s"
    yield Check(
        "all-reduce", correct, rate if correct else f"{rate}: the sum {told['sum']} is wrong"
    )
    yield _gpus(ranks, job)
    writable = told["writable"]
    fix = f"OUTPUT_PATH={settings.OUTPUT_PATH} cannot be written from the nodes"
    yield Check("output", writable, "can be written from the nodes" if writable else fix)
    versions = dict(told["versions"])
    yield Check("versions", True, ", ".join(f"{name} {text}" for name, text in versions.items()))
    has, release = versions.get("megatron-core", ""), settings.MCORE_RELEASE_VERSION
    if not has.startswith(f"{release}.") and release != "dev":
        yield Check("megatron", False, f"MCORE_RELEASE_VERSION={release}, and the nodes have {has}")


def _gpus(ranks: Sequence[Mapping[str, Any]], job: Job) -> Check:
    kinds = sorted({str(one["gpu"]) for one in ranks})
    wanted = job.settings.GPU
    if kinds == ["None"]:
        none = wanted == "none"
        return Check("gpu", none, "none" if none else f"the nodes show no GPU; GPU={wanted}")
    few = min(one["gpus"] for one in ranks)
    right = wanted in (None, *(kind for kind in [wanted] if all(f"{kind}" in one for one in kinds)))
    fix = f"; GPU={wanted}: change GPU" if not right else ""
    return Check("gpu", right, f"{few} × {', '.join(kinds)}{fix}")
