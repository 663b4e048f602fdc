"""The command behind the scripts of ckpt_convert_scripts/.

    python3 -m launcher.convert TABLE [--megatron-flag value …]
    python3 -m launcher.convert [TABLE] --verify FOLDER

TABLE is an architecture of tables.py. Everything else comes from the environment, as for the
launcher: MODEL, TP, PP, EP, VPP, …, and the variables of ckpt_convert_scripts/README.md.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from launcher.convert import (
    configuration,
    description,
    encodings,
    hugging_face,
    manifest,
    megatron_source,
    resumable,
    to_hugging_face,
    to_megatron,
)
from launcher.convert.description import Description
from launcher.convert.tables import TABLES, Table
from launcher.errors import UsageError, did_you_mean

FORMATS = ("torch_dist", "legacy")


def main(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run one conversion; a UsageError is one line on stderr and status 1."""
    try:
        if len(words) > 1 and words[-2] == "--verify":
            count = manifest.verify(Path(words[-1]), _workers(environ))
            print(f"{count} files are as they were written")
            return 0
        if not words or words[0] not in TABLES:
            hint = did_you_mean(words[0], TABLES) if words else ""
            raise UsageError(f"the first word is one of {', '.join(TABLES)}.{hint}")
        convert(TABLES[words[0]], words[1:], environ)
        return 0
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, run again to go on", file=sys.stderr)
        return 130


def convert(table: Table, words: Sequence[str], environ: Mapping[str, str]) -> None:
    """Convert in the direction that the source asks for."""
    source, target = (_path(environ, name) for name in ("SOURCE_CKPT_PATH", "TARGET_CKPT_PATH"))
    if target == source or source in target.parents or target in source.parents:
        raise UsageError("SOURCE_CKPT_PATH and TARGET_CKPT_PATH are not apart")
    started = time.monotonic()
    if megatron_source.is_megatron(source):
        size = _to_hugging_face(table, words, environ, source, target)
    else:
        size = _to_megatron(table, words, environ, source, target)
    seconds = time.monotonic() - started
    print(f"{target}: {size / 1e9:.2f} GB in {seconds:.0f} s", file=sys.stderr)


def _to_megatron(
    table: Table, words: Sequence[str], environ: Mapping[str, str], source: Path, target: Path
) -> int:
    form = _choice(environ, "FORMAT", FORMATS)
    configuration.check_kind(hugging_face.read_config(source), table)
    stored = hugging_face.open_source(source)
    read = encodings.decoded(stored, table)
    if beside := encodings.beside_language(stored):
        print(
            f"note: {len(beside)} tensors are no part of the language model and left out "
            f"({beside[0]}, …)",
            file=sys.stderr,
        )
    layers = _layers(read.config)
    there = _published_mtp(table, read.tensors, layers)
    left_out: list[str] = []
    if not _wants_mtp(environ, words, there):
        words, left_out = _with_mtp(words, 0), _mtp_patterns(table, layers, there)
    elif there:
        words = _with_mtp(words, there)
    described = description.from_launcher(words, environ)
    configuration.check(read.config, table, described.shape.model, described.arguments)
    for note in configuration.notes(read.config, described.shape.model):
        print(f"note: {note}", file=sys.stderr)
    mapped = to_megatron.match(read, described, table, left_out)
    make = to_megatron.torch_dist_units if form == "torch_dist" else to_megatron.legacy_units
    units = make(mapped)
    plan = {
        **_plan(table, environ, described, form),
        "source": {name: list(one) for name, one in _files(read).items()},
    }
    finish = partial(to_megatron.finish, mapped, form)
    print(
        f"{len(read.tensors)} tensors → {len(mapped.filled)} parameters, {form}, "
        f"{len(units)} files",
        file=sys.stderr,
    )
    resumable.write_all(target, plan, units, finish, _workers(environ))
    return sum(unit.size for unit in units)


def _wants_mtp(environ: Mapping[str, str], words: Sequence[str], there: int) -> bool:
    """Say whether multi-token prediction is converted: by MTP, else by the source."""
    wanted = environ.get("MTP", "")
    if wanted not in ("", "0", "1"):
        raise UsageError(f"MTP={wanted!r}: 0 leaves multi-token prediction out, 1 converts it")
    if wanted == "0" and _has_mtp(words):
        raise UsageError("MTP=0 and --mtp-num-layers contradict each other")
    if wanted == "1" and not there:
        raise UsageError("MTP=1, and the source has no multi-token prediction; leave MTP unset")
    return wanted != "0"


def _has_mtp(words: Sequence[str]) -> bool:
    return any(word.partition("=")[0] == "--mtp-num-layers" for word in words)


