"""The training entry: the script it runs, its exit status, and real training on the CPU."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("megatron.training", reason="the training extra is not installed")

PRETRAIN = Path(__file__).resolve().parents[2] / "launcher" / "megatron" / "pretrain.py"
MLA = shlex.split(
    """
    --multi-latent-attention --q-lora-rank 32 --kv-lora-rank 16 --qk-head-dim 16
    --qk-pos-emb-head-dim 8 --v-head-dim 16 --qk-layernorm
    """
)
# DeepSeek-V3's router.
ROUTER = shlex.split(
    """
    --moe-router-score-function sigmoid --moe-router-enable-expert-bias
    --moe-router-bias-update-rate 1e-3 --moe-router-num-groups 4 --moe-router-group-topk 2
    --moe-router-topk-scaling-factor 2.5 --moe-router-load-balancing-type seq_aux_loss
    --moe-shared-expert-intermediate-size 64 --moe-layer-freq ([0]*1+[1]*3)
    """
)
MTP = shlex.split("--mtp-num-layers 1 --mtp-loss-scaling-factor 0.1")
TENSOR_AND_EXPERT = shlex.split(
    """
    --tensor-model-parallel-size 2 --sequence-parallel --expert-model-parallel-size 2
    --expert-tensor-parallel-size 1
    """
)
# Two stages of two virtual stages each, MTP with the last.
PIPELINE = shlex.split(
    "--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'Et|t|t|tmL'"
)
BF16_OVERLAP = shlex.split("--bf16 --overlap-grad-reduce --overlap-param-gather")
DELTA_NET = shlex.split(
    """
    --experimental-attention-variant gated_delta_net --linear-attention-freq 4
    --linear-key-head-dim 16 --linear-value-head-dim 16 --linear-num-key-heads 2
    --linear-num-value-heads 4 --linear-conv-kernel-dim 4 --apply-layernorm-1p
    --attention-output-gate --qk-layernorm --group-query-attention --num-query-groups 2
    --rotary-percent 0.25 --moe-shared-expert-intermediate-size 64 --moe-shared-expert-gate
    """
)

SCRIPT = """
import json, sys
import torch
import neighbour
facts = dict(name=__name__, argv=sys.argv, path=sys.path, gpu=torch.cuda.is_available(),
             compiler="torch._dynamo" in sys.modules)
print("FACTS" + json.dumps(facts))
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("status", [0, 3])
def test_training_script_runs_as_python_runs_it(tmp_path: Path, status: int) -> None:
    script = tmp_path / "scripts" / "train.py"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    (script.parent / "neighbour.py").write_text("")
    megatron = tmp_path / "megatron-lm"
    megatron.mkdir()
    environment = {
        **os.environ,
        "TRAINING_SCRIPT_PATH": str(script),
        "MEGATRON_PATH": str(megatron),
        # The installed megatron's own, said when Python first compiles a file.
        "PYTHONWARNINGS": "ignore::SyntaxWarning",
    }
    process = subprocess.run(
        [sys.executable, str(PRETRAIN), str(status), "--flag"],
        env=environment,
        text=True,
        capture_output=True,
    )
    assert process.returncode == status, process.stderr
    assert process.stderr == ""
    facts = json.loads(process.stdout.split("FACTS")[1])
    assert facts["name"] == "__main__"
    assert facts["argv"] == [str(script), str(status), "--flag"]
    assert facts["path"][:2] == [str(megatron), str(script.parent)]
    assert str(PRETRAIN.parent) not in facts["path"]
    assert facts["gpu"]
    assert not facts["compiler"], "importing torch's compiler costs every rank seconds"


@pytest.mark.slow
def test_a_refused_job_fails(train: Callable) -> None:
    run = train("--moe-layer-freq", "([0]*1+[1]*9)", succeeds=False)
    assert run.status != 0
    assert not run.losses


@pytest.fixture(scope="module")
def single(train: Callable) -> list[float]:
    """Losses of one rank without recomputation, which the runs below must repeat."""
    return train(*MLA, *ROUTER).losses


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "arguments"),
    [
        (2, ""),
        (2, "--context-parallel-size 2"),
        (
            1,
            "--recompute-granularity selective --recompute-modules"
            " core_attn mlp moe mla_up_proj layernorm shared_experts",
        ),
        (1, "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"),
    ],
    ids=["data parallel", "context parallel", "selective recompute", "full recompute"],
)
def test_losses_do_not_depend_on(
    train: Callable, single: list[float], ranks: int, arguments: str
) -> None:
    assert single == sorted(single, reverse=True), "the loss falls"
    assert len(single) == 4
    run = train(*MLA, *ROUTER, *arguments.split(), ranks=ranks)
    assert run.losses == pytest.approx(single, abs=1e-5)


@pytest.mark.slow
def test_resumed_run_equals_the_uninterrupted_one(train: Callable, tmp_path: Path) -> None:
    job = [*MLA, *ROUTER, *MTP, *TENSOR_AND_EXPERT, *BF16_OVERLAP, "--ckpt-format", "torch_dist"]
    saved = tmp_path / "checkpoints"
    whole = train(*job, "--save", str(saved), "--save-interval", "2", ranks=2)
    shutil.rmtree(saved / "iter_0000004")
    (saved / "latest_checkpointed_iteration.txt").write_text("2")
    resumed = train(*job, "--load", str(saved), ranks=2)
    assert "successfully loaded checkpoint" in resumed.output
    # The second line after a start averages two iterations: undo that.
    third, average = resumed.losses
    assert [third, 2 * average - third] == pytest.approx(whole.losses[2:], abs=1e-5)


@pytest.mark.slow
def test_everything_at_once_trains(train: Callable) -> None:
    losses = train(
        *(*MLA, *ROUTER, *MTP, *TENSOR_AND_EXPERT, *BF16_OVERLAP, *PIPELINE),
        *("--lr", "5e-3", "--train-iters", "10"),
        ranks=4,
    ).losses
    assert len(losses) == 10
    assert losses[-1] < losses[0] - 1


@pytest.mark.slow
def test_gated_delta_net_trains_with_mtp(train: Callable) -> None:
    losses = train(*DELTA_NET, *MTP, *TENSOR_AND_EXPERT, ranks=2).losses
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 4
