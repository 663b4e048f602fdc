"""`python3 -m launcher sweep FILE`: plan every point of a grid, and submit each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.errors import UsageError, did_you_mean
from launcher.job import request
from launcher.job.request import Request
from launcher.run import slurm, start, submission
from launcher.sweep import grid
from launcher.sweep.grid import Point
from launcher.sweep.jobs import make_room, say, settle, states_of
from launcher.sweep.points import Planned, plan
from launcher.sweep.state import State, recorded
from launcher.sweep.tables import FORMATS, plan_rows, result_rows, shown

REFUSALS = 3  # so many refusals at the start mean that all points have the same fault


def sweep(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Plan all points, submit the remaining ones, print the tables; return the exit status."""
    form, words = _format(words)
    if not words or words[0].startswith("--"):
        raise UsageError("moe-zoo sweep FILE [--megatron-flag value …]: FILE is missing")
    read = grid.read(grid.STDIN if words[0] == "-" else Path(words[0]))
    if read.path == grid.STDIN and not _on("DRY_RUN", environ):
        raise UsageError("a sweep of the standard input is only planned: --dry-run, or a FILE")
    for doubt in read.doubts:
        say(f"warning: {doubt}")
    planned = plan(read, words[1:], environ)
    state_path = read.path.with_name(f"{read.path.name}.state")
    ready = [each for each in planned if not each.refusal]
    begun = {} if read.path == grid.STDIN else recorded(state_path)
    only_planned = _on("DRY_RUN", environ) or not ready
    if only_planned or not form:
        print(shown(plan_rows(planned, begun), form), flush=True)
    say(f"{len(planned)} points, {len(planned) - len(ready)} of them refused by the plan")
    if only_planned:
        return 0 if ready else 1
    start.need_sbatch()
    state = State(state_path)
    try:
        settle(state)
        refused = _submit(_without_a_job(ready, state), read.in_flight, state)
        if _on("WAIT", environ):
            make_room(1, state, "the last jobs")
    except KeyboardInterrupt:
        say("stopped: jobs that are submitted go on, and the same command continues the sweep")
        return 130
    states = states_of(state)
    print(shown(result_rows(ready, state.points, states), form))
    ended_badly = any(slurm.is_over(name) and name != "COMPLETED" for name in states.values())
    return 1 if refused or (ended_badly and _on("WAIT", environ)) else 0


def _format(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the form that --format asks for ('' for people), and the words without it."""
    left = list(words)
    for place, word in enumerate(left):
        if word.partition("=")[0] == "--format":
            form = word.partition("=")[2] or "".join(left[place + 1 : place + 2])
            if form not in FORMATS:
                hint = did_you_mean(form, FORMATS)
                raise UsageError(f"sweep: --format {form!r} is none of {', '.join(FORMATS)}.{hint}")
            return form, left[:place] + left[place + (1 if "=" in word else 2) :]
    return "", left


def _without_a_job(ready: Sequence[Planned], state: State) -> list[tuple[Point, Request]]:
    return [
        (each.point, each.request)
        for each in ready
        if each.request and "job_id" not in state.points.get(each.point.key, {})
    ]


def _submit(waiting: Sequence[tuple[Point, Request]], in_flight: int, state: State) -> int:
    """Submit the points one after the other; return how many Slurm refused."""
    refused = 0
    for number, (point, asked) in enumerate(waiting, 1):
        make_room(in_flight, state, f"{len(waiting) - number + 1} points to submit")
        asked = request.renew(asked)
        job, _ = start.prepare(asked)
        state.note(point.key, run_dir=str(job.run_dir))
        try:
            job_id = submission.hand_over(job, asked.environ, [state.file.fileno()])
        except submission.Refusal as error:
            state.note(point.key, refused=str(error))
            say(f"[{number}/{len(waiting)}] {point.label}: {error}")
            refused += 1
            if refused == number == REFUSALS:
                raise UsageError(f"the first {REFUSALS} submissions were refused") from None
            continue
        state.note(point.key, job_id=job_id)
        say(f"[{number}/{len(waiting)}] {point.label}: job {job_id}")
    return refused


def _on(name: str, environ: Mapping[str, str]) -> bool:
    return environ.get(name, "") in ("1", "true")
