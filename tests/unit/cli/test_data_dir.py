import stat

import pytest

from services.cli.access import Access, write_access
from services.cli.data_dir import DataDir
from services.cli.output import CommandFailed
from services.mesh.clock import FakeClock
from services.mesh.keys import KeyStore


def test_secret_is_made_once_and_only_the_owner_reads_it(tmp_path):
    made = DataDir(tmp_path).secret()
    assert DataDir(tmp_path).secret() == made
    assert len(made) >= 32
    assert stat.S_IMODE((tmp_path / "mesh.secret").stat().st_mode) == 0o600


def test_first_run_makes_keys_and_the_next_keeps_them(tmp_path):
    directory, store = DataDir(tmp_path), KeyStore(tmp_path / "keys.json")
    first = directory.tenant_keys(store, ("local", "acme"), FakeClock())
    assert first.made == ("local", "acme")
    assert store.tenant_of(first.keys["acme"]) == "acme"
    write_access(directory.client_file, Access(router="", meter="", optimizer="", nats="", keys=first.keys))
    again = DataDir(tmp_path).tenant_keys(store, ("local", "acme"), FakeClock())
    assert (again.keys, again.made) == (first.keys, ())


def test_key_that_the_store_does_not_know_is_replaced(tmp_path):
    directory = DataDir(tmp_path)
    write_access(directory.client_file, Access(router="", meter="", optimizer="", nats="", keys={"local": "tw-old"}))
    made = directory.tenant_keys(KeyStore(tmp_path / "keys.json"), ("local",), FakeClock())
    assert made.made == ("local",)
    assert made.keys["local"] != "tw-old"


def test_keys_are_never_stored_in_clear_by_the_store(tmp_path):
    made = DataDir(tmp_path).tenant_keys(KeyStore(tmp_path / "keys.json"), ("local",), FakeClock())
    assert made.keys["local"] not in (tmp_path / "keys.json").read_text()


def test_second_mesh_in_the_same_directory_is_refused(tmp_path):
    refused = pytest.raises(CommandFailed, match=r"runs in .* already \(process \d+\)")
    with DataDir(tmp_path).locked(), refused, DataDir(tmp_path).locked():
        pass
    with DataDir(tmp_path).locked():
        pass


def test_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandFailed, match=r"cannot be made.*TOKENWORKS_MESH_DATA_DIR"):
        DataDir(tmp_path / "file" / "below")
