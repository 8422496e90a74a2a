"""Settings from the environment, and where Redis' URL comes from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from contract.errors import SettingsError
from contract.settings import DEFAULT_REDIS_URL, Settings, load_settings

SECRET = "s3cr3t-canary"


@pytest.fixture(autouse=True)
def _own_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_without_anything_redis_is_sought_on_this_machine() -> None:
    assert load_settings(Settings).broker_url() == DEFAULT_REDIS_URL


def test_the_file_of_a_local_redis_is_found(tmp_path: Path) -> None:
    settings = load_settings(Settings)
    assert settings.local_url_file == tmp_path / "state" / "osteopan" / "redis.url"
    settings.local_url_file.parent.mkdir(parents=True)
    settings.local_url_file.write_text(f"redis://:{SECRET}@127.0.0.1:7000/0\n")
    assert settings.broker_url() == f"redis://:{SECRET}@127.0.0.1:7000/0"


def test_a_named_file_goes_before_the_local_one_and_a_url_before_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = load_settings(Settings).local_url_file
    local.parent.mkdir(parents=True)
    local.write_text("redis://local/0")
    named = tmp_path / "url"
    named.write_text("redis://named/0\n")
    monkeypatch.setenv("OSTEOPAN_REDIS_URL_FILE", str(named))
    assert load_settings(Settings).broker_url() == "redis://named/0"
    monkeypatch.setenv("OSTEOPAN_REDIS_URL", "redis://variable/0")
    assert load_settings(Settings).broker_url() == "redis://variable/0"
    assert load_settings(Settings, redis_url="redis://given/0").broker_url() == "redis://given/0"
    assert load_settings(Settings, redis_url=None).broker_url() == "redis://variable/0"


def test_a_named_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    settings = Settings(redis_url_file=tmp_path / "missing")
    with pytest.raises(SettingsError, match="OSTEOPAN_REDIS_URL_FILE: cannot read .*missing: No such file"):
        settings.broker_url()


def test_an_empty_variable_is_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTEOPAN_REDIS_URL", "")
    monkeypatch.setenv("OSTEOPAN_LEASE_S", "")
    settings = load_settings(Settings)
    assert (settings.broker_url(), settings.lease_s) == (DEFAULT_REDIS_URL, 10.0)


@pytest.mark.parametrize(("lease", "heartbeat"), [("2", ""), ("", "6"), ("10", "5.1")])
def test_a_lease_lasts_two_heartbeats_or_more(lease: str, heartbeat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTEOPAN_LEASE_S", lease)
    monkeypatch.setenv("OSTEOPAN_HEARTBEAT_S", heartbeat)
    with pytest.raises(SettingsError, match="^OSTEOPAN_HEARTBEAT_S: .*OSTEOPAN_LEASE_S.* must last two heartbeats"):
        load_settings(Settings)


@pytest.mark.parametrize(
    ("variable", "value", "rule"),
    [
        ("OSTEOPAN_LEASE_S", "0.1", "greater than or equal to 0.5"),
        ("OSTEOPAN_MAX_ATTEMPTS", SECRET, "valid integer"),
        ("OSTEOPAN_RESULT_TTL_S", "1", "greater than or equal to 60"),
        ("OSTEOPAN_KEY_PREFIX", f"{SECRET}*", "match pattern"),
    ],
)
def test_a_bad_variable_is_named_and_its_value_is_not(
    variable: str, value: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=rf"^{variable}: .*{rule}") as caught:
        load_settings(Settings)
    assert SECRET not in str(caught.value)


def test_the_password_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTEOPAN_REDIS_URL", f"redis://:{SECRET}@host/0")
    settings = load_settings(Settings)
    assert SECRET in settings.broker_url()
    assert SECRET not in f"{settings!r}{settings}{settings.model_dump()}{settings.model_dump_json()}"
    assert SECRET not in os.fspath(settings.local_url_file)
