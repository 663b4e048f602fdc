"""Where a job begins and where it saves: what was asked for, held against the files that are there.

A folder that this machine cannot see is judged by the job script, on the first node.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path

from launcher.config import parallelism
from launcher.config.arguments import Argument, value
from launcher.config.parallelism import Sizes
from launcher.job import checkpoints, container, weights
from launcher.job.draft import Draft
from launcher.plan import Finding, parameters
from launcher.plan.plan import Plan

FRESH = ("--finetune", "--no-load-optim", "--no-load-rng")
STRICTNESS, MISSING = "--dist-ckpt-strictness", "--exit-on-missing-checkpoint"
# Flags that say where a run's first start takes its weights from; a later start has its own.
FIRST = ("--load", "--ckpt-step", *FRESH)
WHOLE = "no weight is left random"  # an origin
TOLERANT = f"({STRICTNESS} log_all loads what fits)"
MODEL_FILES = (".yaml:", ".yml:")  # origins of a model's own flags


def decide(draft: Draft) -> Draft:
    """Return the draft with how its first start loads decided, and objections to what cannot be."""
    for step in (_intentions, _earlier_run, _checkpoint, _optimizer, _strictness, _resets, _losses):
        draft = step(draft)
    return draft


def hold_weights(draft: Draft, made: Plan) -> Draft:
    """Object to a checkpoint that has other weights than the job's model."""
    found = _chosen(draft)
    needs = needed(draft, made) if found else {}
    unlike = weights.unlike(found, needs) if found and needs else ""
    return _object(draft, f"{_given(draft, '--load')}: {unlike} {TOLERANT}") if unlike else draft


def needed(draft: Draft, made: Plan) -> weights.Needs:
    """Return the weights of the job's model, by part and by rank.

    Empty where the plan does not know them, and where the user asks for a load that is not strict.
    """
    shaped = made.shaped
    strict = (value(draft.arguments, STRICTNESS) or "").startswith("raise_")
    if shaped is None or "parameters" in shaped.unknown or not strict:
        return {}
    model = shaped.shape.model
    parts = {
        "word embedding": 1,
        "output": int(not model.tied),
        "embedding": model.positions * model.hidden,
        "decoder": parameters.norm(model).total,
    }
    for layer, count in parameters.by_layer(model):
        parts[f"{'mtp' if layer.mtp else 'decoder'}.layers.{layer.number}"] = count.total
    stages = itertools.cycle(count.total for count in shaped.counts)  # they vary fastest
    return {"parts": parts, "ranks": dict(zip(checkpoints.legacy_folders(sizes(draft)), stages))}


def folder(draft: Draft, flag: str) -> Path | None:
    """Return where the folder of `--load` or `--save` lies on the node; None without the flag."""
    given = value(draft.arguments, flag)
    return Path(container.on_the_node(draft.settings, given)) if given else None


def sizes(draft: Draft) -> Sizes:
    """Return the sizes that a legacy checkpoint has to have been saved with."""
    try:
        found = parallelism.read(draft.arguments)
    except ValueError:
        return checkpoints.ALONE  # the plan has an error for it, and for more ranks than there are
    return found if found.least_ranks <= draft.world_size else checkpoints.ALONE


