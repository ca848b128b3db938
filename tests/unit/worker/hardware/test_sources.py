"""Which sources there are, and a third party's among them."""

import logging
from pathlib import Path

import pytest

from services.mesh.errors import SettingInvalid
from services.worker.core.devices import Reading
from services.worker.hardware.sources import all_sources, choose_sources, look
from tests.unit.worker.hardware.acme_power import install_acme_power, show


@pytest.fixture
def meter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    site = tmp_path / "site"
    site.mkdir()
    install_acme_power(site)
    monkeypatch.syspath_prepend(str(site))
    path = tmp_path / "meter"
    monkeypatch.setenv("ACME_METER", str(path))
    return path


def test_accelerators_are_asked_before_the_processor() -> None:
    assert list(all_sources()) == ["nvml", "amdsmi", "hl-smi", "neuron", "tpu", "xpu-smi", "rapl"]


async def test_a_third_partys_source_is_one_like_ours(meter: Path) -> None:
    assert list(all_sources())[-3:] == ["acme-power", "broken", "rapl"]
    (source,) = choose_sources("acme-power")
    (sighting,) = await look([source], {})
    assert (sighting.missing, sighting.would_do) == ("the rack's meter is not plugged in", "plug it in")
    show(meter, watts=431.5, joules=12.25)
    (sighting,) = await look([source], {})
    assert await source.read(sighting.visible) == [Reading(power_w=431.5, utilisation=0.5, energy_uj=12_250_000)]


@pytest.mark.usefixtures("meter")
def test_a_source_that_does_not_load_is_named_where_it_is_asked_for_and_left_out_elsewhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(SettingInvalid, match=r"'broken' does not load \(acme_power:Nothing\)"):
        choose_sources("broken")
    with caplog.at_level(logging.ERROR):
        names = [each.name for each in choose_sources()]
    assert names == ["nvml", "amdsmi", "hl-smi", "neuron", "tpu", "xpu-smi", "acme-power", "rapl"]
    assert "'broken' does not load" in caplog.text


def test_a_source_that_is_not_known_is_named_with_those_that_are() -> None:
    with pytest.raises(SettingInvalid, match="use auto, catalogue, or one of: nvml, amdsmi"):
        choose_sources("crystal-ball")
