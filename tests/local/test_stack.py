from __future__ import annotations

import os
import stat
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from contract.connection import connect
from contract.errors import BrokerUnavailableError
from contract.ledger import Ledger
from contract.names import Keys
from contract.settings import Settings
from local.errors import StartError
from local.redis_server import EmbeddedRedis
from local.stack import Node, Stack, child_environment, nodes_for, worker_command

STAND_INS = Path(__file__).with_name("stand_ins.py")


def stand_in(node: Node, *, behaviour: str) -> list[str]:
    return [sys.executable, str(STAND_INS), "worker", node.name, behaviour]


def stack_in(folder: Path, *names: str, behaviour: str = "work", **options) -> Stack:
    return Stack(
        folder / "redis",
        [Node(name) for name in names],
        url_file=folder / "redis.url",
        environment=os.environ,
        settings=Settings(state_dir=folder),
        worker_command=partial(stand_in, behaviour=behaviour),
        **options,
    )


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_workers_are_ready_inside_and_gone_outside(tmp_path):
    lines = []
    with stack_in(tmp_path, "one", "two", on_log=lambda *line: lines.append(line)) as stack:
        url = (tmp_path / "redis.url").read_text().strip()
        assert url == stack.redis.url
        assert stat.S_IMODE((tmp_path / "redis.url").stat().st_mode) == 0o600
        settings = Settings(redis_url=SecretStr(url))
        with connect(settings) as client:
            assert Ledger(client, settings).ready_nodes() == ["one", "two"]
        stack.raise_if_ended()
        pids = [stack.redis.pid, *(worker.child.pid for worker in stack.workers)]
        for pid in pids:
            process = psutil.Process(pid)
            assert url not in " ".join([*process.cmdline(), *process.environ().values()])
            pids += [child.pid for child in process.children()]
        assert len(pids) == 5
    assert [pid for pid in pids if not is_gone(pid)] == []
    assert not (tmp_path / "redis.url").exists()
    assert ("two", "stand-in two starts") in lines


def test_worker_that_dies_at_the_start_is_shown_with_its_log(tmp_path):
    stack = stack_in(tmp_path, "one", behaviour="die")
    with pytest.raises(StartError, match="the worker one ended with code 1") as caught, stack:
        pytest.fail("entered without a worker")
    assert caught.value.log == ("stand-in one starts", "stand-in: there is no such model")
    assert is_gone(stack.redis.pid)
    assert not (tmp_path / "redis.url").exists()


def test_worker_that_never_gets_ready_is_given_up(tmp_path):
    stack = stack_in(tmp_path, "one", behaviour="mute", ready_timeout_s=0.7)
    with pytest.raises(StartError, match=r"the worker one was not ready within 0\.7 s"), stack:
        pytest.fail("entered without a worker")
    assert is_gone(stack.redis.pid)
    assert is_gone(stack.workers[0].child.pid)


def test_later_death_of_a_part_is_noticed(tmp_path, wait_until):
    with stack_in(tmp_path, "one") as stack:
        psutil.Process(stack.workers[0].child.pid).kill()
        wait_until(lambda: stack.workers[0].child.poll() is not None)
        with pytest.raises(StartError, match="the worker one ended by signal 9"):
            stack.raise_if_ended()


def test_given_redis_is_used_and_an_old_sign_of_readiness_not_believed(tmp_path):
    with EmbeddedRedis(tmp_path / "other") as other:
        settings = Settings(redis_url=SecretStr(other.url))
        with connect(settings) as client:
            client.set(Keys().ready("one"), "from a worker that was killed", ex=100)
        mute = stack_in(tmp_path, "one", behaviour="mute", ready_timeout_s=0.5, redis_url=other.url)
        with pytest.raises(StartError, match="was not ready"), mute:
            pytest.fail("believed an old sign")
        with stack_in(tmp_path, "one", redis_url=other.url) as stack:
            assert stack.redis is None
        assert not other.has_ended
    assert not (tmp_path / "redis").exists()


def test_given_redis_that_does_not_answer_is_an_error(tmp_path):
    stack = stack_in(tmp_path, "one", redis_url="redis://:secret@127.0.0.1:1/0")
    with pytest.raises(BrokerUnavailableError, match="does not answer"), stack:
        pytest.fail("entered without Redis")
    assert stack.workers == []
    assert not (tmp_path / "redis.url").exists()
    assert "secret" not in repr(stack)


def test_children_learn_of_one_redis_only(tmp_path):
    inherited = {
        "OSTEOPAN_REDIS_URL": "redis://elsewhere",
        "osteopan_redis_url": "redis://elsewhere",
        "OSTEOPAN_REDIS_URL_FILE": "/elsewhere",
        "CELERY_BROKER_URL": "redis://elsewhere",
        "OSTEOPAN_KEY_PREFIX": "kept",
        "PATH": "/bin",
    }
    assert child_environment(inherited, tmp_path) == {
        "OSTEOPAN_REDIS_URL_FILE": str(tmp_path),
        "OSTEOPAN_KEY_PREFIX": "kept",
        "PATH": "/bin",
        "PYTHONSAFEPATH": "1",
    }


def test_a_program_in_the_current_folder_is_not_run(tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    from local.processes import Child

    command = ["/bin/sh", "-c", 'cd "$0" && exec "$1" -m json.tool --help', str(tmp_path), sys.executable]
    child = Child("json", command, environment=child_environment(os.environ, tmp_path / "url"))
    assert child.wait() == 0, child.tail


def test_each_gpu_has_its_workers():
    assert nodes_for([]) == [Node("cpu-1", None)]
    assert nodes_for([], workers=2, suffix="@host") == [Node("cpu-1@host"), Node("cpu-2@host")]
    assert nodes_for([0, 3, 0]) == [Node("gpu0-1", 0), Node("gpu3-1", 3)]


def test_worker_is_started_by_its_own_command():
    run = [sys.executable, "-m", "worker", "run"]
    assert worker_command(Node("a")) == [*run, "--cpu", "--name", "a"]
    assert worker_command(Node("b", 2), models=[Path("/x.pth"), Path("/y.pth")]) == [
        *(*run, "--gpu", "2", "--name", "b", "--model", "/x.pth", "--model", "/y.pth")
    ]
