"""Numbers of runs whose numbers are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.config import gpus
from launcher.errors import UsageError
from launcher.plan import flops
from launcher.report import hardware_flops, metrics, peaks, steady, subject, summary
from tests.report.runs import make, steady_log
from tests.report.test_lines import read
from tests.report.test_training_log import line


def measured(path: Path, convention: str = "steady") -> metrics.Metrics:
    return metrics.measure(subject.read(path), convention)


def test_speed_of_a_published_run(tmp_path: Path):
    """Qwen3-30B-A3B, 16 H100, natural routing: 30.29 s, 8,654.6 tokens/s, 199.12 TFLOPS (card)."""
    found = measured(make(tmp_path / "run", steady_log(30.29)))
    assert found.seconds == pytest.approx(30.29)
    assert found.tokens == pytest.approx(1024 * 4096 / 30.29 / 16)
    assert found.tokens == pytest.approx(8654.6, rel=1e-4)
    assert found.tflops == pytest.approx(199.12, rel=0.002)
    assert found.mfu == pytest.approx(199.12 / 989.4, rel=0.002)
    assert (found.precision, found.batch) == ("bf16", 1024)


def test_the_logs_convention_is_named(tmp_path: Path):
    run = make(tmp_path / "run", steady_log(30.29).replace("(TFLOP/s/GPU): 3.3", "(TFLOP/s/GPU): 240.0"))  # fmt: skip
    found = measured(run)
    assert found.logged_flops_per_token == pytest.approx(240.0e12 / found.tokens)
    assert "compare tokens/s" in found.convention
    same = f"(TFLOP/s/GPU): {found.tflops:.1f}"
    run = make(tmp_path / "same", steady_log(30.29).replace("(TFLOP/s/GPU): 3.3", same))
    assert measured(run).convention.endswith("the log counts the same")


def test_the_first_iterations_and_graph_capture_are_left_out():
    times = [1440.0, 6.1, 4.7, 3.0, 2.9, 2.3, 2.3, 10.7, *[2.3] * 40]
    log = read("".join(line(n, seconds=s) for n, s in enumerate(times, 1)))
    window = steady.window(log.iterations)
    assert [one.number for one in window.counted] == list(range(9, 49))
    assert set(window.excluded.values()) == {"warm-up"}
    assert window.middle([one.seconds for one in window.counted]) == 2.3


def test_checkpoints_evaluations_profiles_skips_and_ramps_are_left_out():
    text = ""
    for n in range(1, 41):
        text += line(n)
        if n == 20:
            text += "[2026-09-01 00:00:00.0] saving checkpoint at iteration      20 to /save\n"
        if n == 30:
            text += "-----\n validation loss at iteration 30 | lm loss value: 4.0E+00 |\n-----\n"
    text = text.replace(line(25), line(25).replace("skipped iterations:   0", "skipped iterations:   1"))  # fmt: skip
    text = text.replace(line(8), line(8).replace("batch size:    64", "batch size:    32"))
    window = steady.window(read(text).iterations, "steady", profiled=(34, 36))
    reasons = {place + 1: why for place, why in window.excluded.items()}
    assert reasons == {
        **dict.fromkeys(range(1, 6), "warm-up"), 8: "another batch size", 21: "after checkpoint",
        25: "skipped", 31: "after evaluation", 34: "profiled", 35: "profiled", 36: "profiled",
    }  # fmt: skip


def test_conventions():
    log = read("".join(line(n, seconds=n / 10) for n in range(1, 51)))

    def step(name: str) -> float | None:
        window = steady.window(log.iterations, name)
        return window.middle([one.seconds for one in window.counted])

    assert step("last10") == pytest.approx(4.55)
    assert step("30-45") == pytest.approx(3.75)
    assert step("all") == pytest.approx(2.55)
    assert step("2-4") == pytest.approx(0.3)
    with pytest.raises(UsageError, match="last10"):
        steady.window(log.iterations, "median")


def test_lines_of_several_iterations():
    log = read("".join(line(n) for n in range(10, 101, 10)))
    assert [one.number for one in steady.window(log.iterations).counted] == list(range(20, 101, 10))


def test_a_short_log_has_a_number():
    for count in (1, 2, 3):
        log = read("".join(line(n) for n in range(1, count + 1)))
        assert steady.window(log.iterations).counted


def test_goodput(tmp_path: Path):
    """20 steps of 2 s, one first of 62; a checkpoint of 30 s; a restart that repeats 5 steps."""

    def at(seconds: float) -> str:
        return f" [2026-09-01 00:{int(seconds) // 60:02d}:{seconds % 60:05.2f}0000]"

    text, now = f"[before the start of training step] datetime: 2026-09-01 00:00:{0:02d} \n", 0.0
    for n in range(1, 21):
        now += 62 if n == 1 else 2
        text += line(n, 40, seconds=62 if n == 1 else 2, at=at(now))
        if n == 10:
            text += f"{at(now)} saving checkpoint at iteration      10 to /save\n".lstrip()
            now += 30
    text += "using world size: 16, data\n"
    text += "[before the start of training step] datetime: 2026-09-01 00:04:00 \n"
    ended, now = now, 240.0
    for n in range(16, 41):
        now += 2
        text += line(n, 40, seconds=2, at=at(now))
    found = measured(make(tmp_path / "run", text))
    assert found.lost == {
        "restarts": pytest.approx(240 - ended),
        "warm-up": pytest.approx(60),
        "checkpoints": pytest.approx(30),
        "work done again": pytest.approx(10),
    }
    assert found.wall == pytest.approx(now)
    assert found.goodput == pytest.approx(40 * 2 / now)
    assert found.iterations_left == 0


def test_recomputed_flops(tmp_path: Path):
    shape = subject.read(make(tmp_path / "run", steady_log(2.0))).shape

    def again(recompute: str, *modules: str) -> float:
        training = replace(
            shape.training, recompute=recompute, recompute_modules=frozenset(modules)
        )
        return hardware_flops.recomputed(replace(shape, training=training))

    whole = flops.per_token(shape)
    head = 6 * 2048 * 151936
    assert again("full") == pytest.approx((whole - head) / 3)
    assert again("selective", "moe") == pytest.approx(2 * 48 * 8 * 3 * 2048 * 768)
    assert again("selective", "core_attn") == pytest.approx(2 * 48 * 32 * 128 * 4096)
    assert again("selective", "layernorm", "moe_act") == 0


def test_the_dump_of_a_log_stands_for_its_arguments(tmp_path: Path):
    """A bare log of Megatron has the numbers that the run directory gives."""
    dump = {
        "num_layers": 48, "hidden_size": 2048, "ffn_hidden_size": 6144, "swiglu": True,
        "num_attention_heads": 32, "group_query_attention": True, "num_query_groups": 4,
        "kv_channels": 128, "add_bias_linear": False, "normalization": "RMSNorm",
        "position_embedding_type": "rope", "untie_embeddings_and_output_weights": True,
        "vocab_size": 151936, "num_experts": 128, "moe_router_topk": 8, "moe_ffn_hidden_size": 768,
        "moe_layer_freq": "[" + ", ".join("1" * 48) + "]", "seq_length": 4096, "bf16": True,
        "micro_batch_size": 1, "global_batch_size": 1024, "expert_model_parallel_size": 16,
        "world_size": 16, "mtp_num_layers": None, "recompute_modules": "['moe_act']",
        "qk_layernorm": True,
    }  # fmt: skip
    head = "------------------------ arguments ------------------------\n"
    text = head + "".join(f"  {name} {'.' * 20} {value}\n" for name, value in dump.items())
    log = tmp_path / "train.log"
    log.write_text(text + "-------------------- end of arguments ---------------------\n" + steady_log(30.29))  # fmt: skip
    bare = measured(log)
    whole = measured(make(tmp_path / "run", steady_log(30.29)))
    assert bare.tflops == pytest.approx(whole.tflops)
    assert bare.flops_per_token == whole.flops_per_token


def test_every_format_of_the_report(tmp_path: Path):
    made = summary.report(subject.read(make(tmp_path / "run", steady_log(30.29))))
    text = summary.text(made)
    assert "8,654 tokens/s/GPU" in text
    assert "MFU 20.1% of 989 dense BF16 TFLOPS" in text
    assert summary.as_csv([made]).splitlines()[0].startswith("run,model,gpu,gpus")
    assert "| throughput | 8,654 tokens/s/GPU" in summary.markdown(made)
    assert '"tokens_per_second_per_gpu": 8654.' in summary.as_json([made])
    empty = tmp_path / "empty.log"
    empty.write_text("")
    made = summary.report(subject.read(empty))
    assert "none in the log" in summary.text(made)
    summary.as_json([made])


def test_peaks_grow_with_smaller_numbers():
    for name in (*gpus.KNOWN, *peaks.OTHERS):
        known = [peaks.peak(name, precision) for precision in ("bf16", "fp8", "fp4")]
        order = [peak for peak in known if peak]
        assert order == sorted(order)
    assert peaks.peak("A100", "bf16") == 312
    assert peaks.peak("A100", "fp8") is None
    assert peaks.peak("GB200", "fp16") == 2500
    assert peaks.peak("H100", "fp8") == pytest.approx(2 * 989.4, rel=1e-3)
    assert peaks.peak(None, "bf16") is None