def _with_mtp(words: Sequence[str], layers: int) -> list[str]:
    """Return the words with a number of MTP layers, unless they say one."""
    return list(words) if _has_mtp(words) else [*words, "--mtp-num-layers", str(layers)]


def _published_mtp(table: Table, names: Collection[str], layers: int) -> int:
    """Return how many MTP layers a list of tensors has."""
    published = 0
    while table.mtp and any(name.startswith(table.mtp.layer(layers, published)) for name in names):
        published += 1
    return published


def _mtp_patterns(table: Table, layers: int, published: int) -> list[str]:
    if not table.mtp:
        return []
    starts = {table.mtp.layer(layers, number) for number in range(published)}
    heads = {
        source
        for number in range(published)
        for _, _, sources in table.mtp.rows(layers, number)
        for source in sources
    }
    return [*(re.escape(start) + ".*" for start in starts), *map(re.escape, heads)]


def _layers(config: Mapping[str, object]) -> int:
    layers = configuration.language_model(config).get("num_hidden_layers")
    if not isinstance(layers, int):
        raise UsageError(f"num_hidden_layers {layers} in config.json is no number")
    return layers


def _to_hugging_face(
    table: Table, words: Sequence[str], environ: Mapping[str, str], source: Path, target: Path
) -> int:
    like = _path(environ, "LIKE_PATH")
    config = hugging_face.read_config(like)
    configuration.check_kind(config, table)
    found = megatron_source.find(source)
    wanted = _wants_mtp(environ, words, found.mtp)
    if found.mtp:
        words = _with_mtp(words, found.mtp)  # the checkpoint's layers, published or not
    described = description.from_launcher(words, environ)
    mtp = described.shape.model.mtp_built if wanted else 0
    configuration.check(config, table, described.shape.model, described.arguments)
    reader = to_hugging_face.open_checkpoint(found, described)
    tensors = to_hugging_face.published(described, table, config, like, mtp)
    units = to_hugging_face.units(reader, tensors)
    plan = {
        **_plan(table, environ, described, "safetensors"),
        "mtp": mtp,
        "source": {
            str(path.relative_to(source)): [path.stat().st_size, path.stat().st_mtime_ns]
            for path in sorted(found.folder.rglob("*"))
            if path.is_file()
        },
    }
    finish = partial(to_hugging_face.finish, like, config, table, tensors, mtp)
    print(f"{len(tensors)} tensors, {len(units)} files", file=sys.stderr)
    resumable.write_all(target, plan, units, finish, _workers(environ))
    return sum(unit.size for unit in units)


def _plan(table: Table, environ: Mapping[str, str], described: Description, form: str) -> dict:
    """Return everything besides the source that decides what is written."""
    parallel = asdict(described.shape.parallel)
    del parallel["world"], parallel["context"], parallel["sequence"]
    return {
        "model": environ.get("MODEL", ""),
        "table": table.name,
        "format": form,
        "parallel": parallel,
        "sizes": asdict(described.shape.model),
        "stages": [
            [[layer.number for layer in chunk.layers] for chunk in stage.chunks]
            for stage in described.stages
        ],
        "names": asdict(described.naming),
        "dtype": str(described.dtype),
    }


def _files(source: hugging_face.Source) -> dict[str, tuple[int, int]]:
    """Return the size and time of every file of the source."""
    paths = sorted({tensor.path for tensor in source.tensors.values()})
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def _path(environ: Mapping[str, str], name: str) -> Path:
    text = environ.get(name, "")
    if not text:
        meaning = {
            "SOURCE_CKPT_PATH": "the checkpoint to convert",
            "TARGET_CKPT_PATH": "a folder that does not exist yet",
            "LIKE_PATH": "the published model's folder, for config.json and the tokenizer",
        }
        raise UsageError(f"{name} is not set: {meaning[name]}")
    path = Path(os.path.abspath(text))
    if name != "TARGET_CKPT_PATH" and not path.is_dir():
        raise UsageError(f"{name}={text!r}: there is no such folder")
    return path


def _choice(environ: Mapping[str, str], name: str, allowed: Sequence[str]) -> str:
    text = environ.get(name) or allowed[0]
    if text not in allowed:
        raise UsageError(f"{name}={text!r}; allowed: {', '.join(allowed)}")
    return text


def _workers(environ: Mapping[str, str]) -> int:
    text = environ.get("WORKERS") or str(min(8, len(os.sched_getaffinity(0))))
    if not text.isdigit() or not int(text):
        raise UsageError(f"WORKERS={text!r} is no number of processes")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
