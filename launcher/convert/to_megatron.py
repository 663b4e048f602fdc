"""Convert Hugging Face safetensors to a Megatron checkpoint, legacy or torch_dist."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

from launcher.convert import audit, legacy, resumable, tables, torch_dist
from launcher.convert.audit import Filled
from launcher.convert.configuration import language_model
from launcher.convert.description import Description
from launcher.convert.files import SMALL, Output, ahead, digest
from launcher.convert.hugging_face import Source
from launcher.convert.megatron_source import TRACKER
from launcher.convert.tables import Table
from launcher.convert.transforms import Copy, QueryKeyValue, Stack, ZeroCentred
from launcher.convert.values import Changes
from launcher.errors import UsageError
from launcher.plan.stages import Layer

FOLDER = "release"  # Megatron: weights to start from, not an iteration to go on from


@dataclass(frozen=True)
class Mapped:
    """A published model and the job that will start from it, with every tensor matched."""

    source: Source
    job: Description
    filled: tuple[Filled, ...]
    twins: Mapping[str, str]

    @cached_property
    def by_name(self) -> dict[str, Filled]:
        """Every parameter, by its name."""
        return {one.parameter.name: one for one in self.filled}


def match(source: Source, job: Description, table: Table, left_out: Sequence[str] = ()) -> Mapped:
    """Audit names, shapes and dtypes; `left_out` are patterns of tensors that are not converted."""
    model = job.shape.model
    filled = audit.pair(table, model, vocabulary(source.config, model.vocabulary))
    twins = tables.twins(table, model)
    expected = audit.sources(filled, twins)
    # Copies may be left out of a publication; where they are there, they are compared.
    audit.check(expected, source.tensors, (*table.ignored, *left_out), optional=twins)
    present = {name: other for name, other in twins.items() if name in source.tensors}
    return Mapped(source, job, tuple(filled), present)


def vocabulary(config: Mapping[str, object], padded: int) -> int:
    """Return the published number of tokens. Raises UsageError where Megatron has fewer rows."""
    size = language_model(config).get("vocab_size")
    if not isinstance(size, int) or not 0 < size <= padded:
        raise UsageError(
            f"vocab_size {size} in config.json, {padded} rows in Megatron's embedding "
            "(--vocab-size and --make-vocab-size-divisible-by)"
        )
    return size


def bytes_of(one: Filled, job: Description) -> int:
    """Return the bytes of a whole parameter in the checkpoint."""
    return one.parameter.numel * one.dtype(job.dtype).itemsize


def read_sections(
    mapped: Mapped, wanted: Sequence[Filled], changes: Changes, rank: legacy.Rank | None = None
) -> Iterator[list[torch.Tensor]]:
    """Return each parameter by its sections, the rank's part of them; the next are read meanwhile.

    Without a rank they are whole. What becomes of the values is noted in `changes`.
    """
    shares = [_share(mapped, one, rank) for one in wanted]
    found = ahead(
        lambda item: _read_source(mapped, *item, changes),
        [(one, name, share) for one, share in zip(wanted, shares) for name in one.row.sources],
        small=lambda item: math.prod(mapped.source.tensors[item[1]].shape) < SMALL // 2,
    )
    for one, share in zip(wanted, shares):
        tensors = [next(found) for _ in one.row.sources]
        how = one.row.how.share(share[1]) if isinstance(one.row.how, QueryKeyValue) else one.row.how
        if isinstance(how, Stack):  # its tensors are the sections
            sections = tensors
        else:
            whole = how.forward(tensors)
            if isinstance(how, ZeroCentred):
                changes.compare(tensors[0], how.backward(whole)[0], one.row.sources[0])
            sections = list(whole.split(one.parameter.sections or len(whole)))
        if rank and share == WHOLE:
            sections = legacy.shard(sections, one.parameter, mapped.job, rank)
        yield sections


WHOLE = (0, 1)


def _share(mapped: Mapped, one: Filled, rank: legacy.Rank | None) -> tuple[int, int]:
    """Return which of how many parts of each source's rows a rank needs; WHOLE where all.

    A split over the rows is one of the sources' rows where they are copied or joined by group.
    """
    if rank is None or one.parameter.axis != 0:
        return WHOLE
    sections = bool(one.parameter.sections)  # each is split by itself
    if not isinstance(one.row.how, Stack if sections else (Copy, QueryKeyValue)):
        return WHOLE
    if one.row.sources[0] in mapped.twins.values():
        return WHOLE  # which is compared, whole
    return legacy.part_of(one.parameter, mapped.job, rank)


def _read_source(
    mapped: Mapped, one: Filled, name: str, share: tuple[int, int], changes: Changes
) -> torch.Tensor:
    """Return a part of a tensor, as it is stored. Raises UsageError where copies differ."""
    tensor = mapped.source.read(name, *share)
    for twin, other in mapped.twins.items():
        if other == name and not torch.equal(mapped.source.read(twin), tensor):
            raise UsageError(f"{twin} is not equal to {name}, and Megatron has one tensor for both")
    return changes.cast(tensor, one.dtype(mapped.job.dtype), name, part=share[0])


# torch_dist: a file holds some parameters, whole.


def torch_dist_units(mapped: Mapped) -> list[resumable.Unit]:
    """Return the files to write: parameters in the model's order, about a gigabyte each."""
    groups: list[list[Filled]] = []
    size = 0
    for one in mapped.filled:
        if not groups or size + bytes_of(one, mapped.job) > torch_dist.FILE_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(one)
        size += bytes_of(one, mapped.job)
    layers = torch_dist.layers(mapped.job)
    return [
        resumable.Unit(
            f"{FOLDER}/__{number}_0.distcp",
            sum(bytes_of(one, mapped.job) for one in group),
            partial(_write_group, mapped, layers, group),
        )
        for number, group in enumerate(groups)
    ]


