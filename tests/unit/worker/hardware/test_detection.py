"""Which accelerator a worker runs on, who told, and what is read."""

import logging
import re

import pytest

from services.mesh.errors import SettingInvalid
from services.mesh.settings import WorkerSettings
from services.worker.core.devices import Device
from services.worker.hardware import machine as machine_module
from services.worker.hardware.detection import DECLARED, Meters, detect, disagreements, meters
from services.worker.hardware.machine import find_machine
from services.worker.hardware.sources import Sighting, look
from tests.unit.worker.hardware.fakes import CATALOGUE, H100, HeldSource, gpu, info, processor


def seen(*devices: Device, name: str = "nvml", measures: bool = True) -> Sighting:
    source = HeldSource(*devices, name=name, measures=measures, lacking="" if measures else "no watts")
    return Sighting(source, devices, devices)


def unseen(name: str, missing: str) -> Sighting:
    return Sighting(HeldSource(name=name), missing=missing)


def test_the_accelerator_is_the_one_that_is_seen_and_who_told_is_said() -> None:
    accelerator, by = detect([seen(gpu()), seen(processor(), name="rapl")], CATALOGUE, 1)
    assert (accelerator.key, by) == ("nvidia-h100-sxm", "nvml")


def test_several_devices_are_one_accelerator() -> None:
    accelerator, _ = detect([seen(*(gpu(index=number) for number in range(8)))], CATALOGUE, 4)
    assert (accelerator.key, accelerator.devices) == ("nvidia-h100-sxm-x4", 4)


def test_without_an_accelerator_the_processor_is_it() -> None:
    accelerator, by = detect([unseen("nvml", "no driver"), seen(processor(), name="rapl")], CATALOGUE, 1)
    assert (accelerator.key, by) == ("cpu-epyc-turin", "cpuinfo")


@pytest.mark.parametrize(
    ("sightings", "devices", "said"),
    [
        ([unseen("nvml", "no driver"), unseen("rapl", "no /proc")], 1, r"nvml: no driver; rapl: no /proc"),
        ([seen(gpu("NVIDIA GeForce RTX 4090", 24_564))], 1, r"does not know NVIDIA GeForce RTX 4090.*\[catalogue"),
        ([seen(gpu("NVIDIA H100 PCIe")), seen(processor(), name="rapl")], 1, "does not know NVIDIA H100 PCIe"),
        ([seen(gpu())], 2, "worker.devices = 2, and nvml sees 1"),
        ([seen(gpu(), gpu("NVIDIA L4", 23_034, index=1))], 2, "are not alike: NVIDIA H100.*NVIDIA L4"),
        ([seen(gpu()), seen(gpu("AMD Instinct MI300X", 196_592), name="amdsmi")], 1, "NVIDIA H100.* and AMD Instinct"),
    ],
)
def test_what_is_not_certain_is_refused_by_name(sightings: list[Sighting], devices: int, said: str) -> None:
    with pytest.raises(SettingInvalid, match=f"(?s){said}"):
        detect(sightings, CATALOGUE, devices)


@pytest.mark.parametrize(
    ("key", "platform", "detected_by", "sightings", "said"),
    [
        ("nvidia-l4", "cuda: NVIDIA L4", DECLARED, [seen(gpu("NVIDIA L4", 23_034))], []),
        (
            "nvidia-h100-sxm",
            "",
            DECLARED,
            [seen(gpu("NVIDIA L4", 23_034))],
            ["is nvidia-h100-sxm, but.*NVIDIA L4"],
        ),
        ("nvidia-h100-sxm", "", DECLARED, [seen(processor(), name="rapl")], ["this machine has no such device"]),
        ("cpu-epyc-turin", "", DECLARED, [seen(processor("AMD EPYC 7B13"), name="rapl")], ["has AMD EPYC 7B13"]),
        (
            "nvidia-h100-sxm",
            "cuda: NVIDIA L4",
            "nvml",
            [seen(gpu())],
            ["NVIDIA L4', but nvml tells of nvidia-h100-sxm"],
        ),
        ("amd-mi300x", "cuda: NVIDIA L4", DECLARED, [], ["but worker.accelerator is amd-mi300x"]),
    ],
)
def test_what_does_not_agree_is_said_by_name(
    key: str, platform: str, detected_by: str, sightings: list[Sighting], said: list[str]
) -> None:
    found = disagreements(CATALOGUE.accelerator(key), detected_by, info(platform=platform), sightings, CATALOGUE)
    assert len(found) == len(said)
    for sentence, pattern in zip(found, said, strict=True):
        assert re.search(pattern, sentence), sentence


def chosen(key: str, *sightings: Sighting, telemetry: str = "auto") -> Meters:
    return meters(WorkerSettings(telemetry=telemetry), CATALOGUE.accelerator(key), sightings, CATALOGUE)


def test_only_the_very_accelerator_is_read() -> None:
    h100s = seen(*(gpu(index=number) for number in range(4)))
    found = chosen("nvidia-h100-sxm-x2", h100s, seen(processor(), name="rapl"))
    assert found.source is h100s.source
    assert [each.index for each in found.devices] == [0, 1]
    assert chosen("nvidia-l4", h100s).note == "no source sees nvidia-l4 here"
    assert chosen("nvidia-h100-sxm-x8", h100s).note == "nvml sees 4 of 8 devices"


