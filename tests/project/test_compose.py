"""The compose file that users copy is well formed, and keeps what the documentation promises about it.

No engine runs here, so nothing is pulled or started: the file is read as data, the flags of Redis are tried on a local
server, and `docker compose config` checks the file where that plugin is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers import RedisServer

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"

#: What the Compose specification allows in a service, as far as this file uses or may soon use it.
SERVICE_KEYS = {
    *("build", "command", "depends_on", "entrypoint", "environment", "healthcheck", "hostname", "image"),
    *("init", "ports", "restart", "stop_grace_period", "stop_signal", "user", "volumes", "working_dir"),
}
HEALTHCHECK_KEYS = {"test", "interval", "timeout", "retries", "start_period"}
DURATION = re.compile(r"^(\d+(ms|s|m|h))+$")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text())
    return loaded


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose["services"]
    return found


def test_file_has_the_promised_services(services: dict[str, dict[str, Any]]) -> None:
    assert set(services) == {"redis", "rabbitmq", "postgres", "worker", "flower"}


def test_top_level_has_only_what_the_specification_knows(compose: dict[str, Any]) -> None:
    assert {key for key in compose if not key.startswith("x-")} <= {"name", "services", "volumes", "networks"}


def test_services_have_only_what_the_specification_knows(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert set(service) <= SERVICE_KEYS, name
        assert "image" in service or "build" in service, name
        assert service["restart"] == "always", name


def test_images_are_pinned_to_a_version(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        if "build" not in service:
            assert re.fullmatch(r"[a-z0-9/_-]+:\d[\w.-]*", service["image"]), name


def test_every_service_has_a_healthcheck(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        check = service["healthcheck"]
        assert set(check) <= HEALTHCHECK_KEYS, name
        assert check["test"][0] in {"CMD", "CMD-SHELL"}, name
        assert all(isinstance(word, str) for word in check["test"]), name
        assert isinstance(check["retries"], int), name
        for key in check.keys() & {"interval", "timeout", "start_period"}:
            assert DURATION.match(check[key]), (name, key)


def test_shell_healthchecks_leave_their_variables_to_the_container(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        for word in service["healthcheck"]["test"]:
            # A single dollar is replaced by compose itself; only ${NAME:-default} is meant so.
            assert not re.search(r"(?<!\$)\$(?![${])", word)


def test_services_wait_for_healthy_ones(services: dict[str, dict[str, Any]]) -> None:
    for name in ("worker", "flower"):
        for needed, condition in services[name]["depends_on"].items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in services[needed]


def test_ports_are_open_to_this_machine_only(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        for port in service.get("ports", []):
            assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


def test_named_volumes_are_declared(compose: dict[str, Any]) -> None:
    used = {volume.split(":")[0] for service in compose["services"].values() for volume in service.get("volumes", [])}
    assert used == set(compose["volumes"])


def test_redis_flags_give_persistence_and_no_eviction(services: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    program, *flags = services["redis"]["command"]
    assert program == "redis-server"

    with RedisServer(tmp_path, extra_args=flags) as server, server.client() as client:
        settings = client.config_get("append*", "maxmemory-policy")

    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["maxmemory-policy"] == "noeviction"


def test_worker_and_flower_are_built_from_a_dockerfile_whose_sources_exist(
    services: dict[str, dict[str, Any]],
) -> None:
    for name in ("worker", "flower"):
        build = services[name]["build"]
        dockerfile = ROOT / build["context"] / build["dockerfile"]
        copied = re.findall(r"^COPY (.+) \S+$", dockerfile.read_text(), re.MULTILINE)
        assert copied
        for source in " ".join(copied).split():
            assert (ROOT / build["context"] / source).exists(), source


def test_compose_itself_accepts_the_file() -> None:
    docker = shutil.which("docker")
    has_plugin = docker and subprocess.run(
        [docker, "compose", "version"], capture_output=True, check=False
    ).returncode == 0  # fmt: skip
    if not docker or not has_plugin:
        pytest.skip("the compose plugin of docker is not installed")

    done = subprocess.run(
        [docker, "compose", "--file", str(COMPOSE_FILE), "config", "--quiet"],
        env={**os.environ},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