def _intentions(draft: Draft) -> Draft:
    """Hold PRETRAIN, LOAD_PATH and DATASET against what the job does."""
    settings = draft.settings
    loads = value(draft.arguments, "--load")
    if settings.SMOKE:
        if settings.LOAD_PATH and loads is None:
            return draft.change(
                f"smoke: LOAD_PATH={settings.LOAD_PATH} is not read: a shrunken model has none of "
                "its weights (--load on the command line is read)"
            )
        return draft
    # Where a job loads and saves is one folder, it only goes on with its own run.
    own = loads == value(draft.arguments, "--save")
    if settings.PRETRAIN and loads is not None and not own:
        draft = draft.change(f"PRETRAIN=1, but {_given(draft, '--load')} is read all the same")
    if not settings.PRETRAIN and loads is None and "PRETRAIN" in settings.origins:
        line = f"PRETRAIN=0 ({settings.origin('PRETRAIN')}), but LOAD_PATH is not set"
        if settings.origin("PRETRAIN") == "environment":
            draft = _object(draft, f"{line}: set it, or PRETRAIN=1 for random weights")
        else:
            draft = draft.change(f"{line}: this begins with random weights")
    mock = draft.arguments.get("--mock-data")
    if settings.origin("DATASET") == "environment" and mock and mock.origin == "no DATA_PATH":
        draft = _object(
            draft,
            f"DATASET={settings.DATASET} (environment), but the cluster config "
            f"({settings.CLUSTER}) has no DATA_PATH for it: set DATA_PATH, or leave DATASET unset "
            "to train on mock data",
        )
    return draft


def _earlier_run(draft: Draft) -> Draft:
    """Continue the run whose checkpoints are where this job saves, or refuse to overwrite them."""
    settings = draft.settings
    place = folder(draft, "--save")
    if place is None:
        return _object(draft, "RESUME=1 needs --save") if settings.RESUME else draft
    same = folder(draft, "--load") == place
    tracked, newest = checkpoints.tracked(place), checkpoints.newest_whole(place)
    if tracked is None and newest is None:
        if settings.RESUME and seen(place):
            return _object(draft, f"RESUME=1, but {place} holds no checkpoint to go on from")
        if same and seen(place):  # Megatron's own way to say: go on, once something is there
            return draft.change(
                f"{place} holds no checkpoint yet: this begins with random weights",
                arguments={flag: a for flag, a in draft.arguments.items() if flag != "--load"},
            )
        return _continue(draft) if settings.RESUME or same else draft
    run = checkpoints.owner(place)
    iteration = tracked if tracked and checkpoints.is_step(tracked) else newest
    holds = f"{place} holds iteration {iteration} of {f'run {run}' if run else 'an earlier run'}"
    if settings.RESUME or same:
        return _continue(draft.change(f"{holds}, and this goes on from there"))
    if settings.FORCE:
        return draft.change(f"{holds}; FORCE=1 begins anew and overwrites it")
    return _object(
        draft,
        f"{holds}: RESUME=1 continues it, another OUTPUT_PATH leaves it alone, "
        "FORCE=1 overwrites it",
    )


def _continue(draft: Draft) -> Draft:
    """Let the first start go on as a later start of the earlier run would."""
    origin = "RESUME=1" if draft.settings.RESUME else "--load is --save"
    saves = value(draft.arguments, "--save") or ""
    models = [flag for flag in FRESH if _is_the_models(draft, flag)]
    arguments = {flag: each for flag, each in draft.arguments.items() if flag not in models}
    arguments["--load"] = Argument("--load", (saves,), origin)
    notes = []
    if models:
        notes.append(f"{origin}: the model's {', '.join(models)} is for first starts, and left out")
    if folder(draft, "--load") not in (None, folder(draft, "--save")):
        notes.append(f"{origin}: {_given(draft, '--load')} is not read")
    return draft.change(*notes, arguments=arguments)


def _checkpoint(draft: Draft) -> Draft:
    """Object to a checkpoint that is not there, or that this job could not read."""
    place, step = folder(draft, "--load"), value(draft.arguments, "--ckpt-step")
    if place is None or not seen(place) or "--pretrained-checkpoint" in draft.arguments:
        return draft
    flaw = checkpoints.flaw(place, sizes(draft), step)
    newest = checkpoints.newest_whole(place)
    if not flaw:
        return draft
    if place == folder(draft, "--save") and newest is not None and step is None:
        return draft.change(f"{place}: {flaw}; the newest whole checkpoint is iteration {newest}")
    offer = "" if newest is None else f" (--ckpt-step {newest} reads a whole one)"
    return _object(draft, f"{_given(draft, '--load')}: {flaw}{offer}")


