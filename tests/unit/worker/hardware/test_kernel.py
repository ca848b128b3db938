"""What the kernel tells: the processor, its energy, and the PCI bus."""

import os
from pathlib import Path

import pytest

from services.mesh.accelerators import load_catalogue
from services.worker.core.devices import Reading, recognise
from services.worker.hardware.cpu import CpuSource
from services.worker.hardware.pci import pci_devices, plugged_in
from services.worker.hardware.source import SourceUnavailable
from services.worker.hardware.tpu import TpuSource
from tests.unit.worker.hardware.vendors import pci_tree

CPUINFO = """\
processor	: 0
vendor_id	: AuthenticAMD
cpu family	: 26
model name	: AMD EPYC 9755 128-Core Processor
power management: ts ttp tm hwpstate cpb eff_freq_ro

processor	: 1
model name	: another
"""


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "cpuinfo").write_text(CPUINFO, encoding="utf-8")
    (folder / "meminfo").write_text("MemTotal:       791234567 kB\nMemFree: 1 kB\n", encoding="utf-8")
    return folder


def rapl_zone(root: Path, name: str, kind: str, energy_uj: int, range_uj: int = 65_532_610_987) -> Path:
    zone = root / name
    zone.mkdir(parents=True, exist_ok=True)
    for file, value in (("name", kind), ("energy_uj", energy_uj), ("max_energy_range_uj", range_uj)):
        (zone / file).write_text(f"{value}\n", encoding="ascii")
    return zone


async def test_the_processor_is_one_device_with_the_machines_memory(proc: Path, tmp_path: Path) -> None:
    source = CpuSource(proc, tmp_path)
    (device,) = await source.open()
    assert (device.vendor, device.name, device.cpu) == ("AMD", "AMD EPYC 9755 128-Core Processor", True)
    assert device.memory_bytes == 791_234_567 << 10
    assert device.source == "cpuinfo"
    found = recognise(device, load_catalogue())
    assert found is not None
    assert found.key == "cpu-epyc-turin"


async def test_rapl_adds_up_packages_and_their_memory_and_survives_its_counters_end(proc: Path, tmp_path: Path) -> None:
    root = tmp_path / "powercap"
    first = rapl_zone(root, "intel-rapl:0", "package-0", 990, range_uj=1000)
    rapl_zone(root, "intel-rapl:0:0", "core", 5)  # a part of the package
    memory = rapl_zone(root, "intel-rapl:0:1", "dram", 100)
    rapl_zone(root, "intel-rapl:1", "package-1", 7)
    rapl_zone(root, "intel-rapl:2", "psys", 3)  # the whole board, packages included
    source = CpuSource(proc, root)
    devices = await source.open()
    assert source.lacking == ""
    assert await source.read(devices) == [Reading(energy_uj=0)]
    (first / "energy_uj").write_text("30\n", encoding="ascii")
    (memory / "energy_uj").write_text("107\n", encoding="ascii")
    assert await source.read(devices) == [Reading(energy_uj=40 + 7)]
    (memory / "energy_uj").unlink()
    with pytest.raises(SourceUnavailable, match="RAPL can no longer be read"):
        await source.read(devices)


async def test_a_counter_that_may_not_be_read_is_named_and_the_processor_seen_all_the_same(
    proc: Path, tmp_path: Path
) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    zone = rapl_zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 1)
    (zone / "energy_uj").chmod(0)
    source = CpuSource(proc, tmp_path / "powercap")
    devices = await source.open()
    assert "RAPL may not be read" in source.lacking
    assert "energy_uj" in source.lacking
    assert await source.read(devices) == [Reading()]


async def test_a_machine_without_rapl_tells_no_watts(proc: Path, tmp_path: Path) -> None:
    source = CpuSource(proc, tmp_path / "powercap")
    devices = await source.open()
    assert "no RAPL counters" in source.lacking
    assert await source.read(devices) == [Reading()]


async def test_this_machines_processor_is_seen() -> None:
    source = CpuSource()
    try:
        (device,) = await source.open()
    except SourceUnavailable as why:
        pytest.skip(str(why))
    assert device.cpu
    assert device.memory_bytes > 1 << 28
    accelerator = recognise(device, load_catalogue())
    if accelerator is None:
        pytest.skip(f"the catalogue does not know this machine's {device.name}")
    assert accelerator.cpu


async def test_tpus_are_told_by_the_bus(tmp_path: Path) -> None:
    bus = pci_tree(
        tmp_path / "pci",
        ("0000:00:05.0", 0x1AE0, 0x006F, 0x120000),
        ("0000:00:04.0", 0x1AE0, 0x006F, 0x120000),
        ("0000:00:06.0", 0x1AE0, 0x0042, 0x020000),  # a network device of the same vendor
    )
    source = TpuSource(bus)
    devices = await source.open()
    assert [(each.name, each.index, each.uuid) for each in devices] == [
        ("TPU v6e", 0, "0000:00:04.0"),
        ("TPU v6e", 1, "0000:00:05.0"),
    ]
    assert [each.index for each in source.visible(devices, {"TPU_VISIBLE_CHIPS": "1"})] == [1]
    assert not source.measures
    with pytest.raises(SourceUnavailable, match="no TPU"):
        await TpuSource(tmp_path / "nothing").open()


def test_the_bus_says_what_is_plugged_in_whether_or_not_a_library_sees_it(tmp_path: Path) -> None:
    bus = pci_devices(
        pci_tree(
            tmp_path,
            ("0000:01:00.0", 0x10DE, 0x2330, 0x030200),
            ("0000:02:00.0", 0x10DE, 0x22A3, 0x068000),  # an NVSwitch
            ("0000:03:00.0", 0x1002, 0x74A1, 0x120000),
            ("0000:04:00.0", 0x1DA3, 0x1060, 0x120000),
            ("0000:05:00.0", 0x1D0F, 0x7364, 0x088000),
            ("0000:06:00.0", 0x1D0F, 0xEC20, 0x020000),  # a network device
            ("0000:00:02.0", 0x8086, 0x4680, 0x030000),  # the processor's own graphics
            ("0000:07:00.0", 0x8086, 0x0BD5, 0x038000),
        )
    )
    seen = {name: plugged_in(name, bus) for name in ("nvml", "amdsmi", "hl-smi", "neuron", "tpu", "xpu-smi", "rapl")}
    assert seen == {"nvml": 1, "amdsmi": 1, "hl-smi": 1, "neuron": 1, "tpu": 0, "xpu-smi": 1, "rapl": 0}


def test_a_machine_without_a_bus_has_nothing_plugged_in(tmp_path: Path) -> None:
    assert pci_devices(tmp_path / "nothing") == []
