"""Children that are kept running: started again, not for ever, and never left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtasks import processes
from llmtasks.cli import supervise, up
from llmtasks.cli.supervise import History, Member, how_it_ended
from llmtasks.errors import JobError
from llmtasks.settings import Provider, Settings


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(supervise, "FIRST_PAUSE_S", 0.01)


def looked_after(member, until, seconds=20.0):
    """What it said until the condition held."""
    said = []
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, said
        said += filter(None, [member.look()])
        time.sleep(0.01)
    return said


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 500))))
def test_a_child_is_given_up_only_after_failing_to_start_three_times_in_a_row(ends):
    history = History()
    for ready, ran_s in ends:
        history = history.ended(ready=ready, ran_s=ran_s)
        assert supervise.FIRST_PAUSE_S <= history.pause_s <= supervise.LONGEST_PAUSE_S
    last = [ready for ready, _ in ends[-supervise.TRIES :]]
    assert history.hopeless == (len(last) == supervise.TRIES and not any(last))


def test_the_pause_grows_while_it_keeps_ending_and_shrinks_after_a_steady_run():
    history = History()
    pauses = []
    for ran_s in (1, 1, 1, supervise.STEADY_S + 1):
        history = history.ended(ready=True, ran_s=ran_s)
        pauses.append(history.pause_s)
    assert pauses == [1.0, 2.0, 4.0, 1.0]


@pytest.mark.usefixtures("quick")
def test_a_child_that_cannot_start_is_given_up_with_its_last_words(tmp_path):
    argv = [sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"]
    member = Member("w", argv, tmp_path / "w.log", is_ready=lambda _pid: False)
    said = looked_after(member, lambda: member.hopeless)
    assert member.last_words() == ["no such thing"]
    assert len(said) == 3
    assert "exit 3" in said[-1]
    assert member.look() is None


@pytest.mark.usefixtures("quick")
def test_up_ends_with_the_reason_when_a_worker_cannot_start(tmp_path, monkeypatch):
    monkeypatch.setattr(up, "LOOK_S", 0.01)
    argv = [sys.executable, "-c", "print('metrics.port: taken'); raise SystemExit(2)"]
    broken = Member("worker-1", argv, tmp_path / "w.log", is_ready=lambda _pid: False)
    crew = up.Crew(Settings(), [broken], None, up.Asked())
    with pytest.raises(JobError, match=r"worker-1 cannot start(.|\n)*metrics.port: taken"):
        crew.start()
    crew.stop()


@pytest.mark.usefixtures("quick")
def test_a_killed_child_is_started_again(tmp_path):
    member = Member(
        "w",
        [sys.executable, "-c", "import time; time.sleep(60)"],
        tmp_path / "w.log",
        is_ready=lambda _pid: True,
    )
    try:
        looked_after(member, lambda: member.ready)
        first = member.pid
        subprocess.run(["kill", "-9", str(first)], check=True)
        said = looked_after(member, lambda: member.ready and member.pid != first)
        assert "SIGKILL" in said[0]
        assert said[1:] == ["w is back"]
    finally:
        member.stop()
    assert not member.running


def test_the_log_of_the_run_before_is_kept_and_both_are_private(tmp_path):
    log = tmp_path / "w.log"
    for text in ("first", "second"):
        member = Member(
            "w", [sys.executable, "-c", f"print({text!r})"], log, is_ready=lambda _pid: True
        )
        member.look()
        member.stop(5.0)
        log.write_text(text)
    assert (tmp_path / "w.log.1").read_text() == "first"
    assert log.stat().st_mode & 0o077 == 0


def test_a_child_that_does_not_listen_is_killed_after_the_grace(tmp_path):
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print(1, flush=True); time.sleep(60)"
    )
    with processes.child([sys.executable, "-c", deaf], pipe=True, grace_s=0.1) as child:
        child.stdout.readline()
    assert child.returncode == -signal.SIGKILL


PARENT = """
import os, sys, time
from llmtasks import processes
os.register_at_fork(before=lambda: print("fork", flush=True))
child = processes.start([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_child_ends_with_a_parent_that_is_killed_and_no_fork_hook_runs_before_it():
    own = "import time; print('up', flush=True); time.sleep(60)"
    with processes.child([sys.executable, "-c", PARENT, own], pipe=True) as parent:
        said = {parent.stdout.readline().strip() for _ in range(2)}  # in whichever order
        (child,) = map(int, said - {"up"})
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 20
        while is_running(child):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def is_running(pid):
    """Of a process whose parent is dead, and whose new one may not have collected it yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_child_has_the_signals_and_the_arguments_that_it_was_given():
    tell = "import sys, signal; print(sys.argv[1:], signal.getsignal(signal.SIGTERM).name)"
    argv = [sys.executable, "-c", tell, "a b", "--", ""]
    with processes.child(argv, pipe=True) as child:
        assert child.stdout.readline() == "['a b', '--', ''] SIG_DFL\n"
    # Python ignores these two; a program that does not must not find them ignored.
    argv = [shutil.which("grep"), "SigIgn", "/proc/self/status"]
    with processes.child(argv, pipe=True) as child:
        ignored = int(child.stdout.read().split()[1], 16)
    assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


def test_flower_is_given_no_provider_key(monkeypatch):
    monkeypatch.setenv("THE_KEY", "s3cret")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "s3cret")
    provider = Provider(name="a", kind="openai", model="m", api_key_env="THE_KEY")
    env = up._keyless(Settings(providers=(provider,)))
    assert "s3cret" not in env.values()
    assert env["PATH"] == os.environ["PATH"]


def test_a_lock_names_its_holder_and_is_free_when_it_has_ended(tmp_path):
    lock = tmp_path / "lock"
    hold = (
        "import sys, pathlib; from llmtasks import processes\n"
        "with processes.alone(pathlib.Path(sys.argv[1])): print(1, flush=True); sys.stdin.read()"
    )
    with processes.child([sys.executable, "-c", hold, str(lock)], pipe=True) as holder:
        holder.stdout.readline()
        with processes.alone(lock) as other:
            assert other == holder.pid
    with processes.alone(lock) as other:
        assert other is None


def test_an_end_is_named_as_an_operator_knows_it():
    assert [how_it_ended(code) for code in (0, 2, -9, -15)] == [
        "exit 0",
        "exit 2",
        "SIGKILL",
        "SIGTERM",
    ]
