"""The dialects of training logs: one line or block of each, and what is to be read from it."""

from __future__ import annotations

import time

import pytest

from launcher.report import lines, training_log
from launcher.report.training_log import Log

TAIL = "number of skipped iterations:   0 | number of nan iterations:   0 |"


def read(text: str) -> Log:
    """Read a log whose last line may be unfinished."""
    reader = training_log.Reader()
    reader.feed(text.encode())
    reader.finish()
    return reader.log


# Name, text, and of the last iteration: number, total, seconds, loss, TFLOPS, and some fields.
FORMATS = [
    (
        "1: Megatron-LM 2024-04, two ranks of srun -l",
        "15:  iteration        1/  500000 | consumed samples:          256 | elapsed time per iteration (ms): 38310.2 | throughput per GPU (TFLOP/s/GPU): 73.0 | learning rate: 2.000E-07 | global batch size:   256 | lm loss: 1.056640E+01 | load_balancing_loss: 1.082114E+00 | loss scale: 1.0 | grad norm: 8.341 | num zeros: 0.0 | "
        + TAIL
        + "\n 1: [Rank 1] (after 1 iterations) memory (MB) | allocated: 33166.45 | max allocated: 66211.10 | reserved: 70000.0 | max reserved: 71234.0\n",
        (1, 500000, 38.3102, 10.5664, 73.0),
        {"load_balancing_loss": 1.082114, "num zeros": 0.0, "learning rate": 2e-07},
    ),
    (
        "2: 2026-01, DeepSeek-like",
        " [2026-01-16 07:20:19.123456] iteration        6/     100 | consumed samples:        12288 | elapsed time per iteration (ms): 15639.0 | throughput per GPU (TFLOP/s/GPU): 494.6 | learning rate: 4.500000E-05 | global batch size:  2048 | lm loss: 1.213151E+01 | seq_load_balancing_loss: 1.000203E+00 | loss scale: 1.0 | grad norm: 1.012 | num zeros: 1174412544.0 | params norm: 8660.607 | "
        + TAIL,
        (6, 100, 15.639, 12.13151, 494.6),
        {"num zeros": 1174412544.0, "params norm": 8660.607, "seq_load_balancing_loss": 1.000203},
    ),
    (
        "3: 0.13 with MTP and z loss",
        " [2025-09-02 11:15:01] iteration        1/      50 | consumed samples:         1024 | elapsed time per iteration (ms): 79489.9 | throughput per GPU (TFLOP/s/GPU): 38.2 | learning rate: 1.000000E-06 | global batch size:  1024 | lm loss: 1.178013E+01 | z_loss: 1.453109E+02 | mtp_1 loss: 1.177713E+01 | load_balancing_loss: 1.100000E+00 | loss scale: 1.0 | grad norm: 3.5 | "
        + TAIL,
        (1, 50, 79.4899, 11.78013, 38.2),
        {"z_loss": 145.3109, "mtp_1 loss": 11.77713},
    ),
    (
        "4: documentation's MTP example, no throughput",
        " iteration     3500/   10000 | lm loss: 3.900000E+00 | load_balancing_loss: 1.010000E+00 | mtp_1 loss: 4.300000E+00 |",
        (3500, 10000, None, 3.9, None),
        {"mtp_1 loss": 4.3},
    ),
    (
        "5: MTP of depth 7",
        " [2025-12-01 01:02:03] iteration       20/     200 | elapsed time per iteration (ms): 5000.5 | lm loss: 4.0E+00 | "
        + "".join(f"mtp_{n} loss: {4 + n / 10:.6E} | " for n in range(1, 8))
        + TAIL,
        (20, 200, 5.0005, 4.0, None),
        {"mtp_1 loss": 4.1, "mtp_7 loss": 4.7},
    ),
    (
        "6: 2020, names without colons",
        " iteration      100/  320000 | elapsed time per iteration (ms): 528.9 | learning rate 1.500E-04 | lm loss 7.214213E+00 | loss scale 65536.0 |\ntime (ms) | forward: 141.20 | backward: 287.44 | optimizer: 99.33 | batch generator: 1.2\n",
        (100, 320000, 0.5289, 7.214213, None),
        {"learning rate": 1.5e-4, "loss scale": 65536.0},
    ),
    (
        "7: 2022, BERT",
        " iteration      200/ 1000000 | consumed samples:        51200 | elapsed time per iteration (ms): 912.3 | learning rate: 1.0E-06 | global batch size:   256 | lm loss: 9.5E+00 | sop loss: 6.9E-01 | loss scale: 1.0 | grad norm: 2.5 | "
        + TAIL
        + "\ntime (ms) | forward-compute: 301.22 | backward-compute: 509.11 | backward-params-all-reduce: 40.1\n",
        (200, 1000000, 0.9123, 9.5, None),
        {"sop loss": 0.69},
    ),
    (
        "8: 2023, epfLLM",
        " iteration      182/  250000 | consumed samples:       186368 | elapsed time per iteration (ms): 126995.3 | learning rate: 1.365E-05 | global batch size:  1024 | lm loss: 2.382640E+00 | loss scale: 1.0 | grad norm: 0.227 | "
        + TAIL,
        (182, 250000, 126.9953, 2.38264, None),
        {"learning rate": 1.365e-5},
    ),
    (
        "9: ABCI fork, two numbers in a field",
        " [2024-08-20 10:00:00] iteration        5/   25000 | iteration time: 270.125 s samples/sec: 3.8 | TFLOPs: 211.4 | learning rate: 1.0E-05 | global batch size: 1024 | lm loss: 1.1E+01 | "
        + TAIL,
        (5, 25000, 270.125, 11.0, 211.4),
        {"samples per second": 3.8},
    ),
    (
        "10: fp16 start, a skipped iteration without loss",
        " [2024-09-11 02:03:04] iteration        1/     500 | consumed samples:          512 | elapsed time per iteration (ms): 9000.0 | learning rate: 0.000000E+00 | global batch size:   512 | loss scale: 4294967296.0 | number of skipped iterations:   1 | number of nan iterations:   0 |\nTheoretical memory footprints: weight and optimizer=9884.48 MB, activation=1.00 MB, total=9885.48 MB\n",
        (1, 500, 9.0, None, None),
        {"number of skipped iterations": 1},
    ),
    (
        "11: 2026-04, patched",
        " [2026-04-03 04:05:06.654321] iteration       30/     100 | consumed samples:  30720 | elapsed time per iteration (ms): 3210.0 | throughput per GPU (TFLOP/s/GPU): 401.5 | tokens/sec/GPU: 5104.9 | learning rate: 3.0E-04 | global batch size: 1024 | lm loss: 5.5E+00 | "
        + TAIL,
        (30, 100, 3.21, 5.5, 401.5),
        {"tokens per GPU (tokens/s/GPU)": 5104.9},
    ),
    (
        "12: Primus up to 26.4, coloured",
        "\x1b[32m[20251202 09:12:08]\x1b[0m[\x1b[36mrank-7/8\x1b[0m][INFO ] [--------trainer.py:2560] : \x1b[1m iteration      126/    5000 | consumed samples:        16128 | elapsed time per iteration (ms): 13100.0/13240.9 | hip mem usage/free/total/usage_ratio: 153.81GB/102.17GB/255.98GB/60.09% | throughput per GPU (TFLOP/s/GPU): 579.4/573.6 | tokens per GPU (tokens/s/GPU): 9801.4/9807.3 | learning rate: 9.984820E-06 | global batch size:   128 | lm loss: 6.548988E-03 | loss scale: 1.0 | grad norm: 0.061 | "
        + TAIL
        + "\x1b[0m",
        (126, 5000, 13.1, 0.006548988, 579.4),
        {"tokens per GPU (tokens/s/GPU)": 9801.4, "hip mem usage (GiB)": 153.81},
    ),
    (
        "13: Primus from 26.5",
        "[20260702 09:12:08][rank-7/8][INFO ] [trainer.py:2560] :  iteration      100/     200 | elapsed time per iteration (ms): 100.0/101.0 | compute per GPU (TFLOP/s/GPU): 496.3 (avg 496.1) | tokens/s/GPU inst/harmonic mean: 9640.7/9629.8 | global batch size: 32\n",
        (100, 200, 0.1, None, 496.3),
        {"tokens per GPU (tokens/s/GPU)": 9640.7, "global batch size": 32},
    ),
    (
        "14: Megatron-Bridge, two lines under NeMo-Run's task",
        "ain_fp8_mx/0 Step Time : 9.09s GPU utilization: 663.5MODEL_TFLOP/s/GPU\nain_fp8_mx/0  [2025-12-22 15:18:33] iteration       50/      50 | consumed samples:        25600 | elapsed time per iteration (ms): 9089.0 | learning rate: 3.000000E-05 | global batch size:   512 | lm loss: 8.114214E+00 | load_balancing_loss: 1.000000E+00 | loss scale: 1.0 | grad norm: 0.042 | "
        + TAIL,
        (50, 50, 9.089, 8.114214, 663.5),
        {"grad norm": 0.042},
    ),
    (
        "15: Bridge after its argument dump",
        "  seq_length ................................ 8192\n  world_size ................................ 8\n [2026-09-10 15:00:00] iteration       50/     200 | consumed samples:         1600 | elapsed time per iteration (ms): 450.2 | throughput per GPU (TFLOP/s/GPU): 123.4 | learning rate: 1.000000E-04 | global batch size:    32 | lm loss: 1.234567E+00 | loss scale: 1.0 |\n",
        (50, 200, 0.4502, 1.234567, 123.4),
        {"global batch size": 32},
    ),
    (
        "16: Megatron-DeepSpeed",
        " iteration        1/  317892 | consumed samples:           96 | consumed tokens:       393216 | elapsed time per iteration (ms): 25849.1 | learning rate: 3.000E-04 | global batch size:    96 | lm loss: 1.117136E+01 | loss scale: 1.0 | actual seqlen:  4096 | number of skipped iterations:   0 | number of nan iterations:   0 | samples per second: 3.714 | tokens per gpu per second(tgs): 633.832 | TFLOPs: 38.61 |\n",
        (1, 317892, 25.8491, 11.17136, 38.61),
        {"samples per second": 3.714, "tokens per GPU (tokens/s/GPU)": 633.832},
    ),
    (
        "16: bigscience's, in seconds",
        " iteration      300/  159576 | consumed samples:         4800 | elapsed time per iteration (s): 5.43 | learning rate: 1.0E-06 | global batch size:    16 | lm loss: 8.1E+00 | samples per second: 2.947 | TFLOPs: 24.11 |\n",
        (300, 159576, 5.43, 8.1, 24.11),
        {"samples per second": 2.947},
    ),
    (
        "18: MLPerf",
        ':::MLLOG {"namespace": "", "time_ms": 1760033997670, "event_type": "POINT_IN_TIME", "key": "tracked_stats", "value": {"train_step_time": 38.91, "reduced_train_loss": 3.5}, "metadata": {"file": "a.py", "lineno": 350, "step": 32}}\n',
        (32, 32, 38.91, 3.5, None),
        {},
    ),
    (
        "19: broken over three lines, and within words",
        " [2025-10-02 22:52:07] iteration       10/      50 | consumed samples:         5120 |\nelapsed time per iteration (ms): 13212.7 | learning rate: 3.000000E-04 | global batch\nsize:   512 | lm loss: 4.474437E+00 | loss scale: 1.0 | grad norm: 0.704 | number of s\nkipped iterations:   0 | number of nan iterations:   0 |\nnext\n",
        (10, 50, 13.2127, 4.474437, None),
        {"global batch size": 512, "number of skipped iterations": 0, "grad norm": 0.704},
    ),
    (
        "energy and power, 0.18's MoE metrics, host label",
        "[lrdn3321:3]: [2026-03-31 05:54:07.5] iteration       50/  242204 | consumed samples:        50400 | skipped samples:            8 | elapsed time per iteration (ms): 1552.8 | throughput per GPU (TFLOP/s/GPU): 134.0 | energy per GPU (J/iter/GPU): 912.5 | power per GPU (W/GPU): 587.6 | learning rate: 8.000000E-06 | global batch size:  1008 | lm loss: 6.258318E+00 | load_imbalance: 1.37 | loss scale: 1.0 | grad norm: nan | "
        + TAIL,
        (50, 242204, 1.5528, 6.258318, 134.0),
        {"energy per GPU (J/iter/GPU)": 912.5, "power per GPU (W/GPU)": 587.6, "load_imbalance": 1.37},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "head", "fields"), [one[1:] for one in FORMATS], ids=[one[0] for one in FORMATS])  # fmt: skip
