"""NVML and amdsmi, read as their libraries answer."""

import ast
import importlib.util
import sys
from pathlib import Path

import pynvml
import pytest

from services.worker.core.devices import Device, Reading
from services.worker.hardware.amdsmi import AmdSmiSource
from services.worker.hardware.nvml import NvmlSource
from services.worker.hardware.source import SourceUnavailable
from tests.unit.worker.hardware.vendors import AMDSMI_NAMES, H100, Driver, Gpu, Instinct, amdsmi_module


@pytest.fixture
def nvml() -> NvmlSource:
    return NvmlSource()


async def test_nvml_tells_devices_watts_utilisation_and_energy(
    nvml: NvmlSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver([Gpu(*H100), Gpu(*H100, uuid="GPU-2")])
    driver.install(monkeypatch)
    devices = await nvml.open()
    assert [(each.vendor, each.name, each.index) for each in devices] == [
        ("NVIDIA", "NVIDIA H100 80GB HBM3", 0),
        ("NVIDIA", "NVIDIA H100 80GB HBM3", 1),
    ]
    assert devices[0].memory_bytes == 81_559 << 20
    assert await nvml.read(devices[:1]) == [Reading(power_w=412.345, utilisation=0.93, energy_uj=7_000_000_000)]
    await nvml.close()
    assert (driver.calls[0], driver.calls[-1]) == ("nvmlInit", "nvmlShutdown")


async def test_what_a_device_does_not_support_is_left_out(nvml: NvmlSource, monkeypatch: pytest.MonkeyPatch) -> None:
    Driver([Gpu(*H100, energy_mj=None, power_mw=None)]).install(monkeypatch)
    devices = await nvml.open()
    assert await nvml.read(devices) == [Reading(utilisation=0.93)]
    await nvml.close()


async def test_a_lost_device_is_named(nvml: NvmlSource, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver([Gpu(*H100)])
    driver.install(monkeypatch)
    devices = await nvml.open()
    driver.failing = pynvml.NVML_ERROR_GPU_IS_LOST
    with pytest.raises(SourceUnavailable, match="NVML: GPU is lost"):
        await nvml.read(devices)
    await nvml.close()


async def test_without_nvidias_driver_it_says_what_would_do(nvml: NvmlSource) -> None:
    """The real library, asked for real."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        pass
    else:
        pynvml.nvmlShutdown()
        pytest.skip("this machine has NVIDIA's driver")
    with pytest.raises(SourceUnavailable, match=r"NVML does not start: .*Found") as caught:
        await nvml.open()
    assert caught.value.would_do == "install NVIDIA's driver"
    await nvml.close()


async def test_indices_of_unlike_devices_need_one_order(nvml: NvmlSource, monkeypatch: pytest.MonkeyPatch) -> None:
    Driver([Gpu("NVIDIA L4", 23_034, uuid="GPU-4"), Gpu(*H100, uuid="GPU-1")]).install(monkeypatch)
    devices = await nvml.open()
    with pytest.raises(SourceUnavailable, match="counts unlike devices"):
        nvml.visible(devices, {"CUDA_VISIBLE_DEVICES": "0"})
    by_bus = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert [each.uuid for each in nvml.visible(devices, by_bus)] == ["GPU-1"]
    assert [each.uuid for each in nvml.visible(devices, {"CUDA_VISIBLE_DEVICES": "GPU-4"})] == ["GPU-4"]
    with pytest.raises(SourceUnavailable, match="a part of a device"):
        nvml.visible(devices, {"CUDA_VISIBLE_DEVICES": "MIG-7ab3"})
    await nvml.close()


@pytest.fixture
def amdsmi(monkeypatch: pytest.MonkeyPatch) -> AmdSmiSource:
    monkeypatch.setitem(sys.modules, "amdsmi", amdsmi_module([Instinct(1), Instinct(0, energy_accumulator=None)]))
    return AmdSmiSource()


async def test_amdsmi_tells_devices_in_hips_order(amdsmi: AmdSmiSource) -> None:
    devices = await amdsmi.open()
    assert [(each.name, each.index, each.uuid) for each in devices] == [
        ("AMD Instinct MI300X", 0, "GPU-0000000000000000"),
        ("AMD Instinct MI300X", 1, "GPU-0000000000000001"),
    ]
    assert devices[0].memory_bytes == 196_592 << 20
    await amdsmi.close()


async def test_amdsmi_tells_watts_utilisation_and_energy_where_it_has_them(amdsmi: AmdSmiSource) -> None:
    devices = await amdsmi.open()
    assert await amdsmi.read(devices) == [
        Reading(power_w=688.0, utilisation=0.87),
        Reading(power_w=688.0, utilisation=0.87, energy_uj=15_259_000),
    ]
    await amdsmi.close()


async def test_an_older_device_tells_its_average_watts(monkeypatch: pytest.MonkeyPatch) -> None:
    power = {"current_socket_power": "N/A", "average_socket_power": 301, "socket_power": 301}
    module = amdsmi_module([Instinct(0, power=power, gfx_activity="N/A")])
    monkeypatch.setitem(sys.modules, "amdsmi", module)
    source = AmdSmiSource()
    (reading,) = await source.read(await source.open())
    assert (reading.power_w, reading.utilisation) == (301.0, None)
    await source.close()


async def test_hip_counts_what_rocr_has_left(amdsmi: AmdSmiSource) -> None:
    devices = await amdsmi.open()

    def left(**environment: str) -> list[int]:
        return [each.index for each in amdsmi.visible(devices, environment)]

    assert left() == [0, 1]
    assert left(ROCR_VISIBLE_DEVICES="1") == [1]
    assert left(ROCR_VISIBLE_DEVICES="1", HIP_VISIBLE_DEVICES="0") == [1]
    assert left(HIP_VISIBLE_DEVICES="1,0") == [1, 0]
    assert left(CUDA_VISIBLE_DEVICES="1") == [1]
    assert left(ROCR_VISIBLE_DEVICES="GPU-0000000000000001") == [1]
    await amdsmi.close()


async def test_amdsmi_without_rocm_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", None)  # as an import that fails
    with pytest.raises(SourceUnavailable, match="amdsmi is not installed") as caught:
        await AmdSmiSource().open()
    assert "tokenworks[amd]" in caught.value.would_do


def test_the_names_used_of_amdsmi_are_the_real_ones() -> None:
    spec = importlib.util.find_spec("amdsmi")
    if spec is None or spec.origin is None:
        pytest.skip("amdsmi is not installed: its names are not held against the real ones")
    exported = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(AMDSMI_NAMES) <= exported


def test_a_device_reads_like_a_sentence() -> None:
    seen = Device(source="nvml", vendor="NVIDIA", name="NVIDIA L4", memory_bytes=24_152_899_584, index=0)
    assert str(seen) == "NVIDIA L4, 24 GB (told by nvml)"
