"""Targets over HTTP, for whoever starts and stops workers: Kubernetes' autoscaler reads them through KEDA.

`GET /v1/targets` lists all; `GET /v1/targets/POOL` is one, as KEDA's `metrics-api` scaler takes it: with a number at
`replicas`. A pool that there is no target for yet is 404, upon which KEDA leaves the replicas as they are.
"""

import json
from dataclasses import asdict
from typing import Final

from aiohttp import web

from services.mesh.clock import Clock
from services.optimizer.core.elastic import Elastic

_STALE_S: Final = 300.0  # an optimizer that has not looked for so long says nothing of now


class TargetRoutes:
    """Serves what `elastic` said last."""

    def __init__(self, elastic: Elastic, clock: Clock) -> None:
        self._elastic = elastic
        self._clock = clock

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/v1/targets", self._all), web.get("/v1/targets/{pool}", self._one)]

    async def _all(self, request: web.Request) -> web.Response:
        found = [asdict(each) for each in self._elastic.latest(self._since_s())]
        return web.json_response({"targets": found, "replicas": sum(each["replicas"] for each in found)})

    async def _one(self, request: web.Request) -> web.Response:
        pool = request.match_info["pool"]
        targets = {each.pool: each for each in self._elastic.latest(self._since_s())}
        if pool not in targets:
            known = ", ".join(sorted(targets)) or "none yet"
            message = f"there is no target for pool {pool!r}; pools with one: {known} (elastic.pools)"
            raise web.HTTPNotFound(text=json.dumps({"error": message}), content_type="application/json")
        return web.json_response(asdict(targets[pool]))

    def _since_s(self) -> float:
        return self._clock.unix_ms() / 1000 - _STALE_S
