"""What the doctor makes of what it was told: the right verdict, a way out, and never a secret."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtasks.addresses import public
from llmtasks.admission.probe import ServerState
from llmtasks.cli import diagnosis, doctor
from llmtasks.cli.diagnosis import Directory, Facts, Unknown, diagnose
from llmtasks.cli.doctor import LATE, ask
from llmtasks.errors import StoreUnavailable
from llmtasks.jobs import JobState
from llmtasks.providers.probe import Reach
from llmtasks.settings import Broker, Database, Local, Origin, Provider, Settings
from llmtasks.store.outbox import Waiting
from llmtasks.store.probe import DatabaseState
from llmtasks.store.workers import WorkerRow

PROVIDER = Provider(name="a", kind="openai", model="gpt-4o-mini", api_key_env="KEY")
CONFIGURED = Settings(
    broker=Broker(url="redis://:sekret@r/0"),
    database=Database(url="postgresql://u:sekret@p/d"),
    providers=(PROVIDER,),
)
SERVER = ServerState(address="r", software="Valkey 9", policy="noeviction", persistent=True)
WORKER = WorkerRow(
    worker_id="w",
    hostname="h",
    pid=7,
    queues=["llm.summarize"],
    concurrency=4,
    metrics_url=None,
    started_at=0.0,
    lease_until=1.0,
)
DATABASE = DatabaseState(
    address="p", software="PostgreSQL 18", revision="0002", head="0002", workers=(WORKER,)
)


def facts(settings=CONFIGURED, **values):
    return Facts(
        **{
            "settings": settings,
            "origin": Origin(path=Path("/etc/llmtasks.toml")),
            "versions": "1",
            "refused": None,
            "directory": Directory(path=Path("/d"), exists=True, writable=True, free=10**12),
            "server": Path("/valkey"),
            "broker": SERVER,
            "redis": None,
            "database": DATABASE,
            "backlog": {},
            "outbox": None,
            "task_types": {"summarize": None},
            "keys": {},
            "reached": {"a": Reach(status=200, models=frozenset({"gpt-4o-mini-2024-07-18"}))},
            "prices": {"a": (0.15, 0.6)},
            "extras": {"embedded": True},
            "listens": False,
            **values,
        }
    )


def found(settings=CONFIGURED, **values):
    return {one.check: one for one in diagnose(facts(settings, **values))}


def test_a_data_directory_that_cannot_be_looked_at_is_an_answer(tmp_path):
    settings = Settings(local=Local(data_dir=str(tmp_path / ("x" * 300))))  # no name of a file
    found = doctor._directory(settings)
    assert (found.exists, found.writable) == (False, True)


def test_where_all_is_well_only_the_missing_limits_are_warned_of():
    findings = found()
    assert [(c, f.status) for c, f in findings.items() if f.status != "ok"] == [
        ("limits a", "warn")
    ]
    assert findings["price a"].detail == "$0.15 in, $0.60 out per million tokens"


@pytest.mark.parametrize(
    ("values", "check", "status", "says"),
    [
        ({"broker": ServerState(address="r", failure="refused")}, "broker", "fail", "refused"),
        ({"broker": LATE}, "broker", "fail", "no answer in time"),
        ({"broker": ServerState(address="r", policy="allkeys-lru")}, "broker", "warn", "allkeys"),
        ({"broker": ServerState(address="r", persistent=False)}, "broker", "warn", "restart"),
        ({"broker": ServerState(address="r", cluster=True)}, "broker", "fail", "of a cluster"),
        ({"redis": ServerState(address="r", cluster=True)}, "redis", "fail", "is a node of"),
        ({"redis": ServerState(address="r", policy="volatile-lru")}, "redis", "ok", "volatile-lru"),
        ({"redis": ServerState(address="r", policy="allkeys-lru")}, "redis", "warn", "limits"),
        ({"database": DatabaseState(address="p")}, "database", "fail", "no schema"),
        ({"database": DatabaseState(address="p", revision="0001")}, "database", "fail", "older"),
        ({"database": DatabaseState(address="p", revision="9999")}, "database", "fail", "newer"),
        ({"database": DatabaseState(address="p", exists=False)}, "database", "fail", "no file"),
        ({"database": DatabaseState(address="p", failure="gone")}, "database", "fail", "gone"),
        ({"database": DatabaseState(address="p")}, "workers", "warn", "none"),
        ({"directory": LATE}, "data directory", "fail", "no answer in time"),
        ({"database": LATE}, "workers", "warn", "unknown"),
        ({"backlog": {"extract": {JobState.QUEUED: 3}}}, "queue extract", "warn", "3 queued"),
        ({"backlog": {"summarize": {JobState.QUEUED: 3}}}, "queue summarize", "ok", "3 queued"),
        ({"outbox": Waiting(count=2, oldest_s=5.0, failing=1)}, "results.sink", "warn", "2 ended"),
        ({"task_types": {"x": "broken"}}, "task type x", "fail", "broken"),
        ({"refused": "f.toml: tasks.x: is no task type"}, "settings", "fail", "no task type"),
        ({"keys": {"a": "missing"}}, "provider a", "fail", "KEY is not set"),
        ({"reached": {"a": Reach(status=401)}}, "provider a", "fail", "refuses the key of KEY"),
        ({"reached": {"a": Reach(status=403)}}, "provider a", "warn", "may not list"),
        ({"reached": {"a": Reach(status=404)}}, "provider a", "warn", "no list of models"),
        ({"reached": {"a": Reach(status=503)}}, "provider a", "warn", "503"),
        ({"reached": {"a": Reach(failure="connection refused")}}, "provider a", "fail", "refused"),
        ({"reached": {"a": LATE}}, "provider a", "fail", "no answer in time"),
        (
            {"reached": {"a": Reach(status=200, models=frozenset({"other"}))}},
            "provider a",
            "warn",
            "does not list",
        ),
        ({"prices": {"a": None}}, "price a", "ok", "unknown"),
    ],
)  # fmt: skip
def test_each_trouble_is_named_with_a_way_out(values, check, status, says):
    finding = found(**values)[check]
    assert finding.status == status
    assert says in finding.detail
    assert bool(finding.fix) == (status != "ok")


def test_the_embedded_default_needs_nothing_to_be_started_or_migrated_first():
    settings = Settings(providers=(PROVIDER,))
    findings = found(
        settings,
        broker=ServerState(address="s", failure="no such file"),
        database=DatabaseState(address="f", exists=False),
    )
    assert findings["broker"].status == "ok"
    assert findings["database"].status == "ok"
    assert found(settings, server=Unknown("none"))["broker"].fix.endswith(
        "pip install 'llmtasks[embedded]'"
    )


def test_a_missing_key_is_said_once():
    error = "providers.a.api_key_env: the environment variable KEY is not set"
    assert "settings" not in found(refused=f"f.toml: {error}", keys={"a": error})


def test_overrides_are_shown_by_name_alone():
    origin = Origin(
        path=None,
        overridden=MappingProxyType({"broker.url": "LLMTASKS_BROKER__URL"}),
        assumed=MappingProxyType({"openai": "OPENAI_API_KEY"}),
    )
    detail = diagnosis.configuration(origin).detail
    assert detail == (
        "no file, so defaults; overridden by LLMTASKS_BROKER__URL; openai assumed from OPENAI_API_KEY"
    )


def test_no_line_shows_a_password():
    for state in (SERVER, ServerState(address="r", failure="refused"), LATE):
        lines = diagnose(facts(broker=state, redis=state, database=LATE))
        assert "sekret" not in str(lines)


_word = st.text("abcXYZ019-._~%", min_size=1, max_size=12)


@given(_word, _word, st.sampled_from(["redis", "https", "postgresql+psycopg"]))
def test_a_public_address_has_neither_user_nor_password_nor_query(user, secret, scheme):
    shown = public(f"{scheme}://{user}<@{secret}>@host:1/0?password={secret}#{secret}")
    assert shown == f"{scheme}://host:1/0"


def test_a_path_stays_a_path():
    assert public("sqlite:////srv/a.sqlite3") == "sqlite:////srv/a.sqlite3"
    assert public("redis+socket:///run/v.sock?virtual_host=0") == "redis+socket:///run/v.sock"


def test_one_question_that_hangs_or_breaks_hides_no_other_answer():
    import threading

    never = threading.Event()

    def broken():
        raise KeyError("a secret")

    def away():
        raise StoreUnavailable("gone")

    answers = ask({"hangs": never.wait, "broken": broken, "away": away, "fine": lambda: 1}, 0.3)
    never.set()
    assert answers["hangs"] is LATE
    assert answers["fine"] == 1
    assert answers["away"] == Unknown("gone")
    assert "KeyError" in answers["broken"].why
    assert "secret" not in answers["broken"].why