def test_formats(text: str, head: tuple, fields: dict):
    found = read(text if text.endswith("\n") else text + "\n").newest
    assert found is not None
    seen = (found.number, found.total, found.seconds, found.loss, found.tflops)
    assert seen == pytest.approx(head)
    for name, number in fields.items():
        assert found.fields[name] == pytest.approx(number), name


def test_progress_file():
    text = "2025-05-01 10:00:00\tJob ID: 7\t# GPUs: 64\tSaved checkpoint\tIteration: 1000\tJob throughput: 364.8 TFLOP/s/GPU\tCumulative throughput: 350.1 TFLOP/s/GPU\tFloating-point operations: 1.00e+20\tTokens (in billions): 4.19\n"
    assert read(text).cumulative == [(1000, 364.8)]


def test_memory_lines():
    log = read(FORMATS[0][1])
    (one,) = log.peaks.values()
    assert (one.rank, one.iteration) == (1, 1)
    assert one.peak == pytest.approx(66211.10 * 2**20)
    assert one.reserved == pytest.approx(71234.0 * 2**20)
    broken = "[Rank 0] (after 10 iterations) memory (MB) | allocated: 11908.05 | max alloca\nted: 12712.43 | reserved: 12954.0 | max reserved: 12955.0\n"
    assert read(broken).peaks[0].peak == pytest.approx(12712.43 * 2**20)


