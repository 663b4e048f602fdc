"""Runs that are slow for a known reason name it among their first three."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from launcher.plan import published
from launcher.plan.projection import calibration
from launcher.plan.projection import report as projected
from launcher.report import compare, effects, metrics, page, subject, summary
from launcher.report.findings import findings
from tests.report.runs import QWEN, make, steady_log
from tests.report.test_training_log import line


def told(path: Path) -> list[str]:
    return [one.what for one in summary.report(subject.read(path)).findings]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (
            {
                "--recompute-granularity": "full",
                "--recompute-method": "uniform",
                "--recompute-num-layers": 1,
            },
            "full recomputation",
        ),
        (
            {"--moe-token-dispatcher-type": "alltoall", "--moe-flex-dispatcher-backend": None},
            "alltoall dispatcher",
        ),
        (
            {"--overlap-moe-expert-parallel-comm": None},
            "expert communication not overlapped",
        ),
        ({"--moe-router-force-load-balancing": None}, "natural routing"),
        (
            {
                "--pipeline-model-parallel-size": 8,
                "--expert-model-parallel-size": 2,
                "--global-batch-size": 16,
            },
            "pipeline bubble",
        ),
        ({"--optimizer-cpu-offload": True}, "optimizer on the CPU"),
    ],
)
def test_the_reason_is_among_the_first_three(tmp_path: Path, changed: dict, reason: str):
    assert reason not in told(make(tmp_path / "good", steady_log(21.0)))
    assert reason in told(make(tmp_path / "run", steady_log(30.0), changed))[:3]


def test_all_of_the_reasons_at_once(tmp_path: Path):
    bad = {
        "--recompute-granularity": "full", "--moe-token-dispatcher-type": "alltoall",
        "--moe-flex-dispatcher-backend": None, "--overlap-moe-expert-parallel-comm": None,
        "--moe-router-force-load-balancing": None, "--pipeline-model-parallel-size": 2,
        "--expert-model-parallel-size": 8, "--global-batch-size": 64,
    }  # fmt: skip
    found = told(make(tmp_path / "run", steady_log(9.0, batch=64), bad))
    assert {
        "full recomputation", "alltoall dispatcher", "expert communication not overlapped",
        "natural routing", "pipeline bubble",
    } <= set(found)  # fmt: skip


def test_gains_are_arithmetic(tmp_path: Path):
    changed = {
        "--pipeline-model-parallel-size": 8,
        "--expert-model-parallel-size": 2,
        "--global-batch-size": 32,
    }
    run = subject.read(make(tmp_path / "run", steady_log(9.0), changed))
    bubble = next(one for one in findings(run, metrics.measure(run)) if "bubble" in one.what)
    assert bubble.high == pytest.approx(7 / 16)  # (8 - 1) stages over 32 / (16 / 8) micro-batches
    for one in findings(run, metrics.measure(run)):
        assert one.source
        assert one.evidence
        assert 0 <= one.low <= one.high


def test_a_slow_task_and_slow_steps(tmp_path: Path):
    text = "".join(
        line(n, label=f"{rank}: ", seconds=2.4 if rank == 3 else 2.0)
        for n in range(1, 20)
        for rank in range(8)
    )
    path = tmp_path / "a.log"
    path.write_text(text)
    assert told(path)[0] == "a slow task"
    times = [9.0 if n % 10 == 0 else 2.0 for n in range(1, 61)]
    path.write_text("".join(line(n, seconds=s, at=f" [2026-09-01 00:{n:02d}:00]") for n, s in enumerate(times, 1)))  # fmt: skip
    assert "slow steps" in told(path)


def test_memory_left_over(tmp_path: Path):
    memory = "[Rank 0] (after 2 iterations) memory (MB) | allocated: 30000.0 | max allocated: 40000.0 | reserved: 41000.0 | max reserved: 42000.0\n"
    assert "memory left over" in told(make(tmp_path / "run", steady_log(21.0) + memory))


def test_a_smoke_run_is_not_judged_by_its_sizes(tmp_path: Path):
    path = make(tmp_path / "run", steady_log(21.0), {"--moe-router-force-load-balancing": None})
    (path / "environment.yaml").write_text("settings: {SMOKE: {value: '1', origin: test}}\n")
    assert told(path) == []


SLOW = {
    "--moe-token-dispatcher-type": "alltoall", "--moe-flex-dispatcher-backend": None,
    "--overlap-moe-expert-parallel-comm": None, "--recompute-granularity": "selective",
    "--recompute-modules": "moe_act", "--moe-router-force-load-balancing": None,
}  # fmt: skip


def compared(path: Path) -> compare.Comparison:
    run = subject.read(path)
    near = compare.compare(run, metrics.measure(run))
    assert near is not None
    return near


def test_the_nearest_published_run(tmp_path: Path):
    """It is this card's: 30.29 s a step."""
    near = compared(make(tmp_path / "run", steady_log(30.29), {"--moe-router-force-load-balancing": None}))  # fmt: skip
    assert near.sizes.startswith("16 H100, bf16, TP1 PP1")
    assert near.tokens == pytest.approx(1024 * 4096 / 30.29 / 16, rel=1e-3)
    assert near.ratio == pytest.approx(1, rel=1e-3)
    (overlap,) = (one for one in near.differences if one.what == "overlap on instead of off")
    assert overlap.effect is effects.OVERLAP


