"""`start_router` and `router`: a router on free ports, over the bus in memory."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SpanExporter

from services.mesh.keys import KeyStore
from services.mesh.lifecycle import Lifecycle
from services.mesh.memory_bus import MemoryBroker
from services.mesh.settings import MeshSettings, NatsSettings, RouterSettings, load_settings
from services.mesh.telemetry import start_telemetry
from services.router.wiring import wire
from tests.mesh.router.router_under_test import Router

StartRouter = Callable[..., Awaitable[Router]]


@pytest.fixture
async def start_router(tmp_path: Path) -> AsyncIterator[StartRouter]:
    """`await start_router(max_in_flight=2)`: a router with these settings; stopped after the test."""
    routers: list[Router] = []

    async def start(
        *, secret: str = "", grace_s: float = 2.0, exporter: SpanExporter | None = None, **settings: Any
    ) -> Router:
        keys = KeyStore(tmp_path / "keys.json")
        key, other = keys.create("acme", "test", 0), keys.create("umbra", "test", 0)
        loaded = load_settings(
            mesh=MeshSettings(data_dir=tmp_path, secret=secret, drain_grace_s=grace_s),
            nats=NatsSettings(outbox_events=64),
            router=RouterSettings(port=0, http_port=0, **settings),
        )
        broker, life = MemoryBroker(), Lifecycle("router")
        telemetry = start_telemetry("router", "router-0", exporter=exporter)
        life.on_stop("telemetry", partial(asyncio.to_thread, telemetry.shutdown))
        bus = broker.bus("router", "router-0", telemetry)
        life.on_stop("bus", bus.close)
        await bus.connect()
        running = await wire(life, loaded, bus=bus, telemetry=telemetry)
        router = Router(broker, running, life, key, other)
        routers.append(router)
        life.spawn(router.watch(), "test's watcher")
        await life.set_ready()
        return router

    yield start
    for router in routers:
        await router.close()


@pytest.fixture
async def router(start_router: StartRouter) -> Router:
    return await start_router()
