"""What doctor says of accelerators."""

import pytest

from services.cli import hardware_checks
from services.cli.checks import Severity
from services.cli.hardware_checks import check_hardware
from services.worker.hardware.pci import PciDevice
from tests.unit.worker.hardware.fakes import HeldSource, gpu, processor

ON_BUS = PciDevice("0000:01:00.0", 0x1002, 0x74A1, 0x120000)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[HeldSource]:
    sources = [
        HeldSource(gpu(), gpu(index=1), gpu("NVIDIA GeForce RTX 4090", 24_564, index=2)),
        HeldSource(name="amdsmi", missing="amdsmi is not installed"),
        HeldSource(name="tpu", missing="no TPU on the PCI bus"),
        HeldSource(processor(), name="rapl", lacking="RAPL may not be read"),
    ]
    monkeypatch.setattr(hardware_checks, "choose_sources", lambda: sources)
    monkeypatch.setattr(hardware_checks, "pci_devices", lambda: [ON_BUS])
    return sources


async def test_each_device_is_named_with_what_sees_it_and_what_would_show_more(machine: list[HeldSource]) -> None:
    found = {(each.name, each.severity): each for each in await check_hardware()}
    seen = found["accelerators: nvml", Severity.OK]
    assert seen.found == "2 x NVIDIA H100 80GB HBM3, 86 GB (told by nvml): nvidia-h100-sxm; its watts are measured"
    unknown = found["accelerators: nvml", Severity.NOTE]
    assert "RTX 4090" in unknown.found
    assert '[catalogue.accelerators.nvidia-geforce-rtx-4090]\nvendor = "NVIDIA"' in unknown.would_do
    missing = found["accelerators: amdsmi", Severity.NOTE]
    assert missing.found == "1 on the PCI bus, and not seen: amdsmi is not installed"
    assert "RAPL may not be read" in found["accelerators: rapl", Severity.OK].found
    assert found["accelerators", Severity.OK].found == "nothing here for tpu to see"
    assert [each.closed for each in machine] == [1, 1, 1, 1]


@pytest.mark.usefixtures("machine")
async def test_devices_that_the_environment_hides_are_said_to_be_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = [each for each in await check_hardware() if each.name == "accelerators: nvml"]
    assert [each.found for each in found] == ["3, and none to use: the environment hides every device"]
