"""The plan of one job for tools: sizes in bytes, operations and numbers of parameters."""

from __future__ import annotations

from typing import Any

from launcher.config.gpus import GPUS
from launcher.plan import flops, memory, parameters, stages
from launcher.plan.plan import Shaped, Site
from launcher.plan.projection import report as projected

# The terms that a rank's memory is shown by.
MEMORY = ("weights", "gradients", "optimizer", "activations", "logits", "working", "framework")


def as_data(made: Shaped, site: Site) -> dict[str, Any]:
    """Return the plan for tools. An unknown value is null, or absent from a stage."""
    shape = made.shape
    training, parallel = shape.training, shape.parallel
    content: dict[str, Any] = {
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
            "first_global_batch_size": training.first_batch,
            "sequence_length": training.sequence,
            "micro_batches": training.global_batch // (training.micro_batch * parallel.data),
        },
        "parameters": None,
        "flops": None,
        "stages": [
            {
                "pipeline_rank": stage.pipeline_rank,
                "chunks": [_chunk(chunk) for chunk in stage.chunks],
            }
            for stage in made.stages
        ],
        "gpu": {"name": site.gpu, "memory": round(GPUS[site.gpu].memory * memory.GIB)}
        if site.gpu
        else None,
        "assumptions": made.assumptions(),
        "published": None,
        "projection": projected.as_data(made, site),
        "unknown": sorted(made.unknown),
    }
    if "parameters" not in made.unknown:
        whole = parameters.whole(shape.model)
        content["parameters"] = {
            "total": whole.total,
            "active": whole.active,
            "mtp": whole.mtp,
        }
        for entry, count in zip(content["stages"], made.counts):
            entry.update(parameters=count.total, expert_parameters=count.routed)
    if "FLOPs" not in made.unknown:
        content["flops"] = {
            "per_token": flops.per_token(shape),
            "per_step": flops.iteration(shape),
            "convention": flops.CONVENTION,
        }
        found = projected.nearest(made, site)
        if found:
            content["published"] = {**found.settings, "differences": list(found.differences)}
    if "memory" not in made.unknown:
        for entry, one in zip(content["stages"], made.memory):
            entry["memory"] = {name: getattr(one, name) for name in (*MEMORY, "total")}
            entry["in_flight"] = list(one.in_flight)
    return content


def _chunk(chunk: stages.Chunk) -> dict[str, Any]:
    return {
        "virtual_stage": chunk.virtual_stage,
        "layers": [{"number": layer.number, "kind": layer.kind} for layer in chunk.layers],
        "embedding": chunk.embedding,
        "loss": chunk.loss,
    }
