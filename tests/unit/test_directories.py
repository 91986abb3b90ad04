"""What lies in the data directory is its owner's alone, whatever the umask and whoever came first."""

from __future__ import annotations

import os
import stat

import pytest

from llmtasks import directories
from llmtasks.errors import ConfigurationError
from llmtasks.settings import Local, Settings
from llmtasks.store.engine import database_url


@pytest.fixture(autouse=True)
def _lenient_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def settings(path):
    return Settings(local=Local(data_dir=str(path)))


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_every_level_that_is_made_is_private(tmp_path):
    made = directories.own(settings(tmp_path / "a" / "data"), "logs", "old")
    assert made == tmp_path / "a" / "data" / "logs" / "old"
    assert {mode(level) for level in (made, *made.parents) if tmp_path in level.parents} == {0o700}


def test_a_directory_that_was_there_stays_as_its_owner_wants_it(tmp_path):
    (tmp_path / "data").mkdir(mode=0o755)
    directories.own(settings(tmp_path / "data"))
    assert mode(tmp_path / "data") == 0o755


def test_the_database_is_private_in_a_directory_that_is_not(tmp_path):
    database_url(settings(tmp_path))
    assert [mode(path) for path in tmp_path.iterdir()] == [0o600]


def test_what_cannot_be_made_is_named_with_its_key(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigurationError, match=r"^local\.data_dir: .*/file/data cannot be used: Not"
    ):
        directories.own(settings(tmp_path / "file" / "data"))


@pytest.fixture
def long(tmp_path, monkeypatch):
    """Settings whose data directory has too long a path for a socket."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return settings(tmp_path / ("x" * 120))


def test_a_socket_outside_the_data_directory_has_a_private_one_of_its_own(long, tmp_path):
    made = directories.for_socket(long)
    assert made.parent == tmp_path
    assert mode(made) == 0o700
    assert directories.for_socket(long) == made
    directories.leave_socket(long)
    assert not made.exists()


def test_a_directory_that_others_can_enter_is_not_taken_for_the_socket(long):
    made = directories.for_socket(long)
    made.chmod(0o777)
    for use in (directories.for_socket, lambda it: it.broker_url, lambda it: it.redis_url):
        with pytest.raises(ConfigurationError, match="not a directory of yours alone"):
            use(long)


def test_a_link_is_not_taken_for_the_sockets_directory(long, tmp_path):
    made = directories.for_socket(long)
    made.rename(tmp_path / "elsewhere")
    made.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="not a directory of yours alone"):
        directories.for_socket(long)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to make a directory of somebody else's")
def test_somebody_elses_directory_is_not_taken_for_the_socket(long):
    os.chown(directories.for_socket(long), 12345, 12345)
    with pytest.raises(ConfigurationError, match="not a directory of yours alone"):
        directories.for_socket(long)


def test_the_sockets_directory_is_left_to_whoever_still_uses_it(long):
    made = directories.for_socket(long)
    (made / "valkey.sock").touch()
    directories.leave_socket(long)
    assert made.exists()


def test_only_the_newest_logs_are_kept(tmp_path):
    for number in range(5):
        path = tmp_path / f"run-{number}.log"
        path.touch()
        os.utime(path, (number, number))
    (tmp_path / "worker.log").touch()
    directories.trim(tmp_path, "run-*.log", 2)
    assert {path.name for path in tmp_path.iterdir()} == {"run-3.log", "run-4.log", "worker.log"}
    directories.trim(tmp_path / "missing", "run-*.log", 2)
