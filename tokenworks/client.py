"""The client: streams tokens from a mesh, and asks it what it serves and why a request went where it went.

    async with Client("127.0.0.1:7600", key) as client:
        async with client.generate(text="Once upon a time", max_tokens=40) as stream:
            async for piece in stream:
                print(piece.text, end="")
        print(stream.result)

In: a router's address and a tenant's key. Out: `Generation`s. One channel is kept open and warm for all of a client's
requests, so a request costs no connection. Every request carries a W3C `traceparent` and a request id, which is its
idempotency key.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc
from opentelemetry.trace import Tracer

from tokenworks.errors import CallError, error_of
from tokenworks.identity import new_request_id
from tokenworks.stream import Generation
from tokenworks.tracing import TRACEPARENT, RequestTrace, default_tracer
from tokenworks.v1 import inference_pb2 as wire
from tokenworks.v1 import inference_pb2_grpc as rpc

DEFAULT_MODEL: Final = "smollm2-135m-instruct"
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
_Answer = TypeVar("_Answer")


class Client:
    """A tenant's view of a mesh. Make it inside the event loop that uses it; close it, or use `async with`.

    Args:
        address: `host:port` of a router's gRPC.
        key: the tenant's key.
        deadline_s: > 0; how long a stream, or a question, may take unless its call says otherwise.
        max_attempts: >= 1; calls made for one stream while no token has arrived and waiting can help.
        tracer: makes the CLIENT spans; without it the program's own OpenTelemetry set-up is used, if there is one.
    """

    def __init__(
        self,
        address: str,
        key: str,
        *,
        deadline_s: float = 600.0,
        max_attempts: int = 4,
        tracer: Tracer | None = None,
    ) -> None:
        if deadline_s <= 0 or max_attempts < 1:
            raise ValueError(f"deadline_s {deadline_s} must be > 0 and max_attempts {max_attempts} >= 1")
        self.address = address
        self._authorization = ("authorization", f"Bearer {key}")
        self._deadline_s = deadline_s
        self._max_attempts = max_attempts
        self._tracer = tracer or default_tracer()
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._router: Any = rpc.RouterStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._channel.get_state(try_to_connect=True)

    def generate(
        self,
        *,
        text: str | None = None,
        token_ids: Sequence[int] | None = None,
        chat: Sequence[Mapping[str, str]] | None = None,
        model: str = DEFAULT_MODEL,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        slo_class: str = "",
        workload: str = "",
        session_id: str = "",
        request_id: str = "",
        deadline_s: float | None = None,
        max_attempts: int | None = None,
    ) -> Generation:
        """A request; it is sent when the stream is first read.

        Args:
            text, token_ids, chat: the prompt, in exactly one form; chat is `{"role": …, "content": …}` per turn.
            max_tokens, temperature, top_p, top_k, seed, stop: None or empty: the engine's default. See `Sampling` in
                `protos/tokenworks/v1/inference.proto` for the ranges.
            ignore_eos: go on to max_tokens.
            slo_class: the promise asked for; empty: the mesh's default.
            workload: a label for who wants what; usage can be grouped by it.
            session_id: turns that share a prefix.
            request_id: idempotency key; made here when empty.
            deadline_s, max_attempts: instead of the client's.

        Raises:
            ValueError: not exactly one of text, token_ids and chat is given.
        """
        given = [
            name for name, prompt in (("text", text), ("token_ids", token_ids), ("chat", chat)) if prompt is not None
        ]
        if len(given) != 1:
            raise ValueError(f"exactly one of text, token_ids and chat is needed, not {', '.join(given) or 'none'}")
        request = wire.GenerateRequest(
            request_id=request_id or new_request_id(),
            model=model,
            sampling=wire.Sampling(
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=seed,
                stop=stop,
                ignore_eos=ignore_eos,
                frequency_penalty=frequency_penalty,
                presence_penalty=presence_penalty,
            ),
            slo_class=slo_class,
            workload=workload,
            session_id=session_id,
        )
        if text is not None:
            request.text = text
        elif token_ids is not None:
            request.token_ids.ids.extend(token_ids)
            request.token_ids.SetInParent()
        elif chat is not None:
            request.chat.messages.extend(wire.ChatMessage(role=turn["role"], content=turn["content"]) for turn in chat)
            request.chat.SetInParent()
        return Generation(
            self._open,
            request,
            RequestTrace(self._tracer, model, request.request_id, max_tokens),
            deadline_s=self._deadline_s if deadline_s is None else deadline_s,
            max_attempts=self._max_attempts if max_attempts is None else max_attempts,
        )

    async def models(self, *, deadline_s: float = 10.0) -> Sequence[wire.Model]:
        """What the mesh serves now. Raises CallError."""
        call = self._router.ListModels(wire.ListModelsRequest(), timeout=deadline_s, metadata=(self._authorization,))
        answer: wire.ListModelsResponse = await _answer(call)
        return answer.models

    async def explain(self, request_id: str, *, deadline_s: float = 10.0) -> wire.Explanation:
        """Why a request of this tenant went where it went: candidates, best first, with their scores in dollars.

        Raises:
            CallError: `reason` "UnknownRequest" when the router no longer remembers it.
        """
        call = self._router.Explain(
            wire.ExplainRequest(request_id=request_id), timeout=deadline_s, metadata=(self._authorization,)
        )
        return await _answer(call)

    async def connected(self, deadline_s: float = 10.0) -> None:
        """Waits until the channel is up. Raises CallError: `reason` "Unreachable"."""
        try:
            async with asyncio.timeout(deadline_s):
                await self._channel.channel_ready()
        except TimeoutError:
            raise CallError(
                "Unreachable",
                f"no router answers at {self.address} within {deadline_s:g} s; is the mesh up?",
                code=grpc.StatusCode.UNAVAILABLE,
            ) from None

    async def close(self) -> None:
        """Closes the channel; streams that still run are cancelled."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _open(self, request: wire.GenerateRequest, traceparent: str, timeout_s: float) -> Any:
        return self._router.Generate(
            request, timeout=timeout_s, metadata=(self._authorization, (TRACEPARENT, traceparent))
        )


async def _answer(call: Awaitable[_Answer]) -> _Answer:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error
