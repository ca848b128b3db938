"""One run of `tokenworks up`: starts the mesh, shows it at work, and stops it in order.

In: what `prepare` made of the settings. Out: an exit status: 0 when everything that was shown went well and the mesh
drained cleanly.
"""

import asyncio
import json
import os
import signal
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from services.cli.access import DEFAULT_TENANT, write_access
from services.cli.data_dir import DataDir, TenantKeys
from services.cli.demo import FirstText, first_text, replay_demo, served
from services.cli.demo_trace import TENANTS
from services.cli.drive import failed_because
from services.cli.layout import Layout, ServiceSpec, fleet_of, is_local, lay_out, ports_needed, with_keys
from services.cli.mesh_process import MeshProcess
from services.cli.output import Output
from services.cli.phoenix import GRPC_PORT, HTTP_PORT, phoenix
from services.cli.readiness import free_ports
from services.cli.real_model import RealModel
from services.cli.report import Document
from services.cli.report_view import accelerator_name, pictures
from services.cli.up_view import address_lines, addresses, first_text_lines, showing
from services.mesh.clock import SystemClock
from services.mesh.keys import KeyStore
from services.mesh.settings import FleetWorker, Settings
from services.mesh.telemetry import traces_endpoint
from tokenworks import Client

SHAPES: Final = "TOKENWORKS_CATALOGUE_MODELS"  # by which every service knows a model that no catalogue has
_FIRST_TEXT_DEADLINE_S: Final = 60.0
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A mesh that could be started."""

    settings: Settings
    data_dir: DataDir
    fleet: tuple[FleetWorker, ...]
    layout: Layout
    keys: TenantKeys

    @property
    def models(self) -> dict[str, int]:
        """model -> how many workers serve it."""
        names = [name for worker in self.fleet for name in worker.models]
        return {name: names.count(name) for name in dict.fromkeys(names)}

    @property
    def real_model(self) -> str:
        """The model of the worker on this machine's own hardware; the first one where the fleet has none."""
        local = [worker for worker in self.fleet if is_local(worker)]
        return (local or self.fleet)[0].models[0]


def prepare(settings: Settings, data_dir: DataDir, *, real: RealModel, explorer: bool, all_free: bool) -> Prepared:
    """Makes keys and the mesh's secret where they are missing, and lays the services out.

    Args:
        real: what the worker on this machine's own hardware runs.
        explorer: with a trace explorer.
        all_free: on free ports, whatever the settings say.

    Raises:
        CommandFailed: the trace explorer is not installed.
    """
    fleet = fleet_of(settings, real)
    keys = data_dir.tenant_keys(KeyStore(settings.keys_file), TENANTS, SystemClock())
    host = settings.mesh.host
    spare = free_ports(host, ports_needed(len(fleet)) + 2)
    sending: dict[str, str] = {}
    shapes: dict[str, str] = {}
    if real.shape is not None:
        declared = json.loads(os.environ.get(SHAPES) or "{}") | {real.model: real.shape}
        shapes = {SHAPES: json.dumps(declared)}
    traces: tuple[ServiceSpec, ...] = ()
    if explorer:
        http_port, grpc_port = spare[-2:] if all_free else (HTTP_PORT, GRPC_PORT)
        spec, sending = phoenix(host, http_port, grpc_port, data_dir.path / "phoenix")
        traces = (spec,)
        os.environ.update(sending)  # the command line's own spans are part of the traces
    layout = lay_out(
        settings,
        data_dir=data_dir.path,
        secret=settings.mesh.secret or data_dir.secret(),
        fleet=fleet,
        free_ports=spare,
        all_free=all_free,
        extra_environment=sending | shapes,
    )
    access = replace(layout.access, traces=traces_endpoint())
    layout = with_keys(replace(layout, services=(*traces, *layout.services), access=access), keys.keys)
    return Prepared(settings=settings, data_dir=data_dir, fleet=fleet, layout=layout, keys=keys)


class _Interrupted(Exception):
    """Ctrl-C or SIGTERM came."""