def test_a_source_that_measures_goes_before_one_that_does_not() -> None:
    tells, measures = seen(gpu(), name="tpu", measures=False), seen(gpu(), name="plug")
    assert chosen("nvidia-h100-sxm", tells, measures).source is measures.source
    assert chosen("nvidia-h100-sxm", tells) == Meters(note="no watts")


def test_a_source_that_is_named_is_read_whatever_the_accelerator_is_declared_to_be() -> None:
    rapl = seen(processor("unknown"), name="rapl")
    assert chosen("cpu-epyc-turin", rapl, telemetry="rapl").source is rapl.source
    assert chosen("cpu-epyc-turin", unseen("rapl", "no /proc"), telemetry="rapl").note == "rapl: no /proc"


async def test_a_source_that_sees_nothing_or_fails_is_closed_and_says_why() -> None:
    hidden, broken, fine = HeldSource(gpu()), HeldSource(missing="no driver", name="amdsmi"), HeldSource(gpu())
    sightings = await look([hidden, broken], {"CUDA_VISIBLE_DEVICES": ""})
    assert [each.missing for each in sightings] == ["the environment hides every device", "no driver"]
    assert (hidden.closed, broken.closed) == (1, 1)
    (sighting,) = await look([fine], {})
    assert (sighting.visible, fine.closed) == ((gpu(),), 0)


class BrokenSource(HeldSource):
    async def open(self) -> tuple[Device, ...]:
        raise RuntimeError("a library in a state of its own")


async def test_a_source_that_raises_what_nobody_foresaw_keeps_no_worker_from_starting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.CRITICAL):
        (sighting,) = await look([BrokenSource()], {})
    assert "a library in a state of its own" in sighting.missing


async def test_a_declared_accelerator_is_taken_at_its_word_without_a_look() -> None:
    machine = await find_machine(WorkerSettings(accelerator="nvidia-l4"), {})
    assert (machine.accelerator.key, machine.detected_by) == ("nvidia-l4", DECLARED)
    several = await find_machine(WorkerSettings(accelerator="nvidia-l4", devices=2), {})
    assert several.accelerator.key == "nvidia-l4-x2"
    assert (await find_machine(WorkerSettings(accelerator="nvidia-l4-x2"), {})).accelerator.devices == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (WorkerSettings(accelerator="abacus"), "'abacus' is not in the catalogue"),
        (WorkerSettings(accelerator="nvidia-l4-x2", devices=4), "disagree"),
        (WorkerSettings(telemetry="crystal-ball"), "worker.telemetry = 'crystal-ball' is not known.*nvml, amdsmi"),
    ],
)
async def test_settings_that_name_nothing_stop_the_worker(settings: WorkerSettings, said: str) -> None:
    with pytest.raises(SettingInvalid, match=said):
        await find_machine(settings, {})


async def test_auto_looks_once_and_its_source_is_the_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml, rapl = HeldSource(gpu(), gpu(index=1)), HeldSource(processor(), name="rapl")
    monkeypatch.setattr(machine_module, "choose_sources", lambda _: [nvml, rapl])
    machine = await find_machine(WorkerSettings(accelerator="auto"), {"CUDA_VISIBLE_DEVICES": "1"})
    assert (machine.accelerator.key, machine.detected_by) == ("nvidia-h100-sxm", "nvml")
    found = await machine.meters(info(platform=f"cuda: {H100}"))
    assert found.source is nvml
    assert [each.index for each in found.devices] == [1]
    assert (nvml.closed, rapl.closed) == (0, 1)
    await machine.close()
    assert nvml.closed == 0, "the meter has it"


async def test_auto_that_finds_nothing_certain_closes_what_it_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = HeldSource(gpu("NVIDIA GeForce RTX 4090", 24_564))
    monkeypatch.setattr(machine_module, "choose_sources", lambda _: [nvml])
    with pytest.raises(SettingInvalid, match="RTX 4090"):
        await find_machine(WorkerSettings(accelerator="auto"), {})
    assert nvml.closed == 1


@pytest.mark.parametrize(
    ("facts", "settings"),
    [
        ({"simulated": True}, WorkerSettings()),
        ({"elsewhere": True}, WorkerSettings()),
        ({}, WorkerSettings(telemetry="catalogue")),
    ],
)
async def test_what_is_not_made_here_is_not_measured_here(
    facts: dict[str, object], settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(_: str) -> list[HeldSource]:
        raise AssertionError("no source is asked")

    machine = await find_machine(settings, {})
    monkeypatch.setattr(machine_module, "choose_sources", nobody)
    assert (await machine.meters(info(**facts))).source is None


async def test_an_engine_on_another_device_than_declared_is_logged_by_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(machine_module, "choose_sources", lambda _: [HeldSource(gpu("NVIDIA L4", 23_034))])
    machine = await find_machine(WorkerSettings(accelerator="nvidia-h100-sxm"), {})
    with caplog.at_level(logging.WARNING):
        await machine.meters(info(platform="cuda: NVIDIA L4"))
    assert "the engine says that it runs on 'cuda: NVIDIA L4', but worker.accelerator is nvidia-h100-sxm" in caplog.text
    assert "worker.accelerator is nvidia-h100-sxm, but this machine has NVIDIA L4" in caplog.text
