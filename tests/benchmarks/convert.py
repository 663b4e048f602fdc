"""How fast a checkpoint is converted, against `cp` of the same bytes in the same run.

    .venv/training/bin/python tests/benchmarks/convert.py FOLDER [gigabytes]

FOLDER gets a synthetic Qwen3-like model of about that size (default 10) and, one at a time, its
copies and conversions: four times the size must be free. Before each measurement the source leaves
the page cache, and each ends when its files are on disk. Memory is what all processes of a
conversion together hold for themselves (not the page cache), at its highest. dd with O_DIRECT says
what the disk itself allows. Legacy files repeat what ranks share, so more is written than read.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

LAYER = 64 * 3 * 2048 * 1024 * 2  # bytes of a layer's experts
MODEL = """\
EXTENDS: {root}/model_configs/benchmarking/Qwen3-30B-A3B.yaml
MODEL_ARGS: {{--num-layers: {layers}, --num-experts: 64, --moe-ffn-hidden-size: 1024}}
"""

CONFIG = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "torch_dtype": "bfloat16",
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "head_dim": 128,
    "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 40960,
    "num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 1024,
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "rope_theta": 1e6, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False,
    "attention_bias": False, "attention_dropout": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One run."""

    seconds: float
    cpu: float  # seconds of all its processes; what counts where others use the machine too
    gigabytes: float  # of memory
    written: int  # bytes


def publish(folder: Path, size: float) -> Path:
    """Write a model of `size` GB as Hugging Face would, in files of 2 GB; return its YAML."""
    import torch

    from launcher.convert import audit, description, hugging_face, tables

    layers = max(2, round(size * 1e9 / LAYER) // 2 * 2)
    model = folder / "synthetic.yaml"
    model.write_text(MODEL.format(root=ROOT, layers=layers))
    described = description.from_launcher([], environment(model))
    table = tables.TABLES["qwen3-moe"]
    shapes = audit.sources(audit.pair(table, described.shape.model, 151936), {})
    source = folder / "source"
    source.mkdir()
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        size += 2 * torch.Size(shape).numel()
        if size > 2e9:
            groups.append([])
            size = 0
        groups[-1].append(name)
    index = {}
    noise = torch.randint(-(1 << 15), 1 << 15, (1 << 25,), dtype=torch.int16)
    for number, names in enumerate(groups):
        file = f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        with (source / file).open("wb") as output:
            output.write(
                hugging_face.header([(name, torch.bfloat16, shapes[name]) for name in names])
            )
            for name in names:
                left = torch.Size(shapes[name]).numel()
                while left:
                    part = noise[: min(left, len(noise))]
                    output.write(part.numpy())
                    left -= len(part)
        index.update(dict.fromkeys(names, file))
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (source / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    return model


def environment(model: Path, **variables: object) -> dict[str, str]:
    """Return a conversion's environment."""
    given = {name: str(value) for name, value in variables.items()}
    return {**os.environ, "MODEL": str(model), "VPP": "1", "TP": "1", "PP": "2", "EP": "2", **given}


def measure(
    name: str, command: list[str], source: Path, target: Path, environ: dict[str, str]
) -> Measured:
    """Run a command that makes `target` of a source that is not in the page cache."""
    for path in source.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        command, env=environ, cwd=ROOT, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    highest = [0]

    def watch() -> None:
        while process.poll() is None:
            highest[0] = max(highest[0], memory(process.pid))
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, errors = process.communicate()
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    watcher.join()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if process.returncode:
        sys.exit(f"{command} failed: {errors}")
    print(f"{name}: {seconds:.1f} s", file=sys.stderr)
    written = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return Measured(seconds, cpu, highest[0] / 1e9, written)


def memory(session: int) -> int:
    """Return the bytes that the processes of a session hold and share with no file."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rsplit(")", 1)[1].split()[3]) != session:
                continue
            rollup = (status.parent / "smaps_rollup").read_text()
        except (OSError, IndexError):
            continue
        fields = dict(line.split(":", 1) for line in rollup.splitlines()[1:])
        total += sum(int(fields[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem")) * 1024
    return total


def begin(words: list[str], size: float) -> tuple[Path, float]:
    """Return the folder of the command line, newly made, and the gigabytes, `size` if not there."""
    folder = Path(words[0]).resolve()
    if folder.exists():
        sys.exit(f"error: {folder} exists; name a folder that this may make and remove")
    folder.mkdir(parents=True)
    return folder, float(words[1]) if words[1:] else size


def main() -> None:
    folder, size = begin(sys.argv[1:], 10)
    model = publish(folder, size)
    source, target, back = folder / "source", folder / "target", folder / "back"
    total = sum(path.stat().st_size for path in source.iterdir())
    runs: dict[str, list[Measured]] = {}

    def copied(name: str, words: list[str]) -> None:
        runs.setdefault(name, []).append(measure(name, words, source, target, dict(os.environ)))

    def converted(name: str, start: Path, end: Path, **variables: object) -> None:
        words = [sys.executable, "-m", "launcher.convert", "qwen3-moe"]
        environ = environment(model, SOURCE_CKPT_PATH=start, TARGET_CKPT_PATH=end, **variables)
        runs.setdefault(name, []).append(measure(name, words, start, end, environ))

    for _ in range(2):  # in turns: the disk is not equally fast all the time
        copied(CP, copy(source, target))
        shutil.rmtree(target)
        copied("dd, past the page cache", ["bash", "-c", DD, str(source), str(target)])
        shutil.rmtree(target)
        for workers in (2, 1):
            for form in ("legacy", "torch_dist"):
                shutil.rmtree(target, ignore_errors=True)
                name = f"{form}, {workers} worker{'s' * (workers > 1)}"
                converted(name, source, target, FORMAT=form, WORKERS=workers)
        converted("torch_dist back, 2 workers", target, back, LIKE_PATH=source, WORKERS=2)
        shutil.rmtree(target)
        shutil.rmtree(back)
    best = {name: min(found, key=lambda run: run.seconds) for name, found in runs.items()}
    print(f"{total / 1e9:.1f} GB, {os.cpu_count()} CPUs; the better of two runs each")
    for name, run in best.items():
        print(row(name, run, best[CP]))
    shutil.rmtree(folder)


def copy(source: Path, target: Path) -> list[str]:
    """Return the command that everything is held against."""
    return ["bash", "-c", 'cp -r "$0" "$1" && sync "$1"/*', str(source), str(target)]


def row(name: str, run: Measured, base: Measured) -> str:
    """Return a line of the table."""
    return (
        f"{name:28} {run.seconds:6.1f} s  {run.written / 1e9:5.1f} GB written  "
        f"{run.cpu:6.1f} s CPU  {run.gigabytes:5.2f} GB memory  "
        f"{base.seconds / run.seconds:5.2f} of cp"
    )


CP = "cp, sync"
DD = """mkdir "$1"
for file in "$0"/*; do
  dd if="$file" of="$1/${file##*/}" bs=16M iflag=direct oflag=direct status=none
done
sync "$1"/*"""


if __name__ == "__main__":
    main()
