"""The catalogue: several devices as one, and what a site declares."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.mesh.accelerators import load_catalogue, read_catalogue, split_devices
from services.mesh.errors import SettingInvalid

CATALOGUE = load_catalogue()

OURS = {
    "vendor": "Acme",
    "name": "Acme A1",
    "bf16_tflops": 100,
    "memory_gb": 24,
    "bandwidth_tb_s": 0.5,
    "tdp_w": 200,
    "rate_usd_per_hour": "0.40",
    "detect": ["Acme A1"],
}


def declared(**rows: Any) -> dict[str, Any]:
    return {"accelerators": rows}


@settings(deadline=None)
@given(key=st.sampled_from(sorted(CATALOGUE.accelerators)), devices=st.integers(2, 9999))
def test_several_devices_are_one_accelerator_with_all_their_figures(key: str, devices: int) -> None:
    one, several = CATALOGUE.accelerator(key), CATALOGUE.accelerator(f"{key}-x{devices}")
    assert split_devices(several.key) == (key, devices) == (one.key, several.devices)
    assert several.rate_nusd_per_hour == devices * one.rate_nusd_per_hour
    assert several.memory_bytes == devices * one.memory_bytes
    assert several.power_w(0.5) == pytest.approx(devices * one.power_w(0.5))


@pytest.mark.parametrize("key", ["nvidia-h100-sxm-x0", "nvidia-h100-sxm-x1", "nvidia-h100-sxm-x", "nothing-x4"])
def test_what_names_no_devices_is_not_found(key: str) -> None:
    assert CATALOGUE.find(key) is None


def test_no_shipped_accelerator_is_called_like_several() -> None:
    assert all(split_devices(key) == (key, 1) for key in CATALOGUE.accelerators)


def test_a_declared_accelerator_is_one_like_the_others() -> None:
    found = read_catalogue(declared(**{"acme-a1": OURS})).accelerator("acme-a1-x2")
    assert (found.name, found.rate_nusd_per_hour, found.memory_bytes) == ("2 x Acme A1", 800_000_000, 48_000_000_000)
    assert found.idle_w == pytest.approx(2 * 200 * CATALOGUE.defaults.idle_power_fraction)
    assert found.source == "declared in tokenworks.toml"


def test_a_site_states_its_own_rate_and_keeps_the_rest() -> None:
    found = read_catalogue(declared(**{"nvidia-l4": {"rate_usd_per_hour": "0.31"}})).accelerator("nvidia-l4")
    assert found.rate_nusd_per_hour == 310_000_000
    assert found.bandwidth_bytes_s == CATALOGUE.accelerator("nvidia-l4").bandwidth_bytes_s


def test_a_declared_model_has_a_timing() -> None:
    model = {
        "parameters": 1_000_000,
        "layers": 2,
        "hidden": 64,
        "kv_heads": 2,
        "head_dim": 32,
        "weight_bytes_per_parameter": 2,
        "kv_bytes_per_value": 2,
        "context_tokens": 512,
    }
    catalogue = read_catalogue({"models": {"tiny": model}})
    assert catalogue.timing(catalogue.accelerator("nvidia-l4"), catalogue.model("tiny")).decode_base_s > 0


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        (declared(a1={"vendor": "Acme"}), "catalogue.accelerators.a1 lacks name"),
        (declared(a1={**OURS, "watts": 3}), "has watts, which is not known"),
        (declared(a1={**OURS, "rate_usd_per_hour": "cheap"}), "catalogue.accelerators.a1"),
        (declared(a1={**OURS, "memory_gb": "24 GB"}), "catalogue.accelerators.a1"),
        (declared(**{"a1-x2": OURS}), "name one device"),
        (declared(a1=3), "catalogue.accelerators.a1 = 3"),
        ({"acelerators": {}}, "catalogue.acelerators"),
        ({"models": {"tiny": {"layers": 2}}}, "catalogue.models.tiny lacks parameters"),
        ({"defaults": {"launch": 1}}, "defaults has launch"),
    ],
)
def test_what_is_declared_wrongly_is_named(tables: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingInvalid, match=said):
        read_catalogue(tables)


def test_the_settings_file_is_where_a_site_declares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ours.toml"
    path.write_text('[catalogue.accelerators.nvidia-l4]\nrate_usd_per_hour = "0.25"\n', encoding="utf-8")
    monkeypatch.setenv("TOKENWORKS_CONFIG", str(path))
    assert load_catalogue.__wrapped__().accelerator("nvidia-l4").rate_nusd_per_hour == 250_000_000
    path.write_text("[catalogue", encoding="utf-8")
    with pytest.raises(SettingInvalid, match=r"ours\.toml could not be read"):
        load_catalogue.__wrapped__()
