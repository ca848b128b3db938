import stat

import pytest

from services.cli.access import Access, read_access, write_access
from services.cli.output import CommandFailed
from services.mesh.settings import MeshSettings, load_settings

ACCESS = Access(
    router="127.0.0.1:1",
    meter="127.0.0.1:2",
    optimizer="127.0.0.1:3",
    nats="nats://127.0.0.1:4",
    secret='a"b\\c',
    traces="http://127.0.0.1:6",
    keys={"local": "tw-x", "a.b": "tw-y"},
    http={"router-0": "127.0.0.1:5"},
)


@pytest.fixture
def settings(tmp_path):
    return load_settings(mesh=MeshSettings(data_dir=tmp_path))


def test_what_up_wrote_is_read_back(settings, tmp_path):
    write_access(tmp_path / "client.toml", ACCESS)
    assert read_access(settings) == ACCESS


def test_only_the_owner_can_read_the_keys(tmp_path):
    write_access(tmp_path / "client.toml", ACCESS)
    assert stat.S_IMODE((tmp_path / "client.toml").stat().st_mode) == 0o600


def test_defaults_are_the_settings_ports(settings):
    access = read_access(settings)
    assert (access.router, access.meter, access.optimizer) == ("127.0.0.1:7600", "127.0.0.1:7601", "127.0.0.1:7602")
    assert access.nats == "nats://127.0.0.1:4222"


def test_command_line_wins_over_environment_over_file(settings, tmp_path, monkeypatch):
    write_access(tmp_path / "client.toml", ACCESS)
    monkeypatch.setenv("TOKENWORKS_CLIENT_ROUTER", "h:9")
    monkeypatch.setenv("TOKENWORKS_CLIENT_METER", "h:8")
    access = read_access(settings, router="h:7", meter="")
    assert (access.router, access.meter, access.optimizer) == ("h:7", "h:8", "127.0.0.1:3")


def test_clients_variables_do_not_disturb_the_settings(monkeypatch):
    monkeypatch.setenv("TOKENWORKS_CLIENT_ROUTER", "h:9")
    monkeypatch.setenv("TOKENWORKS_KEY", "tw-x")
    assert load_settings().router.port == 7600


@pytest.mark.parametrize("text", ["router = ", "nonsense = 1"])
def test_broken_file_is_named(settings, tmp_path, text):
    (tmp_path / "client.toml").write_text(text)
    with pytest.raises(CommandFailed, match=r"client\.toml cannot be read"):
        read_access(settings)


def test_key_is_the_one_given_else_the_tenants():
    assert ACCESS.key("tw-given", "local") == "tw-given"
    assert ACCESS.key("", "local") == "tw-x"
    with pytest.raises(CommandFailed, match=r"no key for tenant 'who' \(kept here: a.b, local\)"):
        ACCESS.key("", "who")
