"""A bad setting stops the process and says what would do; the environment wins over the file."""

import re
from pathlib import Path

import pytest

from services.mesh.errors import SettingInvalid
from services.mesh.settings import NatsSettings, load_settings


@pytest.fixture(autouse=True)
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "tokenworks.toml"
    monkeypatch.setenv("TOKENWORKS_CONFIG", str(path))
    return path


def test_without_a_file_the_defaults_hold() -> None:
    assert load_settings().nats == NatsSettings()


def test_the_file_is_read_and_the_environment_wins(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("[nats]\nport = 5000\nreplicas = 3\n", encoding="utf-8")
    monkeypatch.setenv("TOKENWORKS_NATS_PORT", "5001")
    monkeypatch.setenv("TOKENWORKS_MESH_DRAIN_GRACE_S", "2.5")
    settings = load_settings()
    assert (settings.nats.port, settings.nats.replicas, settings.mesh.drain_grace_s) == (5001, 3, 2.5)


def test_a_given_section_wins_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENWORKS_NATS_PORT", "5001")
    assert load_settings(nats=NatsSettings(port=6000)).nats.port == 6000


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("TOKENWORKS_NATS_OUTBOX_EVENTS", "3", r"nats\.outbox_events = '3': .*16"),
        ("TOKENWORKS_ROUTER_PORT", "70000", r"router\.port = '70000': .*65535"),
        ("TOKENWORKS_WORKER_ID", "no spaces", r"worker\.id = 'no spaces'"),
        ("TOKENWORKS_MESH_LOG_LEVEL", "loud", r"mesh\.log_level = 'loud': .*'debug'"),
    ],
)
def test_a_bad_value_is_named_with_what_would_do(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, named: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingInvalid) as caught:
        load_settings()
    assert re.search(named, str(caught.value)), caught.value


def test_every_bad_setting_is_named_at_once(file: Path) -> None:
    file.write_text("[nats]\nport = -1\nreplicas = 9\nreplicsa = 1\n", encoding="utf-8")
    with pytest.raises(SettingInvalid) as caught:
        load_settings()
    assert all(name in str(caught.value) for name in ("nats.port", "nats.replicas", "nats.replicsa"))


def test_a_file_that_is_no_toml_is_named(file: Path) -> None:
    file.write_text("[nats\n", encoding="utf-8")
    with pytest.raises(SettingInvalid, match="could not be read"):
        load_settings()