def test_step_times_alone():
    """A log of Bridge's own lines, without an iteration line."""
    text = "".join(
        f"Step Time : {seconds}s GPU utilization: {tflops}MODEL_TFLOP/s/GPU\n"
        for seconds, tflops in ((125.37, 20.9), (6.13, 426.6), (2.26, 1156.2))
    )
    log = read(text)
    assert [one.seconds for one in log.iterations] == [125.37, 6.13, 2.26]
    assert log.newest.tflops == 1156.2


def test_the_task_that_wrote_a_line():
    for text, label in (
        ("17:  iteration", "17"),
        ("[rank3]: iteration", "rank3"),
        ("[default0]: iteration", "default0"),
        ("[node12:7]: iteration", "node12:7"),
        ("train/0 iteration", "train/0"),
        (" iteration 10/ 20", ""),
    ):
        assert lines.label(text) == label


def test_a_line_cut_anywhere_gives_no_wrong_number():
    text = FORMATS[1][1]
    whole = read(text + "\n").newest
    for cut in range(len(text)):
        for found in read(text[:cut]).iterations:
            assert found.number == 6
            assert found.fields.items() <= whole.fields.items()
            assert found.seconds in (None, whole.seconds)


@pytest.mark.parametrize("filler", [" ", "iteration ", "a", ":", "|", "[", "9", "a: ", "\x1b[", "a|", "-", ". "])  # fmt: skip
def test_time_is_linear_in_a_lines_length(filler: str):
    """Eight times the characters take nowhere near 64 times the time."""

    def spent(size: int) -> float:
        text = " iteration 3/10 | elapsed time per iteration (ms): 5.0 | " + filler * (size // len(filler))  # fmt: skip
        times = []
        for _ in range(2):
            start = time.process_time()
            read(text + "\n")
            times.append(time.process_time() - start)
        return min(times)

    assert spent(1 << 17) < 30 * (spent(1 << 14) + 0.001)
