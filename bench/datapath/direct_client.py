"""Direct streams: a placement from the router, then the stream from the worker named in it. Two clients.

`DirectClient` costs little, and does not mend: it is for measuring routers. `OwnClient` is `tokenworks.Client`, which
goes on elsewhere when a worker breaks: it is for measuring what becomes of streams.
"""

import time

from bench.datapath.grpc_client import GrpcChannel, authorization, generate_request
from bench.datapath.orders import Order, Reading
from services.mesh.placement import METADATA_KEY
from tokenworks import CallError, Client
from tokenworks.v1 import inference_pb2 as wire

_HEAD = 5  # of a gRPC message: a flag, and the length


class MessageTokens:
    """Counts the tokens that messages say they have."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> int:
        """The tokens of the messages that `data` completes."""
        buffer, at, count = self._rest + data, 0, 0
        while len(buffer) - at >= _HEAD:
            end = at + _HEAD + int.from_bytes(buffer[at + 1 : at + _HEAD])
            if end > len(buffer):
                break
            count += wire.GenerateResponse.FromString(buffer[at + _HEAD : end]).token_count
            at = end
        self._rest = buffer[at:]
        return count


class DirectClient:
    """Keeps connections to the router and to each worker."""

    def __init__(self, order: Order) -> None:
        self._router = GrpcChannel(order.address, order.streams_per_connection)
        self._workers: dict[str, GrpcChannel] = {}

    async def request(self, order: Order, reading: Reading) -> None:
        request = generate_request(order)
        answer = await self._router.unary(
            "/tokenworks.v1.Router/Place", request.SerializeToString(), authorization(order)
        )
        placement = wire.Placement.FromString(answer)
        request.request_id, request.slo_class = placement.request_id, placement.slo_class
        worker = self._workers.get(placement.address)
        if worker is None:
            worker = self._workers[placement.address] = GrpcChannel(placement.address, order.streams_per_connection)
        await worker.call(
            "/tokenworks.v1.Worker/Generate",
            request.SerializeToString(),
            ((METADATA_KEY, placement.token),),
            reading,
            MessageTokens(),
            wanted=order.tokens,
        )

    async def close(self) -> None:
        await self._router.close()
        for worker in self._workers.values():
            await worker.close()


class OwnClient:
    """`tokenworks.Client`, as programs use it."""

    def __init__(self, order: Order) -> None:
        self._client = Client(order.address, order.key)

    async def request(self, order: Order, reading: Reading) -> None:
        asked = generate_request(order)
        generation = self._client.generate(text=asked.text, model=order.model, max_tokens=order.tokens, ignore_eos=True)
        try:
            async with generation:
                async for piece in generation:  # fails by itself on a gap or a repeat
                    reading.came(piece.token_count, time.monotonic())
        except CallError as error:
            reading.end(f"{type(error).__name__}: {error}"[:200])
        reading.end("" if reading.tokens == order.tokens else "tokens lost or repeated")

    async def close(self) -> None:
        await self._client.close()
