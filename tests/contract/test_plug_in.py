"""An engine that a third party ships: found by its entry point, and held to the contract by the shipped suite."""

import asyncio
import os
import sys
from pathlib import Path

from services.worker.contract import __main__ as command
from tests.contract.acme_distribution import install_acme

ROOT = Path(__file__).parents[2]


async def hold_to_contract(*arguments: str, path: Path) -> tuple[int, str]:
    """`python -m services.worker.contract` from another directory, with `path` on the path; status and output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        command.__name__.removesuffix(".__main__"),
        *arguments,
        cwd=path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(path), str(ROOT)))},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(100):
            told, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, told.decode()


async def test_third_party_s_engine_passes_the_shipped_contract(tmp_path: Path) -> None:
    install_acme(tmp_path)
    settings = '{"models": ["acme-7b"]}'
    status, told = await hold_to_contract("acme", "--settings", settings, "--", "-q", "-rs", path=tmp_path)
    assert status == 0, told
    assert " passed" in told
    # What it says it lacks is skipped with its own words, and what it does not have is refused by name.
    assert "acme has no process: it computes in the worker's process" in told
    assert "acme does not say that it has tools; it refuses it by name" in told


async def test_engine_that_breaks_its_promises_fails_the_contract(tmp_path: Path) -> None:
    install_acme(tmp_path)
    module = tmp_path / "acme_engine.py"
    honest = module.read_text()
    module.write_text(honest.replace("ids.append(ord(letter))", "ids.append(ord(letter) ^ 1)"))
    assert module.read_text() != honest
    status, told = await hold_to_contract(
        "acme", "--settings", '{"models": ["acme-7b"]}', "--", "-q", "-k", "decode_to_the_text", path=tmp_path
    )
    assert status == 1, told
    assert "test_ids_decode_to_the_text" in told


async def test_engine_that_nobody_has_is_named_with_those_there_are(tmp_path: Path) -> None:
    status, told = await hold_to_contract("nobody", path=tmp_path)
    assert status != 0
    assert "'nobody' is not known" in told
    assert "simulated" in told