def _write_group(
    mapped: Mapped, layers: Mapping[str, Layer], group: Sequence[Filled], output: Output
) -> dict[str, list]:
    written, changes = [], Changes()
    for one, sections in zip(group, read_sections(mapped, group, changes)):
        where = torch_dist.place(mapped.job, layers, one.parameter)
        written += torch_dist.write(output, one.parameter, where, sections)
    return {"parts": written, "changes": changes.as_json()}


# legacy: a file holds a rank's parts.


def legacy_units(mapped: Mapped) -> list[resumable.Unit]:
    """Return the files to write: one a rank."""
    local = {
        one.parameter.name: math.prod(legacy.local_shape(one.parameter, mapped.job))
        * one.dtype(mapped.job.dtype).itemsize
        for one in mapped.filled
    }
    units = []
    for rank in legacy.ranks(mapped.job):
        size = sum(local[held.parameter] for held in legacy.held(mapped.job, rank))
        file = f"{FOLDER}/{legacy.path(mapped.job, rank)}"
        units.append(resumable.Unit(file, size, partial(_write_rank, mapped, rank)))
    return units


def _write_rank(mapped: Mapped, rank: legacy.Rank, output: Output) -> dict[str, list]:
    by_name, job, changes = mapped.by_name, mapped.job, Changes()
    held = list(legacy.held(job, rank))
    filled = [by_name[one.parameter] for one in held]
    models: dict[str, dict[str, torch.Tensor]] = {key: {} for key in legacy.keys(job, rank)}
    for place, one in zip(held, filled):
        shape, dtype = legacy.local_shape(one.parameter, job), one.dtype(job.dtype)
        models[place.model][place.name] = torch.empty(shape, dtype=dtype)
    pieces = (
        piece for sections in read_sections(mapped, filled, changes, rank) for piece in sections
    )
    output.save(legacy.state(job, models), pieces)
    return {"changes": changes.as_json()}


def finish(mapped: Mapped, form: str, files: Path, records: Mapping[str, dict]) -> None:
    """Write the files that belong to no rank and no group."""
    folder = files / FOLDER
    if form == "torch_dist":
        torch_dist.finish(folder, mapped.job, records)
        digests = {Path(name).name: record["sha256"] for name, record in records.items()}
        for path in folder.iterdir():
            if path.name not in digests and path.name != "integrity.json":
                digests[path.name] = digest(path)
        torch_dist.integrity(folder, digests)
    (files / TRACKER).write_text("release", encoding="utf-8")
