"""Fills `.venv-engines`, the environment of the engine tests: the CPU build of vLLM beside Tokenworks and its tests.

In: `scripts/engines.lock`, the exact versions that are known to work together. Out: $VENV (default `.venv-engines`),
2.5 GB on disk, in about two minutes. `installed.json` in it records the digest of the lock and of pyproject.toml; while
the record fits, a run of this script costs a few milliseconds. Standard library only.

The lock is installed without dependencies: what vLLM asks for besides (torchvision, torchaudio, torchcodec) does not
load beside the CPU build of torch. Exit status 3: this platform has no such build.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tomllib
from pathlib import Path

os.environ.setdefault("VENV", ".venv-engines")

from set_up import PYTHON, RECORD, ROOT, SetUpFailed, make_environment, pip_install, run_quietly, say

LOCK = Path(__file__).with_name("engines.lock")
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"  # where the CPU build of torch is, unless pip is told of another
TEST_PACKAGES = ("hypothesis", "openai", "psutil", "pytest", "pytest-asyncio", "pytest-timeout")  # of the dev extra
UNAVAILABLE = 3


def unavailable() -> str:
    """Why the CPU build of vLLM cannot be had on this machine; empty when it can."""
    here = f"{platform.system()} on {platform.machine()}"
    if here != "Linux on x86_64":
        return f"this is {here}, and the CPU build of vLLM in scripts/engines.lock is for Linux on x86_64"
    flags = Path("/proc/cpuinfo").read_text()
    if not re.search(r"\bavx2\b", flags):
        return "the CPU build of vLLM needs a processor with AVX2"
    return ""


def install() -> None:
    say("upgrading pip …")
    if failure := pip_install("--upgrade", "pip"):
        say(f"pip stays at its version: {failure}")
    say("installing the CPU build of vLLM (700 MB to download, two minutes) …")
    # Torch first and alone: its CPU build is not on PyPI, though pip may have been told of a place that has it.
    torch = next(line for line in LOCK.read_text().splitlines() if line.startswith("torch=="))
    failure = pip_install("--no-deps", torch) and pip_install("--no-deps", "--index-url", TORCH_INDEX, torch)
    if failure := failure or pip_install("--no-deps", "--requirement", str(LOCK)):
        raise SetUpFailed(f"pip could not install {LOCK.name}:\n{failure}\nCheck the network and the package index.")
    say("installing Tokenworks with llama.cpp and what its tests need …")
    dev = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    tests = [each for each in dev if re.split(r"[<>=~!]", each)[0] in TEST_PACKAGES]
    # The lock constrains: what vLLM was measured with stays as it is.
    if failure := pip_install("--constraint", str(LOCK), "--editable", ".[llamacpp]", *tests):
        raise SetUpFailed(f"pip could not install Tokenworks beside vLLM:\n{failure}")
    if missing := missing_library():
        raise SetUpFailed(f"vLLM does not load: {missing}")


def missing_library() -> str:
    """What keeps vLLM's kernels from loading; empty when they load. Installs libnuma where that is it, and it may."""
    needed = "import ctypes; ctypes.CDLL('libnuma.so.1')"
    if run_quietly(PYTHON, "-c", needed).returncode == 0:
        return ""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        say("installing libnuma1, which vLLM is linked to …")
        run_quietly("apt-get", "update", "-q")
        run_quietly("apt-get", "install", "-y", "-q", "--no-install-recommends", "libnuma1")
    return "" if run_quietly(PYTHON, "-c", needed).returncode == 0 else "it needs libnuma; apt-get install libnuma1"


def main() -> None:
    if why := unavailable():
        say(why)
        sys.exit(UNAVAILABLE)
    digest = hashlib.sha256(LOCK.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if PYTHON.exists() and record.get("digest") == digest:
        return
    try:
        make_environment()
        install()
    except SetUpFailed as error:
        sys.exit(f"set-up: {error}")
    scratch = RECORD.with_suffix(".new")
    scratch.write_text(json.dumps({"digest": digest}, indent=1))
    shutil.move(scratch, RECORD)
    say("done")


if __name__ == "__main__":
    main()
