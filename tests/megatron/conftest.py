"""Real training runs for the tests: torchrun, gloo, a tiny mixture-of-experts model."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import pytest

# What is tested here is the CPU device, on a machine with GPUs too.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

PRETRAIN = Path(__file__).resolve().parents[2] / "launcher" / "megatron" / "pretrain.py"

MODEL = shlex.split(
    """
    --num-layers 4 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 4
    --seq-length 64 --max-position-embeddings 64 --position-embedding-type rope
    --normalization RMSNorm --swiglu --disable-bias-linear --untie-embeddings-and-output-weights
    --num-experts 8 --moe-ffn-hidden-size 64 --moe-router-topk 2 --moe-router-dtype fp32
    --moe-token-dispatcher-type alltoall --moe-aux-loss-coeff 1e-3
    --attention-dropout 0 --hidden-dropout 0 --vocab-size 255 --make-vocab-size-divisible-by 128
    --mock-data --tokenizer-type NullTokenizer --split 99,1,0
    --micro-batch-size 1 --global-batch-size 4 --train-iters 4 --lr 1e-3 --min-lr 1e-4
    --lr-decay-style cosine --lr-decay-iters 20 --log-interval 1
    --eval-iters 0 --eval-interval 1000 --use-distributed-optimizer
    """
)
CPU = shlex.split(
    """
    --distributed-backend gloo --transformer-impl local --num-workers 0
    --no-gradient-accumulation-fusion --no-persist-layer-norm --no-masked-softmax-fusion
    --no-rope-fusion --no-create-attention-mask-in-dataloader
    """
)


@dataclass(frozen=True)
class Run:
    """A finished run: its exit status, the loss of each iteration, and everything it wrote."""

    status: int
    losses: list[float]
    output: str


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """The arguments that `train` adds to."""
    return (*MODEL, *CPU)


@pytest.fixture(scope="session")
def train() -> Callable[..., Run]:
    """Train the tiny model with further arguments on some ranks; by default it must succeed."""

    def run(*arguments: str, ranks: int = 1, succeeds: bool = True) -> Run:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={ranks}", str(PRETRAIN), *MODEL, *CPU, *arguments]
        environment = {
            **os.environ,
            "TRAINING_SCRIPT_PATH": "",
            "MEGATRON_PATH": "",
            "OMP_NUM_THREADS": "1",
            "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        }
        process = subprocess.run(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        losses = [float(loss) for loss in re.findall(r"lm loss: (\S+)", process.stdout)]
        if succeeds:
            assert process.returncode == 0, process.stdout[-8000:]
        return Run(process.returncode, losses, process.stdout)

    return run
