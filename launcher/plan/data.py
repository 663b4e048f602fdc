"""The plan of one job for tools: sizes in bytes, operations and numbers of parameters."""

from __future__ import annotations

from typing import Any

from launcher.config.gpus import GPUS
from launcher.plan import flops, memory, parameters, published, stages
from launcher.plan.plan import Shaped, Site

# The terms that a rank's memory is shown by.
MEMORY = ("weights", "gradients", "optimizer", "activations", "logits", "working", "framework")


def as_data(made: Shaped, site: Site) -> dict[str, Any]:
    """Return the plan for tools: sizes in bytes, operations and numbers of parameters."""
    shape = made.shape
    whole = parameters.whole(shape.model)
    training, parallel = shape.training, shape.parallel
    found = published.nearest(site.model, site.gpu, shape)
    return {
        "parallelism": {
            "world_size": parallel.world,
            "tensor": parallel.tensor,
            "context": parallel.context,
            "data": parallel.data,
            "pipeline": parallel.pipeline,
            "virtual_pipeline": parallel.virtual,
            "expert_tensor": parallel.expert_tensor,
            "expert": parallel.expert,
            "expert_data": parallel.expert_data,
        },
        "batch": {
            "micro_batch_size": training.micro_batch,
            "global_batch_size": training.global_batch,
            "sequence_length": training.sequence,
            "micro_batches": training.global_batch // (training.micro_batch * parallel.data),
        },
        "parameters": {"total": whole.total, "active": whole.active, "mtp": whole.mtp},
        "flops": {
            "per_token": flops.per_token(shape),
            "per_step": flops.iteration(shape),
            "convention": flops.CONVENTION,
        },
        "stages": [
            {
                "pipeline_rank": stage.pipeline_rank,
                "chunks": [_chunk(chunk) for chunk in stage.chunks],
                "parameters": count.total,
                "expert_parameters": count.routed,
                "memory": {name: getattr(one, name) for name in (*MEMORY, "total")},
                "in_flight": list(one.in_flight),
            }
            for stage, count, one in zip(made.stages, made.counts, made.memory)
        ],
        "gpu": {"name": site.gpu, "memory": round(GPUS[site.gpu].memory * memory.GIB)}
        if site.gpu
        else None,
        "assumptions": made.assumptions(),
        "published": {**found.settings, "differences": list(found.differences)} if found else None,
    }


def _chunk(chunk: stages.Chunk) -> dict[str, Any]:
    return {
        "virtual_stage": chunk.virtual_stage,
        "layers": [{"number": layer.number, "kind": layer.kind} for layer in chunk.layers],
        "embedding": chunk.embedding,
        "loss": chunk.loss,
    }
