"""A benchmark's result as a file: the figures, and the hardware and commit they were measured on.

In: a name and figures. Out: `bench/results/<name>.json`.
"""

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import psutil

RESULTS: Final = Path(__file__).resolve().parent / "results"


def hardware() -> dict[str, Any]:
    """The machine as a reader needs to know it; `load_1m` tells whether something else ran on it."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_1m": round(os.getloadavg()[0], 2),
    }


def write(name: str, figures: dict[str, Any]) -> Path:
    """Replaces the result called `name`; the file's path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    measured = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": _commit(), "hardware": hardware()}
    path.write_text(json.dumps({"benchmark": name, **measured, **figures}, indent=2) + "\n", encoding="utf-8")
    return path


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], check=False, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
