"""Builds, on the meta device, what a rank has before its first step, and counts its parameters.

The model's chunks, their gradients' buffers (DistributedDataParallel), the optimizer and the
schedule of the learning rate are Megatron's own. They have shapes and no memory. Nothing runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch

# Both sort and move the parameters' values, which are not there.
NOT_BUILT = {
    "use_megatron_fsdp": "Megatron FSDP's buffers and the optimizer",
    "use_torch_fsdp2": "PyTorch FSDP's buffers and the optimizer",
}

# Parameters of a bucket: the optimizer goes through all parameters once for each bucket.
ONE_BUCKET = 1 << 62


def build(args: Any, config: Any, own_training: bool) -> tuple[dict[str, int], list[str]]:
    """Build what this rank has before its first step, as pretrain_gpt.py has it built.

    Returns the counts of the model's parameters, and what was not built. Raises what Megatron
    raises.
    """
    from launcher.megatron.gpt import allow_mtp_with_attention_variants

    if own_training:
        allow_mtp_with_attention_variants()
    _seed(args)
    _stand_in()
    config.transformer.perform_initialization = False
    counts: dict[str, int] = {}

    def note(chunks: list[Any]) -> list[Any]:
        counts.update(count(chunks))
        return chunks

    config.pre_wrap_hooks.append(note)
    unwrapped = [part for name, part in NOT_BUILT.items() if getattr(args, name, False)]
    with torch.device("meta"):
        chunks = _build_model(args, config, wrap=not unwrapped and not args.skip_train)
    if unwrapped or args.skip_train:
        return counts, unwrapped
    with torch.device("meta"):
        _build_optimizer(args, chunks)
    return counts, []


def count(chunks: Iterable[Any]) -> dict[str, int]:
    """Count the parameters of a rank's model chunks.

    `parameters`: all; `expert_parameters`: those that Megatron reduces over the expert data
    parallel group alone; `routed_parameters`: those of the experts between which the router
    chooses, whatever the parallelism.
    """
    counts = {"parameters": 0, "expert_parameters": 0, "routed_parameters": 0}
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            counts["parameters"] += parameter.numel()
            if not getattr(parameter, "allreduce", True):
                counts["expert_parameters"] += parameter.numel()
            if ".mlp.experts." in name:
                counts["routed_parameters"] += parameter.numel()
    return counts


class Adam(torch.optim.Optimizer):
    """The place of Transformer Engine's FusedAdam: it takes the same words and never steps."""

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        master_weight_dtype: Any = None,
        exp_avg_dtype: Any = None,
        exp_avg_sq_dtype: Any = None,
        use_decoupled_grad: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )


def _stand_in() -> None:
    """Put the meta device, and what has no values, in the place of a GPU's."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    torch.cuda.current_device = lambda: torch.device("meta")  # type: ignore[assignment, return-value]
    torch.cuda.graph_pool_handle = lambda: (0, 0)  # type: ignore[assignment, return-value]
    optimizer.Adam = distrib_optimizer.Adam = Adam
    type_of = torch.Tensor.type

    def cuda_type(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        # The optimizers sort parameters by these names.
        if dtype is None:
            return f"torch.cuda.{type_of(self).rpartition('.')[2]}"
        return type_of(self, dtype, *args, **kwargs)

    torch.Tensor.type = cuda_type  # type: ignore[method-assign]
    torch.Tensor.cpu = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    # Gloo's and NCCL's only use here is to agree on values that are not there.
    torch.distributed.barrier = lambda *args, **kwargs: None


def _seed(args: Any) -> None:
    """Make the random number tracker that the job asks for; a CUDA graph needs a special one."""
    from megatron.core.tensor_parallel import random

    if args.cuda_graph_impl == "none":
        random.model_parallel_cuda_manual_seed(args.seed)
        return
    # A graph's states are a GPU's; a CPU has none to fork.
    random.initialize_rng_tracker(use_cudagraphable_rng=True)
    random.get_cuda_rng_tracker().fork = lambda *args, **kwargs: contextlib.nullcontext()


def _build_model(args: Any, config: Any, wrap: bool) -> list[Any]:
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.models.gpt import GPTModelBuilder
    from megatron.training.training import get_megatron_ddp_config

    buffers = get_megatron_ddp_config(args)
    buffers.bucket_size = ONE_BUCKET
    return GPTModelBuilder(config).build_distributed_models(
        ProcessGroupCollection.use_mpu_process_groups(),
        ddp_config=buffers,
        overlap_param_gather_with_optimizer_step=args.overlap_param_gather_with_optimizer_step,
        wrap_with_ddp=wrap,
        data_parallel_random_init=False,
    )


def _build_optimizer(args: Any, chunks: list[Any]) -> None:
    from megatron.core.optimizer import get_megatron_optimizer
    from megatron.training.training import (
        get_megatron_optimizer_config,
        get_optimizer_param_scheduler,
    )

    config, overrides = get_megatron_optimizer_config(args)
    optimizer = get_megatron_optimizer(
        config, chunks, config_overrides=overrides, use_gloo_process_groups=False
    )
    get_optimizer_param_scheduler(optimizer)
