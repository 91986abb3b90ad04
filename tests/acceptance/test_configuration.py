"""A wrong configuration ends every command with one line and exit code 2, before anything starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.stack import PATIENCE_S, ROOT

PROVIDER = """
[[providers]]
name = "a"
kind = "openai"
model = "m"
base_url = "http://localhost:1/v1"
"""


def run(folder: Path, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *argv],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(folder), **environ},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize(
    ("argv", "text", "line"),
    [
        (
            ["llmtasks", "worker"],
            PROVIDER + "tokens_per_minute = 50",
            "llmtasks.toml: providers.a.tokens_per_minute: 50 is too small for summarize",
        ),
        (
            ["llmtasks", "worker"],
            PROVIDER + "api_key_env = 'sk-s3cret'",
            "llmtasks.toml: providers.a.api_key_env: must be the name of an environment variable",
        ),
        (
            ["llmtasks", "submit", "summarize", "doc"],
            "[brokr]\nurl = 'redis://:s3cret@h'",
            "llmtasks.toml: brokr: is no section; did you mean broker?",
        ),
        (
            ["llmtasks", "status", "batch"],
            "[database]\nurl = 'mysql://u:s3cret@h/d'",
            "llmtasks.toml: database.url: must start with",
        ),
        (
            ["celery", "-A", "workers.app", "flower"],
            "[flower]\nhost = '0.0.0.0'",
            "llmtasks.toml: flower.password: is required",
        ),
    ],
)
def test_a_wrong_configuration_is_one_line_and_exit_code_2(tmp_path, argv, text, line):
    (tmp_path / "llmtasks.toml").write_text(text)
    done = run(tmp_path, *argv)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"llmtasks: {tmp_path}/{line}")
    assert "s3cret" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["llmtasks.toml"], "something started"
