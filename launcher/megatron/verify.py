"""Megatron itself as the judge of jobs at their true world size, on a machine without a GPU.

    python launcher/megatron/verify.py < jobs.jsonl > verdicts.jsonl

Run it with the Python of the training environment. A line of standard input is one job:

    {"name": "…",
     "argv": ["--num-layers", "61", …],          Megatron's arguments, as the job has them
     "world_size": 1024,
     "environment": {"CUDA_DEVICE_MAX_CONNECTIONS": "1"},
     "build": "none",                            or the model of the "ends" or of "all" stages
     "compute_capability": [9, 0],               optional: of the GPU; Hopper's if absent
     "own_training": false}                      optional: true for launcher/megatron/gpt.py's model

and a line of standard output its verdict, as soon as there is one:

    {"name": "…", "accepted": true, "refused_by": null, "message": "",
     "stages": [{"pipeline_rank": 0, "parameters": …, "expert_parameters": …, …}],
     "left_out": ["--fp8-format", …],        flags that the model was built without
     "not_built": [],                        parts of the start that were not built
     "seconds": 3.2}

`refused_by` is what a launch would meet first: the "parser", "validate_args", the "configuration"
(TransformerConfig, optimizer), the process "groups", or the "model" with its gradients' buffers,
its optimizer and the schedule of the learning rate; `message` is Megatron's own.
It is null in a refusal when this judge failed, not the job: where a package is missing here, or
where what stands in for a GPU or for Transformer Engine raised the error.

A job's own arguments are parsed, validated, made a configuration and grouped at its world size, as
if the containers' Transformer Engine were there. Only then, to build the model on the meta device,
is replaced what cannot be had here (launcher/megatron/replacements.py, `BUILT_WITH`).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import inspect
import json
import os
import re
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Callable

# The Transformer Engine of dockers/ and of pyproject.toml's gpu extra.
TRANSFORMER_ENGINE = "2.17.1"
AT_ONCE = 2
HOPPER = (9, 0)
# What a process needs of the environment that started this one; the rest is the job's.
KEPT = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR")
_OWN_FAULT = "this judge failed"
# What is said of this machine: of a package, of a GPU, and of tensors that have shapes alone.
_NOT_HERE = re.compile(
    r"No module named|requires? Transformer ?Engine\b(?! *>=)|Transformer ?Engine is required"
    r"|supported with GPUs|Error building extension|out of meta tensor|incompatible tensor type"
    r"|on meta tensors|FakeProcessGroup"
)


# Of what a machine without Transformer Engine and GPUs replaces, what can be built all the same.
BUILT_ANYWAY = (
    "--cuda-graph-impl",
    "--cuda-graph-modules",
    "--cuda-graph-scope",
    "--cuda-graph-warmup-steps",
    "--te-rng-tracker",
    "--moe-permute-fusion",
    "--moe-router-fusion",
    "--use-precision-aware-optimizer",
    "--main-grads-dtype",
    "--main-params-dtype",
    "--exp-avg-dtype",
    "--exp-avg-sq-dtype",
    "--optimizer-cpu-offload",
    "--overlap-cpu-optimizer-d2h-h2d",
    "--offload-optimizer-states",
    "--profile",
    "--use-pytorch-profiler",
    "--profile-step-start",
    "--profile-step-end",
    "--profile-ranks",
)
# None of these changes a shape or a layer's place, so the parameters stay the real model's.
BUILT_WITH = (
    "--transformer-impl",
    "local",
    # The other ranks do not exist; the fake groups refuse the flex dispatcher.
    "--fake-process-group",
    "--moe-token-dispatcher-type",
    "alltoall",
    # Apex's, Transformer Engine's or Triton's kernels.
    "--no-gradient-accumulation-fusion",
    "--no-masked-softmax-fusion",
    "--no-persist-layer-norm",
    "--no-rope-fusion",
)
# What the containers' Transformer Engine has and Megatron asks for by name.
_FUSED = {
    "megatron.core.transformer.moe.moe_utils": (
        "fused_compute_score_for_moe_aux_loss",
        "fused_moe_aux_loss",
        "fused_permute",
        "fused_permute_with_probs",
        "fused_sort_chunks_by_index",
        "fused_sort_chunks_by_index_with_probs",
        "fused_topk_with_score_function",
        "fused_unpermute",
    ),
    "megatron.core.models.common.embeddings.rope_utils": (
        "fused_apply_rotary_pos_emb",
        "fused_apply_rotary_pos_emb_thd",
    ),
}


@dataclass(frozen=True)
class Candidate:
    """One job to judge; the fields are those of a line of input (see the module's docstring)."""

    name: str
    argv: tuple[str, ...]
    world_size: int
    environment: Mapping[str, str] = field(default_factory=dict)
    build: str = "none"
    compute_capability: tuple[int, int] = HOPPER
    own_training: bool = False

    def __post_init__(self) -> None:
        if self.build not in ("none", "ends", "all"):
            raise ValueError(f"build={self.build!r} of job {self.name!r} is not none, ends or all")


@dataclass
class Verdict:
    """Megatron's word on a job; the fields are those of a line of output."""

    name: str
    accepted: bool = True
    refused_by: str | None = None
    message: str = ""
    stages: list[dict[str, int]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    not_built: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Refused(Exception):
    """A job that does not get past a stage of its launch: (refused_by, message)."""


@contextlib.contextmanager
def _stage(name: str) -> Iterator[None]:
    """Turn whatever Megatron raises here into a refusal by this stage."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if _is_ours(error):
            raise Refused(None, f"{_OWN_FAULT} at {name}: {explain(error)}") from error
        raise Refused(name, explain(error)) from error


def _is_ours(error: BaseException) -> bool:
    """Say whether an error is this machine's: a missing package, or a stand-in that raised it."""
    if isinstance(error, ImportError) or _NOT_HERE.search(str(error)):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    last = Path(frames[-1].filename) if frames else Path()
    return last.parent == Path(__file__).parent and last.name != "verify.py"


def explain(error: BaseException) -> str:
    """An exception's message on one line; of a bare assertion the line of Megatron that failed."""
    text = " ".join(str(error).split())
    if text:
        return text
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {frame.line} ({Path(frame.filename).name}:{frame.lineno})"


def judge(jobs: Iterable[Candidate], at_once: int = AT_ONCE) -> Iterator[Verdict]:
    """Yield the verdict on each job as it is reached, working in `at_once` forked processes.

    Megatron and PyTorch are imported here, into the calling process, at the first verdict; without
    a GPU this also changes PyTorch as `cpu_device.install` says. Jobs change nothing in it.
    """
    _prepare_megatron()
    unread = iter(jobs)
    waiting: deque[_Task] = deque()
    running: dict[Connection, tuple[_Task, int]] = {}
    while True:
        while len(running) < at_once:
            if not waiting:
                job = next(unread, None)
                if job is None:
                    break
                waiting.append(_Case(job).task(_check, job))
            task = waiting.popleft()
            if task.case.verdict.accepted:
                connection, process = _fork(task.function, *task.words)
                running[connection] = (task, process)
            elif task.case.is_decided_by(task):
                yield task.case.verdict
        if not running:
            return
        for connection in wait(list(running)):
            task, process = running.pop(connection)
            # A job's stages come before the next job, so that its verdict does not wait.
            waiting.extendleft(task.case.take(connection, process))
            if task.case.is_decided_by(task):
                yield task.case.verdict


@dataclass(frozen=True, eq=False)
class _Task:
    """What one forked process does for a job."""

    case: _Case
    function: Callable[..., dict]
    words: tuple


class _Case:
    """A job under judgement."""

    def __init__(self, job: Candidate) -> None:
        self.job = job
        self.verdict = Verdict(job.name, left_out=left_out(job.argv))
        self.unfinished: set[_Task] = set()
        self.started = time.monotonic()

    def task(self, function: Callable[..., dict], *words: Any) -> _Task:
        """Another task, without which there is no verdict."""
        task = _Task(self, function, words)
        self.unfinished.add(task)
        return task

    def take(self, connection: Connection, process: int) -> list[_Task]:
        """Take a process's reply into the verdict; return what is to be done after it, last first.

        Those are the pipeline stages to build, once all else is accepted.
        """
        try:
            reply = connection.recv()
        except EOFError:
            reply = {"refused_by": None, "message": f"{_OWN_FAULT}: a process died of it"}
        connection.close()
        os.waitpid(process, 0)
        if "message" in reply:
            if self.verdict.accepted:
                self.verdict.accepted = False
                self.verdict.refused_by = reply["refused_by"]
                self.verdict.message = reply["message"]
            return []
        if "stage" in reply:
            self.verdict.stages.append(reply["stage"])
            self.verdict.not_built = reply["not_built"]
            self.verdict.stages.sort(key=lambda stage: stage["pipeline_rank"])
            return []
        last = reply["pipeline_parallel"] - 1
        ranks = {"none": (), "ends": {last, 0}, "all": range(last + 1)}[self.job.build]
        return [self.task(_count, self.job, rank) for rank in sorted(ranks, reverse=True)]

    def is_decided_by(self, task: _Task) -> bool:
        """Strike out a task; whether it was the last. Stamps the verdict's seconds."""
        self.unfinished.remove(task)
        self.verdict.seconds = round(time.monotonic() - self.started, 2)
        return not self.unfinished


def _fork(function: Callable[..., dict], *words: Any) -> tuple[Connection, int]:
    """Call the function in a child process; its result, or its refusal, comes through the pipe."""
    receiver, sender = Pipe(duplex=False)
    process = os.fork()
    if process:
        sender.close()
        return receiver, process
    try:
        receiver.close()
        gc.disable()  # a model is tens of thousands of modules, none of them garbage
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # verdicts alone are written to standard output
            os.dup2(nowhere, stream)
        try:
            reply = function(*words)
        except Refused as refusal:
            reply = dict(zip(("refused_by", "message"), refusal.args))
        except BaseException as error:
            reply = {"refused_by": None, "message": f"{_OWN_FAULT}: {explain(error)}"}
        sender.send(reply)
    finally:
        os._exit(0)


@cache
def _prepare_megatron() -> None:
    """Import what every job needs once, so that the forked processes have it already."""
    for name in list(os.environ):
        if name.startswith("CUDA_VISIBLE_DEVICES"):
            del os.environ[name]
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same verdicts on every machine
    for package in ("transformer_engine", "wandb", "transformers"):
        if package not in sys.modules:
            sys.modules[package] = None  # type: ignore[assignment]
    from launcher.megatron import cpu_device

    cpu_device.install()
    import torch
    import torch.testing._internal.distributed.fake_pg
    from megatron.training.arguments import add_megatron_arguments

    from launcher.megatron import construction, gpt  # noqa: F401

    for package in ("transformers", "wandb"):
        if sys.modules.get(package, package) is None:
            del sys.modules[package]
    torch.set_num_threads(1)
    with torch.device("meta"):
        torch.arange(0, 4, 2, dtype=torch.float32)  # the first of its kind imports the compiler
    with contextlib.suppress(ImportError):
        import megatron.core.models.mimo.model.base  # noqa: F401  # by every optimizer
    # Megatron's parser reads its help from its own source, which does not change.
    inspect.getsource = cache(inspect.getsource)
    add_megatron_arguments(argparse.ArgumentParser())
    gc.collect()
    gc.freeze()  # what the children share stays shared


def _become(job: Candidate, rank: int, argv: Iterable[str]) -> None:
    """Make this process the given rank of the job, before Megatron reads its environment."""
    import torch

    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    ranks = {"WORLD_SIZE": str(job.world_size), "RANK": str(rank), "LOCAL_RANK": "0"}
    os.environ.clear()
    os.environ.update({**kept, **job.environment, **ranks})
    sys.argv = ["pretrain_gpt.py", *argv]
    properties = torch.cuda.get_device_properties(0)
    major, minor = job.compute_capability
    changed = SimpleNamespace(**{**vars(properties), "major": major, "minor": minor})
    torch.cuda.get_device_capability = lambda *args, **kwargs: (major, minor)
    torch.cuda.get_device_properties = lambda *args, **kwargs: changed
    _report_transformer_engine()


def _report_transformer_engine() -> None:
    """Let version checks see the containers' Transformer Engine."""
    from megatron.core import utils
    from packaging.version import Version

    utils._te_version = Version(TRANSFORMER_ENGINE)


def _pretend_transformer_engine() -> None:
    """Let Megatron also find by name what Transformer Engine has; nothing of it can run."""

    class FusedAdam:
        def __init__(
            self, master_weight_dtype: Any, exp_avg_dtype: Any, exp_avg_sq_dtype: Any,
            use_decoupled_grad: Any,
        ) -> None: ...  # fmt: skip

    package = "transformer_engine"
    for name in (package, f"{package}.pytorch", f"{package}.pytorch.optimizers"):
        sys.modules[name] = ModuleType(name)
    sys.modules[package].__version__ = TRANSFORMER_ENGINE  # type: ignore[attr-defined]
    sys.modules[f"{package}.pytorch.optimizers"].FusedAdam = FusedAdam  # type: ignore[attr-defined]
    for module, names in _FUSED.items():
        for name in names:
            setattr(sys.modules[module], name, lambda *args, **kwargs: None)


def _parse() -> Any:
    """Megatron's parser on sys.argv; what argparse would write to standard error is the message."""
    from megatron.training.arguments import parse_args

    def error(parser: argparse.ArgumentParser, message: str) -> None:
        raise ValueError(message)

    argparse.ArgumentParser.error = error  # type: ignore[method-assign, assignment]
    with _stage("parser"):
        return parse_args()


def _validate(args: Any) -> None:
    """What Megatron checks of the arguments alone; changes them as Megatron does."""
    from megatron.core import config
    from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator
    from megatron.training.arguments import validate_args
    from megatron.training.global_vars import set_args

    with _stage("validate_args"):
        validate_args(args)
        # The rest of parse_and_validate_args that can refuse; the tokenizer is the cluster's.
        init_num_microbatches_calculator(
            rank=args.rank,
            global_batch_size=args.global_batch_size,
            micro_batch_size=args.micro_batch_size,
            data_parallel_size=args.data_parallel_size * getattr(args, "gtp_weight_remat_size", 1),
            decrease_batch_size_if_needed=args.decrease_batch_size_if_needed,
            step_batch_size_schedule=args.step_batch_size_schedule,
            seq_length=args.seq_length,
        )
    set_args(args)
    if args.enable_experimental:
        config.set_experimental_flag(True)


def _configure(args: Any) -> None:
    """The configurations that the training loop makes of the arguments."""
    from megatron.training.argument_utils import core_transformer_config_from_args
    from megatron.training.training import get_megatron_ddp_config, get_megatron_optimizer_config

    with _stage("configuration"):
        core_transformer_config_from_args(args)
        get_megatron_optimizer_config(args)
        get_megatron_ddp_config(args)


def _group(args: Any) -> None:
    """Make the process groups of this rank; no other rank exists, and nothing is sent."""
    from megatron.training import initialize

    from launcher.megatron.gpt import embedding_ranks

    args.fake_process_group, args.use_gloo_process_groups = True, False
    with _stage("groups"):
        initialize._initialize_distributed(embedding_ranks, None, None)


def _check(job: Candidate) -> dict[str, int]:
    """Judge the job's own arguments, all but the model."""
    _become(job, 0, job.argv)
    _pretend_transformer_engine()
    args = _parse()
    _validate(args)
    _configure(args)
    _group(args)
    return {"pipeline_parallel": args.pipeline_model_parallel_size}


def _removed() -> set[str]:
    from launcher.megatron.replacements import ON_THE_CPU, WITHOUT_TRANSFORMER_ENGINE

    without = (*WITHOUT_TRANSFORMER_ENGINE, *ON_THE_CPU)
    replaced = {flag for one in without for flag in one.flags}
    return {*BUILT_WITH, *replaced.difference(BUILT_ANYWAY)}


def left_out(argv: Iterable[str]) -> list[str]:
    """The job's flags that the model is built without, or with another value."""
    removed = _removed()
    given = [word.split("=", 1)[0] for word in argv if word.startswith("--")]
    return [flag for flag in dict.fromkeys(given) if flag in removed]


def replace(argv: Iterable[str]) -> list[str]:
    """The words of Megatron's command line that the model is built with."""
    removed = _removed()
    words, skipping = [], False
    for word in argv:
        if word.startswith("--"):
            skipping = word.split("=", 1)[0] in removed
        if not skipping:
            words.append(word)
    return [*words, *BUILT_WITH]


def _count(job: Candidate, pipeline_rank: int) -> dict[str, Any]:
    """Build what a pipeline stage's first rank starts with, and count its parameters."""
    from megatron.training.argument_utils import gpt_config_from_args

    words = replace(job.argv)
    _become(job, 0, words)
    try:
        args = _parse()
        # Stages follow each other with this distance in Megatron's order of ranks.
        distance = job.world_size // args.pipeline_model_parallel_size
        if args.use_tp_pp_dp_mapping:
            distance = args.tensor_model_parallel_size * args.context_parallel_size
        args.rank = pipeline_rank * distance
        os.environ["RANK"] = str(args.rank)
        _pretend_transformer_engine()
        _validate(args)
        _group(args)
    except Refused as refusal:
        # The job's own arguments were accepted up to here.
        raise RuntimeError(f"with replaced arguments, {': '.join(refusal.args)}") from refusal
    config = gpt_config_from_args(args)  # fails where only the tokenizer knows the vocabulary
    from launcher.megatron import construction

    with _stage("model"):
        counts, not_built = construction.build(args, config, job.own_training)
    return {"stage": {"pipeline_rank": pipeline_rank, **counts}, "not_built": not_built}


def read(line: str) -> Candidate:
    """The job that a line of JSON describes. Raises ValueError or TypeError for any other line."""
    fields = json.loads(line)
    fields["argv"] = tuple(map(str, fields["argv"]))
    fields["compute_capability"] = tuple(fields.get("compute_capability", HOPPER))
    return Candidate(**fields)


def main() -> None:
    """Judge the jobs of standard input; write a verdict a line."""
    repository = str(Path(__file__).resolve().parents[2])
    own = str(Path(__file__).resolve().parent)
    sys.path[:] = [*(entry for entry in sys.path if entry != own), repository]
    jobs = [read(line) for line in sys.stdin if line.strip()]
    for verdict in judge(jobs):
        print(json.dumps(dataclasses.asdict(verdict)), flush=True)


if __name__ == "__main__":
    main()
