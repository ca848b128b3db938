"""Vendors' command-line tools, by programs that print what their documentation shows."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from services.worker.core.devices import Reading
from services.worker.hardware.command import find_tool, number, output_of
from services.worker.hardware.habana import HabanaSource
from services.worker.hardware.neuron import NeuronSource
from services.worker.hardware.source import SourceUnavailable
from services.worker.hardware.xpu import XpuSource
from tests.unit.worker.hardware.vendors import put_tool


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


GAUDI = """\
0, 3, 01P0-HL3090A0-18-U4V193-22-07-00, HL-325L, 131072 MiB, 431 W, 76 %
1, 1, 01P0-HL3090A0-18-U4V193-22-07-01, HL-325L, 131072 MiB, 225 W, 0 %
"""


async def test_hl_smi_tells_devices_watts_and_utilisation(tools: Path) -> None:
    put_tool(tools, "hl-smi", f'echo "$@" > {tools}/asked\ncat <<END\n{GAUDI}END')
    source = HabanaSource()
    devices = await source.open()
    assert [(each.name, each.memory_bytes, each.index) for each in devices] == [
        ("HL-325L", 131_072 << 20, 0),
        ("HL-325L", 131_072 << 20, 1),
    ]
    assert await source.read(devices[::-1]) == [
        Reading(power_w=225.0, utilisation=0.0),
        Reading(power_w=431.0, utilisation=0.76),
    ]
    asked = (tools / "asked").read_text(encoding="utf-8").split()
    assert asked == [
        "-Q",
        "index,module_id,uuid,name,memory.total,power.draw,utilization.aip",
        "-f",
        "csv,noheader,nounits",
    ]
    assert [each.index for each in source.visible(devices, {"HABANA_VISIBLE_DEVICES": "1"})] == [1]
    assert [each.index for each in source.visible(devices, {"HABANA_VISIBLE_MODULES": "3"})] == [0]
    await source.close()


async def test_a_device_that_hl_smi_loses_is_named(tools: Path) -> None:
    put_tool(tools, "hl-smi", f"cat <<END\n{GAUDI}END")
    source = HabanaSource()
    devices = await source.open()
    put_tool(tools, "hl-smi", f"cat <<END\n{GAUDI.splitlines()[0]}\nEND")
    with pytest.raises(SourceUnavailable, match="no longer tells of device 1"):
        await source.read(devices)
    put_tool(tools, "hl-smi", "echo Failed to initialize >&2; exit 3")
    with pytest.raises(SourceUnavailable, match=r"ended with status 3: Failed to initialize"):
        await source.read(devices)
    put_tool(tools, "hl-smi", "echo No devices")
    with pytest.raises(SourceUnavailable, match="otherwise than documented"):
        await source.read(devices)


async def test_a_tool_that_does_not_answer_is_killed_at_its_deadline(tools: Path) -> None:
    path = put_tool(tools, "hl-smi", f"echo $$ > {tools}/pid\nexec sleep 600")
    with pytest.raises(SourceUnavailable, match=r"has not answered in 0\.3 s"):
        await output_of(str(path), "-Q", deadline_s=0.3)
    pid = int((tools / "pid").read_text(encoding="utf-8"))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_tool_that_is_not_there_is_named(tools: Path) -> None:
    with pytest.raises(SourceUnavailable, match="hl-smi is not installed"):
        await HabanaSource().open()
    put_tool(tools / "vendor", "odd-smi", "true")
    assert find_tool("odd-smi", str(tools / "vendor")) == str(tools / "vendor" / "odd-smi")


@pytest.mark.parametrize(
    ("text", "value"),
    [("431 W", 431.0), ("76 %", 76.0), ("12%", 12.0), (3, 3.0), ("N/A", None), ("", None), (None, None)],
)
def test_figures_are_read_with_their_units_and_without(text: object, value: float | None) -> None:
    assert number(text) == value


XPU_LIST = {
    "device_list": [
        {
            "device_id": 0,
            "device_name": "Intel(R) Data Center GPU Max 1550",
            "device_type": "GPU",
            "pci_bdf_address": "0000:29:00.0",
            "uuid": "00000000-0000-0029-0000-002f0bd58086",
            "vendor_name": "Intel(R) Corporation",
        }
    ]
}
XPU_ONE = {
    "device_id": 0,
    "device_name": "Intel(R) Data Center GPU Max 1550",
    "memory_physical_size_byte": "137438953472",
    "number_of_tiles": "2",
}
XPU_STATS = {
    "device_id": 0,
    "device_level": [
        {"avg": 63.12, "max": 63.48, "metrics_type": "XPUM_STATS_POWER", "min": 63.1, "value": 263.26},
        {"metrics_type": "XPUM_STATS_ENERGY", "value": 16169744},
    ],
    "tile_level": [
        {"data_list": [{"metrics_type": "XPUM_STATS_GPU_UTILIZATION", "value": 100.0}], "tile_id": 0},
        {"data_list": [{"metrics_type": "XPUM_STATS_GPU_UTILIZATION", "value": 50.0}], "tile_id": 1},
    ],
}


def put_xpu_smi(tools: Path, stats: dict[str, Any]) -> None:
    for name, document in (("list", XPU_LIST), ("one", XPU_ONE), ("stats", stats)):
        (tools / name).write_text(json.dumps(document), encoding="utf-8")
    put_tool(
        tools,
        "xpu-smi",
        f'case "$*" in "discovery -j") cat {tools}/list;; "discovery -d 0 -j") cat {tools}/one;;'
        f' "stats -d 0 -j") cat {tools}/stats;; *) exit 9;; esac',
    )


async def test_xpu_smi_tells_devices_watts_and_the_mean_of_tiles(tools: Path) -> None:
    put_xpu_smi(tools, XPU_STATS)
    source = XpuSource()
    devices = await source.open()
    assert [(each.name, each.memory_bytes) for each in devices] == [
        ("Intel(R) Data Center GPU Max 1550", 137_438_953_472)
    ]
    assert await source.read(devices) == [Reading(power_w=263.26, utilisation=0.75)]
    assert source.visible(devices, {"ZE_AFFINITY_MASK": "0.1"}) == tuple(devices)
    put_xpu_smi(tools, {"error": "Level Zero Initialization Error"})
    with pytest.raises(SourceUnavailable, match="Level Zero Initialization Error"):
        await source.read(devices)


NEURON_LS = [
    {
        "neuron_device": number,
        "bdf": f"0000:0{number}:1e.0",
        "cpu_affinity": "0-7",
        "numa_node": "-1",
        "connected_to": None,
        "nc_count": 4,
        "memory_size": 103_079_215_104,
        "neuroncore_ids": list(range(number * 4, number * 4 + 4)),
        "neuron_processes": [],
    }
    for number in range(2)
]
MONITOR = {
    "neuron_runtime_data": [
        {
            "pid": 1,
            "error": "",
            "report": {
                "neuroncore_counters": {
                    "period": 1.0,
                    "neuroncores_in_use": {
                        "4": {"neuroncore_utilization": 42.0, "flops": 1},
                        "5": {"neuroncore_utilization": 58.0, "flops": 1},
                    },
                    "error": "",
                }
            },
        }
    ],
    "instance_info": {"instance_type": "trn2.48xlarge"},
}


def chip_names(root: Path) -> Path:
    for index in range(2):
        folder = root / f"neuron{index}" / "info" / "architecture"
        folder.mkdir(parents=True)
        (folder / "device_name").write_text("Trainium2\n", encoding="ascii")
    return root


async def test_neuron_ls_tells_devices_and_neuron_monitor_utilisation(tools: Path, tmp_path: Path) -> None:
    put_tool(tools, "neuron-ls", f"cat <<'END'\n{json.dumps(NEURON_LS)}\nEND")
    put_tool(
        tools,
        "neuron-monitor",
        f"cp $2 {tools}/config; echo $$ > {tools}/pid\nwhile :; do echo '{json.dumps(MONITOR)}'; sleep 0.01; done",
    )
    source = NeuronSource(chip_names(tmp_path / "sysfs"))
    devices = await source.open()
    assert [(each.name, each.memory_bytes, each.index) for each in devices] == [
        ("Trainium2", 103_079_215_104, 0),
        ("Trainium2", 103_079_215_104, 1),
    ]
    idle, busy = await source.read(devices)
    assert (idle.utilisation, busy.utilisation, busy.power_w) == (0.0, pytest.approx(0.25), None)
    assert json.loads((tools / "config").read_text(encoding="utf-8"))["period"] == "1s"
    assert [each.index for each in source.visible(devices, {"NEURON_RT_VISIBLE_CORES": "4-7"})] == [1]
    pid = int((tools / "pid").read_text(encoding="utf-8"))
    await source.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_neuron_device_without_driver_files_is_called_by_its_instance(tools: Path, tmp_path: Path) -> None:
    listed = [{**NEURON_LS[0], "instance_type": "trn2.48xlarge"}]
    put_tool(tools, "neuron-ls", f"cat <<'END'\n{json.dumps(listed)}\nEND")
    (device,) = await NeuronSource(tmp_path).open()
    assert device.name == "trn2.48xlarge"


async def test_a_neuron_monitor_that_ends_is_unavailable(tools: Path, tmp_path: Path) -> None:
    put_tool(tools, "neuron-ls", f"cat <<'END'\n{json.dumps(NEURON_LS)}\nEND")
    put_tool(tools, "neuron-monitor", "exit 0")
    source = NeuronSource(tmp_path)
    devices = await source.open()
    with pytest.raises(SourceUnavailable, match="neuron-monitor has ended"):
        await source.read(devices)
    await asyncio.wait_for(source.close(), 5)


async def test_neuron_ls_without_a_driver_says_why(tools: Path, tmp_path: Path) -> None:
    put_tool(tools, "neuron-ls", "echo 'level=fatal msg=\"failed to discover Neuron devices\"' >&2; exit 1")
    with pytest.raises(SourceUnavailable, match="failed to discover Neuron devices"):
        await NeuronSource(tmp_path).open()
