"""What still happens between a job's construction and its first step, and can end it there."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launcher.plan.rules.case import Case

# Signals that no process can catch.
UNCATCHABLE = ("SIGKILL", "SIGSTOP")
# Optimizers that come with NVIDIA's package emerging_optimizers.
EMERGING = ("muon", "dist_muon", "adaptive_muon", "lion", "soap")


def warmup_stable_decay(case: Case) -> Iterator[str]:
    """OptimizerParamScheduler: WSD decays over a length of its own."""
    flag = "--lr-decay-style"
    unit = "iters" if case.number("--train-iters") else "samples"
    if case.text(flag) == "WSD" and case.number(f"--lr-wsd-decay-{unit}") is None:
        yield f"{case.said(flag)} needs --lr-wsd-decay-{unit}"


def decay_of_weights(case: Case) -> Iterator[str]:
    """OptimizerParamScheduler: a weight decay is not below 0 and does not shrink."""
    if case.text("--weight-decay-incr-style") == "constant":
        first = last = "--weight-decay"
    else:
        first, last = "--start-weight-decay", "--end-weight-decay"
    start, end = case.real(first), case.real(last)
    if start is not None and start < 0:
        yield f"{case.said(first)} is below 0"
    elif start is not None and end is not None and end < start:
        yield f"{case.said(last)} is below {case.said(first)}"


def scheduler_of_a_checkpoint(case: Case) -> Iterator[str]:
    """OptimizerParamScheduler: a checkpoint's schedule is taken, or overridden."""
    first, second = "--override-opt_param-scheduler", "--use-checkpoint-opt_param-scheduler"
    if case.has(first) and case.has(second):
        yield f"{case.said(first)} and {case.said(second)}: give one of them"


def not_a_number(case: Case) -> Iterator[str]:
    """Megatron's parser takes NaN for a number, and what is computed with it is NaN too."""
    for flag, argument in case.arguments.items():
        known = case.catalogue.get(flag)
        words = (text for text in argument.values if text.strip().lower() in ("nan", "-nan"))
        if known is not None and known.type == "float" and any(words):
            yield f"{case.said(flag)} is not a number"


def out_of_range(case: Case) -> Iterator[str]:
    """The model's layers: probabilities, and shares and sizes that are not below 0."""
    for flag in ("--attention-dropout", "--hidden-dropout"):
        share = case.real(flag)
        if share is not None and not 0 <= share <= 1:
            yield f"{case.said(flag)} is not between 0 and 1"
    for flag in ("--rotary-percent", "--padded-vocab-size"):
        if case.has(flag) and (case.real(flag) or 0) < 0:
            yield f"{case.said(flag)} is below 0"


def split_optimizer(case: Case) -> Iterator[str]:
    """DistributedOptimizer: the states of Adam, or of an optimizer that says how to make them."""
    flag = "--optimizer"
    otherwise = case.has("--optimizer-cpu-offload", "--skip-train", "--use-megatron-fsdp")
    if case.text(flag) == "sgd" and case.has("--use-distributed-optimizer") and not otherwise:
        yield f"{case.said(flag)} cannot go with --use-distributed-optimizer"


def exit_signal(case: Case) -> Iterator[str]:
    """DistributedSignalHandler: the signal can be caught."""
    flag = "--exit-signal"
    handled = case.has("--exit-signal-handler", "--exit-signal-handler-for-training")
    if handled and case.text(flag) in UNCATCHABLE:
        yield f"{case.said(flag)} cannot be caught: take SIGTERM or SIGUSR2"


def external_data(case: Case) -> Iterator[str]:
    """build_pretraining_data_loader: pretrain_gpt.py brings no loader of its own."""
    flag = "--dataloader-type"
    if case.text(flag) == "external" and not case.own_training:
        yield f"{case.said(flag)} needs a training script that makes its own data loader"


def full_validation(case: Case) -> Iterator[str]:
    """build_train_valid_test_data_loaders: a full validation needs a validation set."""
    flag = "--full-validation"
    if not case.has(flag) or case.has("--valid-data-path", "--per-split-data-args-path"):
        return
    shares = re.split(r"[,/]", case.text("--split") or "969,30,1")
    if len(shares) < 2 or not shares[1].strip().strip("0."):
        yield f"{case.said(flag)} needs a validation share, not {case.said('--split')}"


def sinkhorn(case: Case) -> Iterator[str]:
    """TopKRouter.sinkhorn_load_balancing: it balances by itself, without an auxiliary loss."""
    kinds = case.words("--moe-router-load-balancing-type")
    if case.experts and kinds == ("sinkhorn",) and case.real("--moe-aux-loss-coeff"):
        yield f"{case.said('--moe-router-load-balancing-type')} needs --moe-aux-loss-coeff 0"


def evaluation_in_virtual_stages(case: Case) -> Iterator[str]:
    """forward_backward_pipelining_with_interleaving: evaluation goes through the same schedule."""
    given = [flag for flag in ("--eval-global-batch-size", "--eval-micro-batch-size") if case.has(flag)]  # fmt: skip  # noqa: E501
    if case.virtual == 1 or not given or not (case.number("--eval-iters") or 0):
        return
    step = (case.number("--eval-micro-batch-size") or case.size("--micro-batch-size")) * case.data
    total = case.number("--eval-global-batch-size") or case.number("--global-batch-size") or step
    group = case.number("--microbatch-group-size-per-virtual-pipeline-stage") or case.pipeline
    if total % step == 0 and (group > total // step or 0 < total // step % group < case.pipeline):
        yield (
            f"{case.said(given[0])} makes {total // step} micro-batches an evaluation; with "
            f"virtual stages they have to come in groups of {group}"
        )


def optimizer_package(case: Case) -> Iterator[str]:
    """get_megatron_optimizer: some optimizers come with a package of their own."""
    flag = "--optimizer"
    if case.text(flag) in EMERGING:
        yield (
            f"{case.said(flag)} needs NVIDIA's package emerging_optimizers where the job runs; "
            "dockers/ does not install it"
        )


def storage_package(case: Case) -> Iterator[str]:
    """megatron.core.msc_utils: object storage is read through a package of its own."""
    flag = "--enable-msc"
    if case.has(flag):
        yield f"{case.said(flag)} needs the package multi-storage-client where the job runs"


ERRORS = ()
RUN_TIME = (
    warmup_stable_decay,
    decay_of_weights,
    scheduler_of_a_checkpoint,
    not_a_number,
    out_of_range,
    split_optimizer,
    exit_signal,
    external_data,
    full_validation,
    sinkhorn,
    evaluation_in_virtual_stages,
)
WARNINGS = (optimizer_package, storage_package)
