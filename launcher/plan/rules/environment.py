"""Environment variables of the training processes that contradict the arguments."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.plan.rules.case import Case
from launcher.plan.rules.execution import OVERLAP

CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
# Transformer Engine's switches, and what each --attention-backend makes of them; None: either.
ATTENTION = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")
BACKENDS = {
    "flash": ("1", "0", "0"),
    "fused": ("0", "1", "0"),
    "unfused": ("0", "0", "1"),
    "auto": ("1", "1", "1"),
    "local": ("0", "0", "0"),
}
DETERMINISTIC = {
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",),
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
}


def connections(case: Case) -> Iterator[str]:
    """validate_args: before Blackwell, TP and CP overlap in order through one hardware queue."""
    split = case.tensor > 1 or case.context > 1
    blackwell = case.capability is not None and case.capability >= (10, 0)
    if not split or blackwell or case.capability is None:
        return
    others = (OVERLAP, "--use-megatron-fsdp", "--use-torch-fsdp2")
    if not case.has(*others) and case.variable(CONNECTIONS) != "1":
        yield (
            f"{case.said_variable(CONNECTIONS)}: TP={case.tensor}, CP={case.context} need it to be "
            f"1 on {case.gpu}"
        )


def connections_of_overlap(case: Case) -> Iterator[str]:
    """The all-to-all overlaps only where the GPU has several hardware queues."""
    if case.has(OVERLAP) and case.variable(CONNECTIONS) == "1":
        yield f"{case.said_variable(CONNECTIONS)}: {OVERLAP} wants more queues, 32 as a rule"


def connections_of_ucc(case: Case) -> Iterator[str]:
    """initialize_model_parallel: UCC sends beside the computation."""
    flag = "--pipeline-model-parallel-comm-backend"
    if case.text(flag) == "ucc" and case.variable(CONNECTIONS) == "1":
        yield f"{case.said_variable(CONNECTIONS)}: {case.said(flag)} needs more than 1, or none set"


def connections_of_fsdp(case: Case) -> Iterator[str]:
    """validate_args: FSDP gathers beside the computation."""
    for flag in ("--use-megatron-fsdp", "--use-torch-fsdp2"):
        if case.has(flag) and case.variable(CONNECTIONS) == "1":
            yield f"{case.said_variable(CONNECTIONS)}: {flag} needs more than 1, or none set"


def attention_backend(case: Case) -> Iterator[str]:
    """GPTModel (LanguageModule._set_attention_backend): the variables say what the flag says."""
    backend = case.text("--attention-backend") or "auto"
    for name, wanted in zip(ATTENTION, BACKENDS.get(backend, ())):
        value = case.variable(name)
        if value is not None and value != wanted:
            yield (
                f"{case.said_variable(name)}: --attention-backend {backend} wants {wanted}; "
                "unset the variable"
            )
            return


def graph_registration(case: Case) -> Iterator[str]:
    """validate_args: NCCL must not register buffers of expandable segments in CUDA graphs."""
    allocator = "PYTORCH_CUDA_ALLOC_CONF"
    if (
        case.since("0.16")
        and case.graphs == "transformer_engine"
        and "expandable_segments:True" in (case.variable(allocator) or "")
        and case.variable("NCCL_GRAPH_REGISTER") != "0"
    ):
        yield (
            f"{case.said_variable('NCCL_GRAPH_REGISTER')}: CUDA graphs with "
            f"{allocator}=expandable_segments:True need it to be 0"
        )


def activation_offload(case: Case) -> Iterator[str]:
    """validate_args: Transformer Engine from 2.10 on would offload weights as well."""
    name = "NVTE_CPU_OFFLOAD_V1"
    offloaded = case.has("--fine-grained-activation-offloading")
    if offloaded and case.since("0.16") and case.variable(name) != "1":
        yield f"{case.said_variable(name)}: --fine-grained-activation-offloading needs it to be 1"


def determinism(case: Case) -> Iterator[str]:
    """apply_determinism_to_args: deterministic mode refuses what is not."""
    flag = "--deterministic-mode"
    if not case.has(flag):
        return
    for other in ("--cross-entropy-loss-fusion", "--tp-comm-overlap"):
        if case.has(other):
            yield f"{case.said(flag)} cannot go with {case.said(other)}"
            return
    for name, allowed in DETERMINISTIC.items():
        if case.variable(name) not in (None, *allowed):
            yield f"{case.said_variable(name)}: {flag} needs it to be {' or '.join(allowed)}"
    algorithms = case.variable("NCCL_ALGO")
    safe = {"Ring", "CollnetDirect", "CollnetChain", "^NVLS"}
    if (
        algorithms is not None
        and not set(filter(None, map(str.strip, algorithms.split(",")))) <= safe
    ):
        yield f"{case.said_variable('NCCL_ALGO')}: {flag} needs it to be Ring"


ERRORS = (
    connections,
    connections_of_fsdp,
    connections_of_ucc,
    attention_backend,
    graph_registration,
    activation_offload,
    determinism,
)
RUN_TIME = ()
WARNINGS = (connections_of_overlap,)
