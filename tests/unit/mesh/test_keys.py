"""A key opens its tenant and is stored as a digest only."""

from pathlib import Path

import pytest

from services.mesh.errors import SettingInvalid
from services.mesh.keys import KeyStore


def test_a_key_belongs_to_its_tenant_also_after_a_restart(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    one, other = store.create("acme", "ci", 1), store.create("umbra", "ci", 2)
    for each in (store, KeyStore(tmp_path / "keys.json")):
        assert (each.tenant_of(one), each.tenant_of(other), each.tenant_of("tw-x")) == ("acme", "umbra", None)
        assert each.tenants() == {"acme", "umbra"}
        assert [record.created_unix_ms for record in each.records()] == [1, 2]


def test_a_key_is_not_in_the_file(tmp_path: Path) -> None:
    key = KeyStore(tmp_path / "keys.json").create("acme", "ci", 1)
    assert key not in (tmp_path / "keys.json").read_text(encoding="utf-8")
    assert (tmp_path / "keys.json").stat().st_mode & 0o077 == 0


def test_a_key_made_by_another_process_is_seen(tmp_path: Path) -> None:
    router = KeyStore(tmp_path / "keys.json")
    assert router.tenants() == set()
    key = KeyStore(tmp_path / "keys.json").create("acme", "ci", 1)
    assert router.tenant_of(key) == "acme"


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{", encoding="utf-8")
    with pytest.raises(SettingInvalid, match=r"keys\.json is not readable"):
        KeyStore(tmp_path / "keys.json").tenants()


@pytest.mark.parametrize("tenant", ["", "x" * 129])
def test_a_tenant_needs_a_name_of_sensible_length(tmp_path: Path, tenant: str) -> None:
    with pytest.raises(ValueError, match="1 to 128"):
        KeyStore(tmp_path / "keys.json").create(tenant, "ci", 1)


def test_a_key_is_sent_on_to_workers_only_where_it_was_made_so(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    relayed, direct = store.create("acme", "app", 1), store.create("acme", "batch", 2, direct_http=True)
    kept = [KeyStore(tmp_path / "keys.json").record_of(key) for key in (relayed, direct)]
    assert [record.direct_http for record in kept if record] == [False, True]


def test_keys_of_a_file_without_the_choice_are_relayed(tmp_path: Path) -> None:
    key = KeyStore(tmp_path / "keys.json").create("acme", "app", 1)
    path = tmp_path / "keys.json"
    path.write_text(path.read_text(encoding="utf-8").replace(',\n  "direct_http": false', ""), encoding="utf-8")
    assert "direct_http" not in path.read_text(encoding="utf-8")
    record = KeyStore(path).record_of(key)
    assert record is not None
    assert not record.direct_http
