"""Secrets reach neither a file nor the terminal."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from launcher import secrets, terminal
from launcher.errors import UsageError
from launcher.run import directory
from tests.support.launching import preview

KEY = "0123456789abcdef'\"é"


@pytest.mark.parametrize(
    "name",
    ["WANDB_API_KEY", "MY_TOKEN", "DB_PASSWORD", "x_secret", "AWS_ACCESS_KEY_ID", "OPENAI_APIKEY"],
)
def test_names_of_secrets(name: str):
    assert secrets.is_secret(name)


@pytest.mark.parametrize(
    "name", ["TOKENIZER_MODEL", "NCCL_IB_PKEY", "UCX_IB_PKEY", "KEYBOARD", "TOKENIZERS_PARALLELISM"]
)
def test_names_of_none(name: str):
    assert not secrets.is_secret(name)


def test_a_secret_is_found_as_it_is_and_quoted():
    environ = {"MY_KEY": KEY, "SSH_KEY": "/home/me/.ssh/id", "OTHER": KEY}
    import json
    import shlex

    for text in (KEY, json.dumps(KEY), repr(KEY), shlex.quote(f"a{KEY}")):
        assert secrets.within(f"x {text} y", environ) == "MY_KEY", text
        assert "0123456789" not in secrets.hidden(text, environ)
    assert secrets.within("/home/me/.ssh/id", environ) is None
    with pytest.raises(UsageError, match="the value of MY_KEY would become part of here"):
        secrets.check(KEY, environ, "here")


def test_nothing_that_is_printed_holds_a_secret():
    told, said = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(told),
        contextlib.redirect_stderr(said),
        terminal.prepared({"MY_KEY": KEY}),
    ):
        import sys

        print(f"a {KEY} b")
        print(f"error: {KEY}", file=sys.stderr)
    assert told.getvalue() == "a <MY_KEY> b\n"
    assert said.getvalue() == "error: <MY_KEY>\n"


def test_a_configs_secret_travels_by_the_environment(tmp_path: Path):
    conf = tmp_path / "mine.conf"
    conf.write_text(
        f"OUTPUT_PATH={tmp_path}/out MEGATRON_PATH=/m CONTAINER_RUNTIME=none MLFLOW_TOKEN=abcdefgh12345 NCCL_IB_PKEY=1\n"
    )
    seen = preview(CLUSTER=str(conf))
    assert "abcdefgh12345" not in seen.stdout + seen.stderr
    assert "MLFLOW_TOKEN reaches the training processes by the environment" in seen.stderr
    kept = next(line for line in seen.script.splitlines() if "WANDB_API_KEY |" in line)
    assert " MLFLOW_TOKEN " in kept
    assert "export NCCL_IB_PKEY=1\n" in seen.script


def test_files_of_a_run_follow_the_umask(tmp_path: Path):
    import os

    for mask, mode in ((0o022, 0o644), (0o077, 0o600), (0o007, 0o660)):
        before = os.umask(mask)
        try:
            directory.write(tmp_path / "file", "text")
        finally:
            os.umask(before)
        assert (tmp_path / "file").stat().st_mode & 0o777 == mode