def _optimizer(draft: Draft) -> Draft:
    """Object to an optimizer that belongs to other parallel sizes than the job's."""
    if {"--finetune", "--no-load-optim"} & draft.arguments.keys():
        return draft
    found, wanted = _chosen(draft), dataclasses.replace(sizes(draft), context=1)
    bound = checkpoints.bound_to(found) if found else None
    if bound in (None, wanted):
        return draft
    return _object(
        draft,
        f"{_given(draft, '--load')}: its optimizer was saved for {bound}, and this is {wanted}: "
        "use the same sizes, or --no-load-optim to begin it anew "
        "(--dist-ckpt-optim-fully-reshardable saves one that any sizes can read)",
    )


def _chosen(draft: Draft) -> Path | None:
    """Return the folder of the iteration that the job loads; None where it is not whole here."""
    place, step = folder(draft, "--load"), value(draft.arguments, "--ckpt-step")
    if place is None or not seen(place):
        return None
    step = step or checkpoints.tracked(place)
    if step is None or checkpoints.flaw(place, sizes(draft), step):
        newest = checkpoints.newest_whole(place)
        return None if newest is None else checkpoints.place(place, str(newest))
    return checkpoints.place(place, step)


def _strictness(draft: Draft) -> Draft:
    """Let a load fail on weights that are not in the checkpoint.

    `raise_all` would fail on whatever only the checkpoint has too: an optimizer that the load does
    not ask for, the random state at another TP or PP, or the extra states of Transformer Engine's
    layers where others run (validation.py). `hold_weights` therefore finds weights too many.
    """
    if not {"--load", "--save"} & draft.arguments.keys():
        return draft
    added = {
        MISSING: Argument(MISSING, (), WHOLE),
        STRICTNESS: Argument(STRICTNESS, ("raise_unexpected",), WHOLE),
    }
    return draft.change(arguments={**added, **draft.arguments})


def _resets(draft: Draft) -> Draft:
    """Say what the model's own flags take away from a checkpoint that the user chose."""
    found = [flag for flag in FRESH if _is_the_models(draft, flag)]
    if "--load" not in draft.arguments or not found:
        return draft
    if "--finetune" in found:
        lost = "iteration, learning-rate schedule, optimizer and random state begin anew"
    else:
        names = {"--no-load-optim": "optimizer and schedule", "--no-load-rng": "random state"}
        lost = f"{', '.join(names[flag] for flag in found)} begin anew"
    flags = ", ".join(f"{flag} ({draft.arguments[flag].origin})" for flag in found)
    return draft.change(f"{_given(draft, '--load')} is read with the model's {flags}: {lost}")


def _losses(draft: Draft) -> Draft:
    """Say what each later start loses, where the job saves less than it needs to go on."""
    if "--save" not in draft.arguments:
        return draft
    lost = {
        "--no-save-optim": "the optimizer's state and the learning-rate schedule",
        "--no-save-rng": "the random state",
    }
    notes = [
        f"{_given(draft, flag)}: each later start begins anew with {what}"
        for flag, what in lost.items()
        if flag in draft.arguments
    ]
    return draft.change(*notes)


def seen(place: Path) -> bool:
    """Say whether this machine can tell what is at a path, or that nothing is there.

    A file system that only the nodes have is not judged: the folder around what is missing must
    be here, and not be the root, where a node may have disks of its own.
    """
    around = place.parent
    here = os.path.exists(place) or (os.path.isdir(around) and around != Path("/"))
    return place.is_absolute() and here


def _is_the_models(draft: Draft, flag: str) -> bool:
    argument = draft.arguments.get(flag)
    return argument is not None and any(ending in argument.origin for ending in MODEL_FILES)


def _given(draft: Draft, flag: str) -> str:
    argument = draft.arguments[flag]
    return f"{' '.join(argument.words())} ({argument.origin})"


def _object(draft: Draft, line: str) -> Draft:
    return draft.change(findings=(*draft.findings, Finding("error", line, "loading")))
