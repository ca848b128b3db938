"""The meter's gRPC service of forecasts, anomalies and promises, for who knows the mesh's secret."""

from collections.abc import Sequence
from typing import Any, Final

import grpc

from services.mesh.rpc import require_mesh_secret
from services.meter.insight import Insight
from tokenworks.v1 import insight_pb2, insight_pb2_grpc

SERVICE_NAME: Final = "tokenworks.v1.Insight"
Context = grpc.aio.ServicerContext[Any, Any]


class InsightService(insight_pb2_grpc.InsightServicer):
    def __init__(self, insight: Insight, secrets: Sequence[str]) -> None:
        self._insight = insight
        self._secrets = secrets

    async def GetForecast(self, request: insight_pb2.GetForecastRequest, context: Context) -> insight_pb2.Forecast:
        require_mesh_secret(context, self._secrets)
        return await self._insight.forecast(request)

    async def ListAnomalies(
        self, request: insight_pb2.ListAnomaliesRequest, context: Context
    ) -> insight_pb2.ListAnomaliesResponse:
        require_mesh_secret(context, self._secrets)
        return await self._insight.anomalies(request)

    async def GetPromises(self, request: insight_pb2.GetPromisesRequest, context: Context) -> insight_pb2.Promises:
        require_mesh_secret(context, self._secrets)
        return await self._insight.promises(request)
