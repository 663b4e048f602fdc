"""CLUSTER=local: fit a job to this machine's GPUs or CPU; torchrun starts it."""

from __future__ import annotations

from launcher.config import parallelism
from launcher.errors import UsageError
from launcher.job import cpu, training
from launcher.job.draft import Draft
from launcher.job.request import Machine, Request

SMOKE_RANKS = 4
ORIGIN = "CLUSTER=local"
# Their defaults lie in the home directory or /tmp.
CACHES = ("TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def smoke_ranks(machine: Machine) -> int:
    """Return how many ranks a smoke run may have on this machine."""
    return min(SMOKE_RANKS, machine.gpus or SMOKE_RANKS)


def fit(draft: Draft, request: Request) -> Draft:
    """Return the job for this machine: on its GPUs, or on the CPU with as few ranks as possible.

    Raises UsageError where it needs more processes than this machine can have, or its training
    script is not here.
    """
    settings, machine = draft.settings, request.machine
    try:
        least = parallelism.read(draft.arguments).least_ranks
    except ValueError as error:
        raise UsageError(str(error)) from None
    ranks = least if settings.SMOKE or not machine.gpus else machine.gpus
    if not machine.gpus and ranks > max(SMOKE_RANKS, machine.cpus):
        raise UsageError(
            f"{settings.MODEL_NAME} needs {ranks} ranks as it is, and this machine has no GPU: "
            "SMOKE=1 shrinks it, and smaller TP, PP, EP or CP need fewer ranks"
        )
    if not machine.gpus:
        draft = cpu.without_gpus(draft, ORIGIN)
    elif not machine.transformer_engine:
        draft = cpu.without_transformer_engine(draft, ORIGIN)
    entry = training.entry_environment(settings)
    if entry and not request.script_is_here:
        script = entry["TRAINING_SCRIPT_PATH"][0]
        raise UsageError(f"TRAINING_SCRIPT_PATH={script!r} (default: in MEGATRON_PATH) is not here")
    caches = {name: (f"{settings.OUTPUT_PATH}/cache/{name.lower()}", "local") for name in CACHES}
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))
    return draft.change(
        environment={**draft.environment, **caches, **entry},
        program=(str(machine.python), "-u", *torchrun, str(training.ENTRY)),
        nodes=1,
        tasks_per_node=ranks,
    )
