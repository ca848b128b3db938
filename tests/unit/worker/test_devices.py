"""What devices are called, and which the catalogue's they are."""

import tomllib

import pytest

from services.mesh.accelerators import load_catalogue, read_catalogue
from services.worker.core.devices import Device, Reading, contradicts, recognise, row_for, total, visible

CATALOGUE = load_catalogue()


def device(name: str, memory_bytes: int = 0, *, index: int = 0, uuid: str = "", cpu: bool = False) -> Device:
    return Device(source="test", vendor="Acme", name=name, memory_bytes=memory_bytes, index=index, uuid=uuid, cpu=cpu)


MIB = 1 << 20


@pytest.mark.parametrize(
    ("name", "memory_mib", "key"),
    [
        ("NVIDIA H100 80GB HBM3", 81_559, "nvidia-h100-sxm"),
        ("NVIDIA H200", 143_771, "nvidia-h200-sxm"),
        ("NVIDIA B200", 183_359, "nvidia-b200-sxm"),
        ("NVIDIA A100-SXM4-80GB", 81_920, "nvidia-a100-80g-sxm"),
        ("NVIDIA L40S", 46_068, "nvidia-l40s"),
        ("NVIDIA L4", 23_034, "nvidia-l4"),
        ("AMD Instinct MI300X", 196_592, "amd-mi300x"),
        ("AMD Instinct MI325X", 262_128, "amd-mi325x"),
        ("HL-325L", 131_072, "intel-gaudi3"),
        ("TPU v6e", 0, "google-tpu-v6e"),
        ("Trainium2", 98_304, "aws-trainium2"),
    ],
)
def test_what_vendors_libraries_say_is_the_catalogues_accelerator(name: str, memory_mib: int, key: str) -> None:
    found = recognise(device(name, memory_mib * MIB), CATALOGUE)
    assert found is not None
    assert found.key == key


@pytest.mark.parametrize(
    ("name", "memory_mib"),
    [
        ("NVIDIA H100 PCIe", 81_559),  # another bandwidth, another price
        ("NVIDIA H100 NVL", 95_830),
        ("NVIDIA H200 NVL", 143_771),
        ("NVIDIA A100-SXM4-40GB", 40_960),
        ("NVIDIA L40", 46_068),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9_856),
        ("NVIDIA H100 80GB HBM3", 40_000),  # a part of one
        ("AMD Instinct MI300X HF", 196_592),
        ("AMD Instinct MI300A", 131_072),
        ("HL-225", 98_304),
        ("TPU v5p", 0),
        ("Trainium1", 32_768),
        ("NVIDIA GeForce RTX 4090", 24_564),
    ],
)
def test_a_device_that_fits_no_row_is_unknown_and_not_its_neighbour(name: str, memory_mib: int) -> None:
    assert recognise(device(name, memory_mib * MIB), CATALOGUE) is None


@pytest.mark.parametrize("name", ["AMD EPYC 9755 128-Core Processor", "AMD EPYC 9575F 64-Core Processor"])
def test_a_processor_is_recognised_whatever_memory_the_machine_has(name: str) -> None:
    found = recognise(device(name, 64 << 30, cpu=True), CATALOGUE)
    assert found is not None
    assert found.key == "cpu-epyc-turin"
    assert recognise(device(name, 64 << 30), CATALOGUE) is None, "an accelerator is no processor"


@pytest.mark.parametrize("name", ["AMD EPYC 9654 96-Core Processor", "AMD EPYC", "Intel(R) Xeon(R) Platinum 8481C"])
def test_a_processor_of_another_generation_is_unknown(name: str) -> None:
    assert recognise(device(name, 64 << 30, cpu=True), CATALOGUE) is None


def test_a_device_that_fits_two_rows_is_neither() -> None:
    h100 = {"detect": ["NVIDIA H100 80GB HBM3"]}
    ours = read_catalogue({"accelerators": {"nvidia-h200-sxm": {**h100, "memory_gb": 82}}})
    assert recognise(device("NVIDIA H100 80GB HBM3", 81_559 * MIB), ours) is None


def test_the_row_to_declare_a_device_by_is_one_the_catalogue_reads() -> None:
    strange = device("Acme X-1 (24 GB)", 24 << 30)
    text = row_for(strange).replace('"…"', '"0.50"').replace("…", "1")
    catalogue = read_catalogue(tomllib.loads(text)["catalogue"])
    found = recognise(strange, catalogue)
    assert found is not None
    assert (found.key, found.vendor) == ("acme-x-1-24-gb", "Acme")


FOUR = [device("A", index=number, uuid=f"GPU-{number}{number}") for number in range(4)]


@pytest.mark.parametrize(
    ("value", "left"),
    [
        (None, [0, 1, 2, 3]),
        ("all", [0, 1, 2, 3]),
        ("", []),
        ("-1", []),
        ("none", []),
        ("2,0", [2, 0]),
        ("GPU-3,1", [3, 1]),
        ("1,9,2", [1]),  # as CUDA does: nothing behind what is not there
        ("8,9", [0, 1, 2, 3]),  # a container's runtime has followed it already
    ],
)
def test_the_environment_says_which_devices_are_used_and_in_which_order(value: str | None, left: list[int]) -> None:
    assert [each.index for each in visible(FOUR, value)] == left


@pytest.mark.parametrize(
    ("platform", "key", "contradicted"),
    [
        ("cuda: NVIDIA H100 80GB HBM3", "nvidia-h100-sxm", False),
        ("cuda: NVIDIA H100 80GB HBM3", "nvidia-h100-sxm-x8", False),
        ("cuda: NVIDIA L4", "nvidia-h100-sxm", True),
        ("cuda: NVIDIA H100 80GB HBM3", "nvidia-h200-sxm-x8", True),
        ("rocm: AMD_Instinct_MI300X", "amd-mi300x", False),
        ("rocm: AMD_Instinct_MI300X", "nvidia-l4", True),
        ("tpu: TPU v6 lite", "google-tpu-v6e", False),
        ("cpu: cpu", "cpu-epyc-turin", False),
        ("cpu: cpu", "nvidia-l4", True),
        ("cuda: NVIDIA GeForce RTX 4090", "nvidia-l4", False),  # not known, so it contradicts nothing
    ],
)
def test_what_the_engine_runs_on_is_held_against_the_accelerator(platform: str, key: str, contradicted: bool) -> None:
    assert contradicts(platform, CATALOGUE.accelerator(key), CATALOGUE) is contradicted


def test_several_devices_read_as_one_and_a_missing_figure_stays_missing() -> None:
    one = Reading(power_w=300.0, utilisation=0.5, energy_uj=10)
    assert total([one, one]) == Reading(power_w=600.0, utilisation=0.5, energy_uj=20)
    assert total([one, Reading(utilisation=1.0)]) == Reading(utilisation=0.75)
    assert total([]) == Reading()
