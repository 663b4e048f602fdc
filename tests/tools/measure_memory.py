"""Megatron's GPT training, with what every rank allocates written to a folder at its end.

    torchrun … tests/tools/measure_memory.py FOLDER --num-layers 4 …

FOLDER/<rank>.json holds the buffers of parameters and gradients of each model chunk, the states of
the optimizers, and how many micro-batches each chunk held at most (`Measured`). No argument is
changed, and nothing of Megatron's but two functions is wrapped, which then call the original.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Flights:
    """Forward passes whose backward pass is still to come, by virtual stage."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self.most: dict[int, int] = {}
        self.stages: dict[int, list[int]] = {}

    def watch(self, schedules: Any) -> None:
        """Wrap the schedules' forward and backward steps."""
        forward, backward = schedules.forward_step, schedules.backward_step

        def forward_step(step: Any, batches: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            output, tokens = forward(step, batches, model, *args, **kwargs)
            stage = kwargs.get("vp_stage") or 0
            self.stages.setdefault(_key(output), []).append(stage)
            self.held[stage] = self.held.get(stage, 0) + 1
            self.most[stage] = max(self.most.get(stage, 0), self.held[stage])
            return output, tokens

        def backward_step(given: Any, output: Any, *args: Any, **kwargs: Any) -> Any:
            result = backward(given, output, *args, **kwargs)
            self.held[self.stages[_key(output)].pop()] -= 1
            return result

        schedules.forward_step, schedules.backward_step = forward_step, backward_step


def _key(output: Any) -> int:
    return id(output[0] if isinstance(output, list) else output)


def buffers(chunk: Any) -> list[dict[str, Any]]:
    """The buffers of a model chunk under DistributedDataParallel."""
    kinds = ((chunk.buffers, False), (chunk.expert_parallel_buffers, True))
    return [
        {
            "expert": expert,
            "parameters": one.param_data.untyped_storage().nbytes(),
            "gradients": one.grad_data.untyped_storage().nbytes(),
            "elements": one.numel,
            "shards": one.data_parallel_world_size,
            # Of parameters, in the order in which the buffer holds them, by bucket.
            "sizes": [
                [p.numel() for p in sorted(bucket.params, key=lambda p: one.param_index_map[p][0])]
                for bucket in one.buckets
            ],
        }
        for kind, expert in kinds
        for one in kind
    ]


def states(optimizer: Any) -> list[dict[str, int]]:
    """Elements and bytes of the main parameters and moments that each optimizer holds."""
    found = []
    for one in getattr(optimizer, "chained_optimizers", [optimizer]):
        main = [p for group in one.shard_fp32_from_float16_groups for p in group]
        own = [p for group in one.shard_fp32_groups for p in group]
        moments = [
            tensor
            for state in one.optimizer.state.values()
            for name, tensor in state.items()
            if name in ("exp_avg", "exp_avg_sq")
        ]
        found.append(
            {
                "parameters": sum(p.numel() for p in [*main, *own]),
                "main": sum(p.numel() * p.element_size() for p in main),
                "moments": sum(t.numel() * t.element_size() for t in moments),
            }
        )
    return found


def main() -> None:
    """Train as the arguments say, then write what this rank holds."""
    started = time.time()
    folder = Path(sys.argv.pop(1))
    sys.path.insert(0, str(ROOT))
    from launcher.megatron import cpu_device, pretrain

    pretrain._leave_out_unused_packages()
    cpu_device.install()
    import torch.distributed
    from megatron.core.pipeline_parallel import schedules
    from megatron.training import training

    from launcher.megatron import gpt

    flights, built = Flights(), []
    flights.watch(schedules)
    set_up = training.setup_model_and_optimizer

    def setup_model_and_optimizer(*args: Any, **kwargs: Any) -> Any:
        built[:] = made = set_up(*args, **kwargs)
        return made

    training.setup_model_and_optimizer = setup_model_and_optimizer
    gpt.train(started)
    model, optimizer = built[:2]
    measured = {
        "chunks": [buffers(chunk) for chunk in model],
        "parameters": sum(p.numel() for chunk in model for p in chunk.parameters()),
        "optimizers": states(optimizer),
        "in_flight": [flights.most.get(stage, 0) for stage in range(len(model))],
    }
    path = folder / f"{torch.distributed.get_rank()}.json"
    path.write_text(json.dumps(measured), encoding="utf-8")
    pretrain._leave_process_group()


if __name__ == "__main__":
    main()