class UpRun:
    """`asyncio.run(UpRun(…).run(…))`, once."""

    def __init__(self, output: Output, prepared: Prepared, started_s: float) -> None:
        self._output = output
        self._prepared = prepared
        self._started_s = started_s
        self._interrupted = asyncio.Event()
        self._mesh = MeshProcess(
            prepared.settings, prepared.layout, prepared.data_dir, lambda words: output.say(f"[yellow]{words}[/]")
        )

    async def run(self, *, once: bool, replay: bool, limit: int) -> int:
        """The exit status. Raises CommandFailed: the mesh did not start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt)
        self._mesh.check_ports()
        self._say_hello()
        status = 0
        try:
            problem = await self._unless_interrupted(self._show(replay=replay, limit=limit))
            if problem:
                self._output.say(f"\n[bold red]{problem}[/]")
            status = 1 if problem and once else 0
            if not once:
                self._output.say("\nThe mesh stays up; Ctrl-C drains it and exits.")
                await self._interrupted.wait()
        except _Interrupted:
            pass
        finally:
            complaints = await self._stop()
        return 1 if complaints else status

    async def _show(self, *, replay: bool, limit: int) -> str:
        """Starts the mesh and shows it at work; why the demonstration counts as failed, empty when it does not."""
        prepared = self._prepared
        first = await self._start()
        document: Document = {
            "first_text": {
                "text": first.text,
                "model": first.model,
                "simulated": first.simulated,
                "after_start_s": first.asked_after_s + first.ttft_s,
                "ttft_s": first.ttft_s,
                "trace_id": first.trace_id,
            },
            "addresses": addresses(prepared.layout),
            "report": None,
        }
        lines = address_lines(prepared.layout, prepared.data_dir.client_file)
        if not replay:
            self._output.result(document, "", *lines)
            return ""
        report = await replay_demo(
            self._output,
            prepared.layout.access,
            prepared.settings.slo,
            models=list(prepared.models),
            real_model=prepared.real_model,
            limit=limit,
            interrupted=self._interrupted,
        )
        self._output.result(document | {"report": report}, "", *pictures(report), "", *lines)
        return self._problem(report)

    async def _start(self) -> FirstText:
        """Everything ready and known to the router; the first text comes before most of it."""
        prepared, access = self._prepared, self._prepared.layout.access
        async with showing(self._output, self._mesh.supervisor, self._started_s):
            write_access(prepared.data_dir.client_file, access)
            await self._mesh.start_first()
            first = await first_text(access, prepared.real_model, self._started_s, _FIRST_TEXT_DEADLINE_S)
            for line in first_text_lines(first):
                self._output.say(line)
            await self._mesh.start_rest()
            async with Client(access.router, access.keys[DEFAULT_TENANT]) as client:
                for name, workers in prepared.models.items():
                    await served(client, name, workers, _FIRST_TEXT_DEADLINE_S)
        self._mesh.supervisor.keep_running()
        return first

    def _problem(self, report: Document) -> str:
        if problem := failed_because(report):
            return problem
        made = {row["accelerator"] for row in report["by_accelerator"] if row["completion_tokens"]}
        idle = sorted(accelerator_name(each) for each in self._prepared.layout.accelerators - made)
        return f"{', '.join(idle)} served nothing" if idle else ""

    def _interrupt(self) -> None:
        if self._interrupted.is_set():
            self._output.say("[bold red]Stopping at once: what runs is cut off.[/]")
            self._mesh.kill()
        else:
            self._interrupted.set()

    async def _unless_interrupted(self, work: Awaitable[_Result]) -> _Result:
        task, interrupted = asyncio.ensure_future(work), asyncio.ensure_future(self._interrupted.wait())
        try:
            await asyncio.wait((task, interrupted), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise _Interrupted
            return await task
        finally:
            for each in (task, interrupted):
                each.cancel()
            await asyncio.gather(task, interrupted, return_exceptions=True)

    async def _stop(self) -> list[str]:
        self._output.say(
            "[dim]Draining: the router stops accepting, workers finish, the meter books, the bus closes.[/]"
        )
        complaints = await self._mesh.stop()
        for each in complaints:
            self._output.say(f"[red]{each}[/]")
        if not complaints:
            self._output.say("[dim]Drained cleanly.[/]")
        return complaints

    def _say_hello(self) -> None:
        prepared = self._prepared
        self._output.say(f"Starting {len(prepared.layout.services)} services; data and logs: {prepared.data_dir.path}")
        if DEFAULT_TENANT in prepared.keys.made:
            key = prepared.keys.keys[DEFAULT_TENANT]
            self._output.say(f"A key for tenant [bold]{DEFAULT_TENANT}[/], shown this once: [bold]{key}[/]")
