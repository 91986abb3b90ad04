"""A forked program is as good as one that was started."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from support import forkserver
from support.stack import eventually

ENV = {"ONLY": "this"}

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks on Linux only")


def run(tmp_path, source, *argv, **options):
    given = {"env": ENV, "cwd": tmp_path, "timeout": 30.0, **options}
    return forkserver.run([sys.executable, "-c", source, *argv], **given)


def test_it_has_its_own_environment_directory_arguments_and_streams(tmp_path):
    source = """
import os, sys
print(dict(os.environ), os.getcwd() == sys.argv[1], sys.argv, __name__, sys.stdin.read())
print("wrong", file=sys.stderr)
"""
    done = run(tmp_path, source, str(tmp_path), "b", stdin="größer")
    assert done.stdout == f"{ENV} True {['-c', str(tmp_path), 'b']} __main__ größer\n"
    assert done.stderr == "wrong\n"


def test_it_imports_all_that_is_ours_itself(tmp_path):
    source = """
import sys
print({"llmtasks", "workers", "support"} & {name.split(".")[0] for name in sys.modules})
"""
    assert run(tmp_path, source).stdout == "set()\n"


@pytest.mark.parametrize(
    ("source", "code"),
    [("pass", 0), ("raise SystemExit(3)", 3), ("1/0", 1), ("import os; os.abort()", -6)],
)
def test_how_it_ended_is_known(tmp_path, source, code):
    assert run(tmp_path, source).returncode == code


def test_what_it_does_at_its_end_is_done(tmp_path):
    source = """
import atexit, threading
atexit.register(print, "exit")
threading.Thread(target=print, args=["thread"]).start()
"""
    assert run(tmp_path, source).stdout.split() == ["thread", "exit"]


def test_modules_are_found_in_its_directory_and_its_path(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "found.py").write_text("NAME = 'found'")
    (tmp_path / "main.py").write_text("import found; print(found.NAME, __name__)")
    done = forkserver.run(
        [sys.executable, "-m", "main"],
        env={"PYTHONPATH": str(tmp_path / "there")},
        cwd=tmp_path,
        timeout=30.0,
    )
    assert done.stdout == "found __main__\n"


def test_it_hears_signals_and_no_two_draw_the_same_random_numbers(tmp_path):
    source = """
import random, signal
print(random.random(), flush=True)
signal.pause()
"""
    argv = [sys.executable, "-c", source]
    drawn = set()
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        log = tmp_path / sig.name
        with log.open("wb") as out, (tmp_path / "errors").open("wb") as err:
            program = forkserver.start(argv, env=ENV, cwd=tmp_path, stdout=out, stderr=err)
        eventually(lambda log=log: log.read_text().endswith("\n"), "it has begun")
        assert program.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(0.0)
        program.send_signal(sig)
        assert program.wait(30.0) == -sig
        drawn.add(log.read_text())
    assert len(drawn) == 3
