"""Batches, the schedule of training, its data and its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.plan.rules.case import Case, Unreadable, multiples


def required(case: Case) -> Iterator[str]:
    """validate_args: what has no default."""
    for flag in (
        "--micro-batch-size",
        "--num-layers",
        "--hidden-size",
        "--num-attention-heads",
        "--max-position-embeddings",
        "--seq-length",
    ):
        if case.number(flag) is None and not _other_spelling(case, flag):
            yield f"{flag} is not set"


def _other_spelling(case: Case, flag: str) -> bool:
    other = {"--num-layers": "--encoder-num-layers", "--seq-length": "--encoder-seq-length"}
    return flag in other and case.has(other[flag])


def positive(case: Case) -> Iterator[str]:
    """validate_args: batches and sizes of the model are at least 1."""
    for flag in (
        "--micro-batch-size",
        "--global-batch-size",
        "--num-layers",
        "--hidden-size",
        "--num-attention-heads",
        "--num-query-groups",
        "--seq-length",
        "--eval-micro-batch-size",
    ):
        number = case.number(flag) if case.has(flag) else 1
        if number is not None and number < 1:
            yield f"{case.said(flag)} is below 1"


def whole_batches(case: Case) -> Iterator[str]:
    """ConstantNumMicroBatchesCalculator: a global batch is whole micro-batches on every replica."""
    step = case.size("--micro-batch-size") * case.data
    total = case.number("--global-batch-size")
    if total is None or total < 1:
        return
    if case.has("--decrease-batch-size-if-needed"):
        if total < step:
            yield f"{case.said('--global-batch-size')} is below MBS*DP = {step}"
    elif total % step:
        yield (
            f"{case.said('--global-batch-size')} is not a multiple of MBS*DP = "
            f"{case.size('--micro-batch-size')}*{case.data} = {step}: "
            f"{multiples(step, total)} would be"
        )


def evaluation_batches(case: Case) -> Iterator[str]:
    """validate_args: the same for the evaluation's batches, which default to training's."""
    given = [
        flag for flag in ("--eval-global-batch-size", "--eval-micro-batch-size") if case.has(flag)
    ]
    lenient = case.has("--decrease-batch-size-if-needed") and case.since("0.18")
    if not given and not lenient:
        return
    step = (case.number("--eval-micro-batch-size") or case.size("--micro-batch-size")) * case.data
    total = case.number("--eval-global-batch-size") or case.number("--global-batch-size")
    if total is None:
        total = case.size("--micro-batch-size") * case.data
    if total % step:
        setting = ", ".join(case.said(flag) for flag in given or ["--global-batch-size"])
        yield f"{setting}: an evaluation batch of {total} is not a multiple of MBS*DP = {step}"


def interleaved_micro_batches(case: Case) -> Iterator[str]:
    """forward_backward_pipelining_with_interleaving: groups of micro-batches take turns."""
    if case.virtual == 1:
        return
    flag = "--microbatch-group-size-per-virtual-pipeline-stage"
    group = case.number(flag) or case.pipeline
    count = _micro_batches(case)
    if group < case.pipeline:
        yield f"{case.said(flag)} is below PP={case.pipeline}"
    elif group > count or 0 < count % group < case.pipeline:
        # What is left over after whole groups still has to fill the pipeline once.
        step = case.size("--micro-batch-size") * case.data
        yield (
            f"{case.said('--global-batch-size')} makes {count} micro-batches; with virtual stages "
            f"they have to come in groups of {group} (or leave at least PP={case.pipeline} over): "
            f"a global batch of {multiples(group * step, count * step)} would"
        )


def _micro_batches(case: Case) -> int:
    step = case.size("--micro-batch-size") * case.data
    total = case.number("--global-batch-size") or step
    if total < step or total % step:
        raise Unreadable("another rule's")
    return total // step


def pipeline_fill(case: Case) -> Iterator[str]:
    """Fewer micro-batches than stages leave stages idle at all times."""
    if case.pipeline > 1 and _micro_batches(case) < case.pipeline and case.virtual == 1:
        yield (
            f"{case.said('--global-batch-size')} makes {_micro_batches(case)} micro-batches for "
            f"PP={case.pipeline}: the pipeline is never full"
        )


def positions(case: Case) -> Iterator[str]:
    """validate_args: the model has a position for every token."""
    limit, length = case.number("--max-position-embeddings"), case.number("--seq-length")
    if limit is not None and length is not None and limit < length:
        yield (f"{case.said('--seq-length')} exceeds {case.said('--max-position-embeddings')}")


def iterations_or_samples(case: Case) -> Iterator[str]:
    """validate_args: a schedule counts iterations or samples, not both."""
    for of, others in (
        ("--train-iters", ("--train-samples", "--lr-decay-samples", "--lr-warmup-samples")),
        ("--train-samples", ("--lr-decay-iters", "--lr-warmup-iters")),
    ):
        if not case.number(of) or case.has("--skip-train"):
            continue
        mixed = [flag for flag in others if _counts(case, flag)]
        if mixed:
            yield f"{case.said(of)} cannot go with {case.said(mixed[0])}: count one or the other"
    fraction = "--lr-warmup-fraction"
    warmup = next(
        (flag for flag in ("--lr-warmup-iters", "--lr-warmup-samples") if _counts(case, flag)), None
    )
    if case.has(fraction) and warmup and (case.has("--train-iters", "--train-samples")):
        yield f"{case.said(fraction)} cannot go with {case.said(warmup)}"


def _counts(case: Case, flag: str) -> bool:
    """Say whether a flag is given, a warm-up of 0 being none."""
    return case.has(flag) and not ("warmup" in flag and case.number(flag) == 0)


def duration(case: Case) -> Iterator[str]:
    """get_optimizer_param_scheduler: how long to train."""
    if not case.number("--train-iters") and not case.number("--train-samples"):
        yield "neither --train-iters nor --train-samples says how long to train"


def warmup(case: Case) -> Iterator[str]:
    """OptimizerParamScheduler: the warm-up ends before the decay does."""
    unit = "iters" if case.number("--train-iters") else "samples"
    decay = f"--lr-decay-{unit}"
    decay = decay if case.has(decay) else f"--train-{unit}"
    length = case.number(decay) if case.has(decay) else None
    if length is None:
        return
    if case.has("--lr-warmup-fraction"):
        if (case.real("--lr-warmup-fraction") or 0) >= 1:
            yield f"{case.said('--lr-warmup-fraction')} is not below 1"
    elif (case.number(f"--lr-warmup-{unit}") or 0) >= length:
        yield f"{case.said(f'--lr-warmup-{unit}')} is not below {case.said(decay)}"


def learning_rates(case: Case) -> Iterator[str]:
    """validate_args: the lowest learning rate is not above the highest, and not below 0."""
    least, most = case.real("--min-lr"), case.real("--lr")
    if least is not None and least < 0:
        yield f"{case.said('--min-lr')} is below 0"
    if least is not None and most is not None and least > most:
        yield f"{case.said('--min-lr')} is above {case.said('--lr')}"


def first_learning_rate(case: Case) -> Iterator[str]:
    """OptimizerParamScheduler: there is a learning rate, and the warm-up starts below it."""
    most, first = case.real("--lr"), case.real("--lr-warmup-init")
    if most is None:
        yield "--lr is not set"
    elif first is not None and first > most:
        yield f"{case.said('--lr-warmup-init')} is above {case.said('--lr')}"


def weight_decay(case: Case) -> Iterator[str]:
    """validate_args: a weight decay that changes has a start and an end, a constant one neither."""
    style = case.text("--weight-decay-incr-style")
    ends = [flag for flag in ("--start-weight-decay", "--end-weight-decay") if case.has(flag)]
    if style == "constant" and ends:
        yield f"{case.said(ends[0])} needs --weight-decay-incr-style linear or cosine"
    elif style != "constant" and len(ends) < 2:
        yield (
            f"{case.said('--weight-decay-incr-style')} needs --start-weight-decay and "
            "--end-weight-decay"
        )


def one_data_source(case: Case) -> Iterator[str]:
    """validate_args: the data comes from one place."""
    split = [flag for flag in PER_SPLIT if case.has(flag)]
    sources = [flag for flag in ("--mock-data", "--data-path") if case.has(flag)] + split[:1]
    if len(sources) > 1:
        yield f"{case.said(sources[0])} and {case.said(sources[1])}: the data has one source"
    if case.has("--data-path") and case.has("--data-args-path"):
        yield f"{case.said('--data-path')} and {case.said('--data-args-path')}: give one of them"
    if split and case.has("--per-split-data-args-path"):
        yield f"{case.said(split[0])} and {case.said('--per-split-data-args-path')}: give one"


PER_SPLIT = ("--train-data-path", "--valid-data-path", "--test-data-path")


def removed(case: Case) -> Iterator[str]:
    """validate_args: flags that the parser still knows and that stop the job."""
    for flag, instead in (
        ("--batch-size", "--micro-batch-size"),
        ("--warmup", "--lr-warmup-fraction"),
        ("--model-parallel-size", "--tensor-model-parallel-size"),
        ("--checkpoint-activations", "--recompute-activations"),
    ):
        if case.has(flag):
            yield f"{case.said(flag)} is no longer valid: write {instead}"


def save_interval(case: Case) -> Iterator[str]:
    """validate_args: whoever saves says how often."""
    flag = "--save-interval"
    if not case.has("--save"):
        return
    every = case.number(flag)
    if every is None or every < 1:
        yield f"{case.said('--save')} needs a {flag} of at least 1, not {case.said(flag)}"
        return
    kept = case.number("--save-retain-interval")
    if kept is not None and (kept < 1 or kept % every):
        yield f"{case.said('--save-retain-interval')} is not a multiple of {case.said(flag)}"


def checkpoint_format(case: Case) -> Iterator[str]:
    """validate_args: each format belongs to a way of sharding."""
    flag = "--ckpt-format"
    kind = case.text(flag)
    if kind == "fsdp_dtensor" and not case.has("--use-megatron-fsdp"):
        yield f"{case.said(flag)} needs --use-megatron-fsdp: torch_dist saves this job"
    if kind == "torch_dcp":
        if not case.has("--use-torch-fsdp2"):
            yield f"{case.said(flag)} needs --use-torch-fsdp2: torch_dist saves this job"
        elif case.tensor > 1 or case.pipeline > 1:
            yield f"{case.said(flag)} needs TP=1 and PP=1"


def gloo_checkpoints(case: Case) -> Iterator[str]:
    """validate_args: the old format gathers the distributed optimizer over gloo."""
    if (
        case.has("--disable-gloo-process-groups")
        and case.has("--use-distributed-optimizer")
        and case.text("--ckpt-format") == "torch"
    ):
        yield (
            f"{case.said('--ckpt-format')} needs gloo groups for the distributed optimizer: "
            "write torch_dist, or drop --disable-gloo-process-groups"
        )


def upcycling(case: Case) -> Iterator[str]:
    """validate_args: an upcycled model is saved."""
    if case.has("--moe-use-upcycling") and not case.has("--save"):
        yield f"{case.said('--moe-use-upcycling')} needs --save"


def memory_log(case: Case) -> Iterator[str]:
    """validate_args: memory is logged at steps that are logged."""
    flag = "--log-memory-interval"
    every, logged = case.number(flag), case.number("--log-interval")
    if every is not None and logged and every % logged:
        yield f"{case.said(flag)} is not a multiple of {case.said('--log-interval')}"


ERRORS = (
    required,
    positive,
    whole_batches,
    evaluation_batches,
    positions,
    iterations_or_samples,
    learning_rates,
    weight_decay,
    one_data_source,
    removed,
    save_interval,
    checkpoint_format,
    gloo_checkpoints,
    upcycling,
    memory_log,
)
RUN_TIME = (interleaved_micro_batches, duration, warmup, first_learning_rate)
WARNINGS = (pipeline_fill,)