def test_differences_come_with_their_measured_effects(tmp_path: Path):
    near = compared(make(tmp_path / "run", steady_log(40.0), SLOW, gpus=8, gpu={"name": "GB300"}))
    found = {one.what: one.effect for one in near.differences}
    assert found["dispatcher alltoall instead of hybridep"] is effects.DISPATCHER
    assert found["recompute moe_act instead of none"] is effects.RECOMPUTE_SELECTIVE
    assert found["routing dropless instead of forced balance"] is effects.BALANCE_MANY
    assert found["precision bf16 instead of mxfp8"] is effects.PRECISION
    (graphs,) = (effect for what, effect in found.items() if what.startswith("graphs none"))
    assert graphs is effects.GRAPHS
    known = [one.effect.high for one in near.differences if one.effect]
    assert known == sorted(known, reverse=True)
    fp4 = compared(make(tmp_path / "fp4", steady_log(9.0), {"--fp4-format": "e2m1"}, gpu={"name": "B200"}))  # fmt: skip
    assert any(one.what == "precision nvfp4 instead of mxfp8" for one in fp4.differences)


def test_a_model_is_known_by_its_dimensions(tmp_path: Path):
    named = make(tmp_path / "named", steady_log(30.29), model="my-own-name")
    assert compared(named).tflops == compared(make(tmp_path / "run", steady_log(30.29))).tflops
    other = subject.read(make(tmp_path / "other", steady_log(30.29), {"--num-layers": 40}))
    assert compare.compare(other, metrics.measure(other)) is None


def test_the_projection_of_the_run(tmp_path: Path):
    made = summary.report(subject.read(make(tmp_path / "run", steady_log(30.29), SLOW)))
    found = made.expectation
    assert found is not None
    ratio = 1024 * 4096 / 30.29 / 16 / found.projection.tokens
    low, high = found.tflops
    told = f"{found.projection.tflops:,.0f} TFLOPS/GPU ({low:,.0f} to {high:,.0f}); this run reached {ratio:.2f} of it"
    assert low < found.projection.tflops < high
    for text in (summary.text(made), summary.markdown(made)):
        assert told in text
    assert summary.data(made)["projection"]["ratio"] == pytest.approx(ratio)


def test_the_page_has_the_projection(tmp_path: Path):
    pytest.importorskip("plotly")
    made = summary.report(subject.read(make(tmp_path / "run", steady_log(30.29), SLOW)))
    assert dict(summary.rows(made))["projected"] in page.html([made])


def test_findings_have_the_projections_share(tmp_path: Path):
    """What the projection says is exposed, of a step of the longer one of the two."""
    made = summary.report(subject.read(make(tmp_path / "run", steady_log(60.0), SLOW)))
    assert made.expectation is not None
    parts = made.expectation.projection
    for name, part in (("not overlapped", "expert"), ("CUDA graphs", "host")):
        (one,) = (one for one in made.findings if name in one.what)
        share = parts.by[part] / max(60.0, parts.seconds)
        assert one.high == pytest.approx(share / (1 - share))
        assert "projection" in one.source


@pytest.mark.parametrize("flag", [{"--fp4-format": "e2m1"}, {"--spec": "my.module spec"}])
def test_no_projection_of_what_is_not_modelled(tmp_path: Path, flag: dict):
    made = summary.report(subject.read(make(tmp_path / "run", steady_log(30.29), flag)))
    assert made.expectation is None
    assert "projected" not in summary.text(made)
    assert summary.data(made)["projection"] is None


def test_no_projection_of_a_smoke_run_or_an_unknown_gpu(tmp_path: Path):
    smoke = make(tmp_path / "smoke", steady_log(21.0))
    (smoke / "environment.yaml").write_text("settings: {SMOKE: {value: '1', origin: test}}\n")
    for path in (smoke, make(tmp_path / "run", steady_log(21.0), gpu={"name": "VR200"})):
        assert compare.expect(subject.read(path)) is None


def test_a_run_is_not_held_against_itself(tmp_path: Path):
    """Its figure counts for others once `calibrate` has taken it over."""
    path = make(tmp_path / "run", steady_log(60.0), SLOW)
    (path / "environment.yaml").write_text(f"settings: {{OUTPUT_PATH: {{value: '{tmp_path}'}}}}\n")
    run = subject.read(path)
    before = compare.expect(run)
    assert before is not None
    assert run.planned is not None
    row = published.row("Qwen3-30B-A3B", "H100", run.planned.shape, projected.how(run.planned, run.site))  # fmt: skip
    row.update(seconds="60", tflops="100", software="", source=str(path))
    calibration.write(tmp_path / calibration.FILE, {"runs": [row]})
    assert compare.expect(run) == before
    other = compare.expect(dataclasses.replace(run, path=tmp_path / "other"))
    assert other is not None
    assert other.projection.seconds == pytest.approx(60, rel=0.01)


def test_defaults_of_a_dump_are_no_flags(tmp_path: Path):
    """They would be flags that the plan does not model."""
    dump = {"world_size": 16, "num_residual_streams": 4, "optimizer": "adam", "o_groups": 8}
    dump |= {"attention_backend": "AttnBackend.auto", "main_grads_dtype": "torch.float32"}
    dump |= {"encoder_num_layers": 48, "encoder_seq_length": 4096}
    dump |= {
        flag[2:].replace("-", "_"): value
        for flag, value in QWEN.items()
        if flag not in ("--vocab-size", "--swiglu")
    }
    dump |= {"vocab_size": 151936, "swiglu": True}
    text = "------------------------ arguments ------------------------\n"
    text += "".join(f"  {name} {'.' * 20} {value}\n" for name, value in dump.items())
    log = tmp_path / "train.log"
    log.write_text(f"{text}-------------------- end of arguments ---------------------\n{steady_log(30.29)}")  # fmt: skip
    run = subject.read(log, subject.Given(gpu="H100"))
    assert not {"--o-groups", "--attention-backend", "--main-grads-dtype"} & {*run.arguments}
    assert run.model == "Qwen3-30B-A3B"
    assert compare.expect(run) is not None
