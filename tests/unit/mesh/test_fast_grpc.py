"""What the fast gRPC server promises beyond what both promise: pushes, room, and an unbroken life under bad bytes."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import pytest

from services.mesh.errors import PeerError, QueueFull, RequestTimedOut
from services.mesh.fast_grpc import FastGrpcServer
from services.mesh.grpc_call import ServerCall
from services.mesh.grpc_stream import GrpcStream
from services.mesh.lifecycle import Lifecycle
from services.mesh.telemetry import start_telemetry

LIMIT_BYTES: Final = 1 << 20
DEADLINE_S: Final = 20.0


class Echo:
    """Methods of every shape; bytes in, bytes out."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.calls: asyncio.Queue[ServerCall] = asyncio.Queue()
        self.go_on = asyncio.Event()

    async def once(self, request: bytes, call: ServerCall) -> bytes:
        call.set_trailing_metadata((("seen-bin", b"\x00\x01"), ("peer", call.peer())))
        return request

    async def fail(self, request: bytes, call: ServerCall) -> bytes:
        raise QueueFull("100 % full: \u65e5\u672c", retry_after_s=2)

    async def each(self, requests: AsyncIterator[bytes], call: ServerCall) -> AsyncIterator[bytes]:
        call.open()
        async for request in requests:
            yield request

    async def count(self, requests: AsyncIterator[bytes], call: ServerCall) -> bytes:
        return b"%d" % len([request async for request in requests])

    async def wait(self, request: bytes, call: ServerCall) -> None:
        call.open()
        self.calls.put_nowait(call)
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def next_call(self) -> ServerCall:
        """The next call of `Wait`."""
        return await asyncio.wait_for(self.calls.get(), DEADLINE_S)

    def handlers(self) -> dict[str, Any]:
        return {
            "Once": grpc.unary_unary_rpc_method_handler(self.once),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "Each": grpc.stream_stream_rpc_method_handler(self.each),
            "Count": grpc.stream_unary_rpc_method_handler(self.count),
            "Wait": grpc.unary_stream_rpc_method_handler(self.wait),
        }


@pytest.fixture
async def echo() -> Echo:
    return Echo()


@pytest.fixture
async def server(echo: Echo) -> AsyncIterator[FastGrpcServer]:
    telemetry = start_telemetry("router", "router-0")
    server = FastGrpcServer(telemetry, Lifecycle("router"), max_message_bytes=LIMIT_BYTES)
    server.add_generic("test.Echo", echo.handlers())
    await server.start("127.0.0.1", 0)
    yield server
    await server.drain(0)
    assert not server.connections or all(each.tasks() == [] for each in server.connections)
    telemetry.shutdown()


@pytest.fixture
async def channel(server: FastGrpcServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


async def eventually(event: asyncio.Event) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await event.wait()


async def test_every_shape_of_method_works_with_grpcios_client(channel: grpc.aio.Channel) -> None:
    once: Any = channel.unary_unary("/test.Echo/Once")(b"x" * 200_000, timeout=DEADLINE_S)
    assert await once == b"x" * 200_000
    trailing = dict(await once.trailing_metadata())
    assert trailing["seen-bin"] == b"\x00\x01"
    assert trailing["peer"].startswith("ipv4:127.0.0.1:")

    async def requests() -> AsyncIterator[bytes]:
        for index in range(100):
            yield b"%d" % index

    each: Any = channel.stream_stream("/test.Echo/Each")(requests(), timeout=DEADLINE_S)
    assert [message async for message in each] == [b"%d" % index for index in range(100)]
    assert await channel.stream_unary("/test.Echo/Count")(requests(), timeout=DEADLINE_S) == b"100"


async def test_requests_may_be_compressed(server: FastGrpcServer) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", compression=grpc.Compression.Gzip) as channel:
        call = channel.unary_unary("/test.Echo/Once")
        assert await call(b"y" * 100_000, timeout=DEADLINE_S) == b"y" * 100_000
        with pytest.raises(grpc.aio.AioRpcError) as caught:  # small on the wire, not inflated
            await call(b"y" * (LIMIT_BYTES + 1), timeout=DEADLINE_S)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_what_is_wrong_with_a_call_is_in_its_status(channel: grpc.aio.Channel) -> None:
    async def status(method: str, request: bytes = b"") -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(method)(request, timeout=DEADLINE_S)
        return caught.value.code(), caught.value.details() or ""

    assert await status("/test.Echo/Fail") == (grpc.StatusCode.RESOURCE_EXHAUSTED, "100 % full: \u65e5\u672c")
    assert (await status("/test.Echo/None"))[0] is grpc.StatusCode.UNIMPLEMENTED
    code, details = await status("/test.Echo/Once", b"x" * (LIMIT_BYTES + 1))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(LIMIT_BYTES + 1) in details


async def test_messages_past_the_first_are_gathered_and_leave_with_the_end(echo: Echo) -> None:
    telemetry = start_telemetry("router", "router-0")
    server = FastGrpcServer(telemetry, Lifecycle("router"), max_message_bytes=LIMIT_BYTES, gather_s=3600)
    server.add_generic("test.Echo", echo.handlers())
    await server.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stream: Any = channel.unary_stream("/test.Echo/Wait")(b"", timeout=DEADLINE_S)
        call = await echo.next_call()
        assert call.push(b"first")
        assert await stream.read() == b"first"
        assert call.push(b"second")
        assert call.push(b"third")
        (connection,) = server.connections
        assert connection.h2.queued_body_size() > 0
        echo.go_on.set()
        assert [await stream.read(), await stream.read(), await stream.read()] == [b"second", b"third", grpc.aio.EOF]
    await server.drain(0)
    telemetry.shutdown()


async def test_what_is_gathered_leaves_in_time(echo: Echo) -> None:
    telemetry = start_telemetry("router", "router-0")
    server = FastGrpcServer(telemetry, Lifecycle("router"), max_message_bytes=LIMIT_BYTES, gather_s=0.01)
    server.add_generic("test.Echo", echo.handlers())
    await server.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stream: Any = channel.unary_stream("/test.Echo/Wait")(b"", timeout=DEADLINE_S)
        call = await echo.next_call()
        sent = [b"%d" % number for number in range(5)]
        assert all(map(call.push, sent))
        assert [await stream.read() for _ in sent] == sent
        stream.cancel()
    await server.drain(0)
    telemetry.shutdown()


@pytest.mark.parametrize("value", ["Bearer key ", "Bearer ", " Bearer key"])
async def test_a_header_with_a_blank_at_an_end_is_the_callers_error(channel: grpc.aio.Channel, value: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/test.Echo/Once")(b"", metadata=(("authorization", value),), timeout=DEADLINE_S)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "a blank" in (caught.value.details() or "")
    again = channel.unary_unary("/test.Echo/Once")(
        b"x", metadata=(("authorization", "Bearer key"),), timeout=DEADLINE_S
    )
    assert await again == b"x"


async def test_headers_without_measure_end_their_own_connection_only(
    server: FastGrpcServer, channel: grpc.aio.Channel, echo: Echo
) -> None:
    beside: Any = channel.unary_stream("/test.Echo/Wait")(b"", timeout=DEADLINE_S)
    await echo.next_call()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.use_local_subchannel_pool", 1)]) as other:
        once = other.unary_unary("/test.Echo/Once")
        assert await once(b"x", metadata=(("authorization", "x" * 60_000),), timeout=DEADLINE_S) == b"x"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await once(b"x", metadata=(("authorization", "x" * 70_000),), timeout=DEADLINE_S)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert await once(b"y", timeout=DEADLINE_S, wait_for_ready=True) == b"y"
    assert not beside.done()
    beside.cancel()


async def test_a_path_that_is_no_text_ends_nothing(server: FastGrpcServer, channel: grpc.aio.Channel) -> None:
    # grpcio's own server stops taking calls for good at such a path.
    literal = b"".join(
        b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value
        for name, value in (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/\xf8"),
            (b":authority", b"x"),
            (b"content-type", b"application/grpc"),
        )
    )
    frames = b"\0\0\0\x04\0\0\0\0\0" + bytes((0, 0, len(literal), 1, 5, 0, 0, 0, 1)) + literal
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frames)
    assert await asyncio.wait_for(reader.read(9), DEADLINE_S)
    assert await channel.unary_unary("/test.Echo/Once")(b"x", timeout=DEADLINE_S) == b"x"
    writer.close()


@pytest.mark.parametrize("address", ["", "no port", "127.0.0.1:", "127.0.0.1:99999999", "\0:1", "x" * 300 + ":1"])
async def test_an_address_that_is_none_is_a_connection_that_fails(address: str) -> None:
    with pytest.raises(OSError, match=r"."):
        await GrpcStream.connect(address, "/test.Echo/Each", (), lambda _: None, limit_bytes=100)


async def test_a_deadline_and_a_client_that_leaves_cancel_the_handler(channel: grpc.aio.Channel, echo: Echo) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_stream("/test.Echo/Wait")(b"", timeout=0.2).read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(echo.cancelled)
    echo.cancelled.clear()
    await echo.next_call()
    call: Any = channel.unary_stream("/test.Echo/Wait")(b"")
    served = await echo.next_call()
    call.cancel()
    await eventually(echo.cancelled)
    assert served.push(b"too late") is False


async def test_a_deadline_holds_though_the_client_does_not_mind_it(server: FastGrpcServer) -> None:
    got: list[bytes] = []
    address = f"127.0.0.1:{server.port}"
    stream = await GrpcStream.connect(
        address, "/test.Echo/Each", (("grpc-timeout", "300m"),), got.append, limit_bytes=100
    )
    stream.send(b"hello")
    error = await asyncio.wait_for(stream.ended(), DEADLINE_S)
    assert isinstance(error, RequestTimedOut)
    assert "it gave 0.3 s" in str(error)
    assert got == [b"hello"]
    stream.close()


async def test_a_peer_to_which_something_is_always_on_its_way_is_not_taken_for_one_that_takes_nothing(
    server: FastGrpcServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.mesh.grpc_stream._TAKES_S", 0.002)
    got: list[bytes] = []
    came = asyncio.Event()

    def take(message: bytes) -> None:
        got.append(message)
        came.set()

    stream = await GrpcStream.connect(f"127.0.0.1:{server.port}", "/test.Echo/Each", (), take, limit_bytes=100)
    looked_until_s = asyncio.get_running_loop().time() + 0.1
    said = 0
    while asyncio.get_running_loop().time() < looked_until_s:  # many looks, at each of which something waits
        stream.send(b"word")
        said += 1
        await asyncio.sleep(0)
    async with asyncio.timeout(DEADLINE_S):
        while len(got) < said:
            came.clear()
            await came.wait()
    assert not stream.lost
    assert got == [b"word"] * said
    stream.close()


async def test_a_call_that_is_refused_is_told_why_to_a_stream(server: FastGrpcServer) -> None:
    address = f"127.0.0.1:{server.port}"
    with pytest.raises(PeerError, match="there is no method"):
        await GrpcStream.connect(address, "/test.Echo/None", (), lambda _: None, limit_bytes=100)
    with pytest.raises(ConnectionRefusedError):
        await GrpcStream.connect("127.0.0.1:1", "/test.Echo/None", (), lambda _: None, limit_bytes=100)


async def test_pushes_stop_when_the_client_does_not_read_and_go_on_when_it_does(
    channel: grpc.aio.Channel, echo: Echo
) -> None:
    call: Any = channel.unary_stream("/test.Echo/Wait")(b"", timeout=DEADLINE_S)
    served = await echo.next_call()
    room, message, pushed, read = asyncio.Event(), b"z" * 10_000, 0, 0
    for _ in range(3):  # fills up, is read empty, and again
        before = pushed
        while served.push(message):
            pushed += 1
            assert (pushed - read) * len(message) < 32 << 20, "it takes everything"
            if pushed % 10 == 0:
                await asyncio.sleep(0)
        assert pushed > before
        room.clear()
        served.tell_of_room(room.set)
        while read < pushed:
            assert await call.read() == message
            read += 1
        await eventually(room)
    echo.go_on.set()
    assert await call.read() is grpc.aio.EOF


async def test_running_calls_end_within_the_grace_and_new_ones_are_turned_away(
    server: FastGrpcServer, channel: grpc.aio.Channel, echo: Echo
) -> None:
    call: Any = channel.unary_stream("/test.Echo/Wait")(b"", timeout=DEADLINE_S)
    served = await echo.next_call()
    draining = asyncio.create_task(server.drain(DEADLINE_S))
    await asyncio.sleep(0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/test.Echo/Once")(b"", timeout=2)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    served.push(b"last")
    echo.go_on.set()
    assert [message async for message in call] == [b"last"]
    await draining


async def test_what_outlasts_the_grace_is_cut_off_with_a_status(
    server: FastGrpcServer, channel: grpc.aio.Channel, echo: Echo
) -> None:
    call: Any = channel.unary_stream("/test.Echo/Wait")(b"", timeout=DEADLINE_S)
    await echo.next_call()
    await server.drain(0.05)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_small_messages_leave_at_once(server: FastGrpcServer, channel: grpc.aio.Channel) -> None:
    await channel.unary_unary("/test.Echo/Once")(b"", timeout=DEADLINE_S)
    for connection in server.connections:
        raw = connection._transport.get_extra_info("socket")
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS: Final = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
SEEDS: Final = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    PREFACE,
    PREFACE + SETTINGS,
    PREFACE + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    PREFACE + SETTINGS + b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00",  # a window update of 0
    PREFACE + SETTINGS + b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + b"p" * 8,
    PREFACE + SETTINGS + b"\x00\x00\x05\x00\x01\x00\x00\x00\x01" + b"\x00" * 5,  # DATA on an idle stream
    PREFACE + SETTINGS + b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\x82",  # a request without its headers
)


async def test_bad_bytes_end_their_connection_and_nothing_else(
    server: FastGrpcServer, channel: grpc.aio.Channel
) -> None:
    chance = random.Random(7)
    good = await _recorded_request(server)

    async def send(data: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            writer.write(data)
            if writer.can_write_eof():
                writer.write_eof()
            async with asyncio.timeout(DEADLINE_S):
                while await reader.read(65536):
                    pass
        except OSError:
            pass
        finally:
            writer.close()

    for _ in range(60):
        mangled = bytearray(chance.choice((*SEEDS, good, good, good)))
        for _ in range(chance.randint(0, 6)):
            mangled[chance.randrange(len(mangled))] = chance.randrange(256)
        if chance.random() < 0.3:
            mangled += chance.randbytes(chance.randint(1, 200))
        await send(bytes(mangled))
    assert await channel.unary_unary("/test.Echo/Once")(b"fine", timeout=DEADLINE_S) == b"fine"


async def _recorded_request(server: FastGrpcServer) -> bytes:
    """What grpcio's client sends for one call, as one piece."""
    recorded = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", server.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, keep: bytearray | None) -> None:
            while data := await source.read(65536):
                if keep is not None:
                    keep += data
                sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, back, recorded), pump(there, writer, None), return_exceptions=True)

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.unary_unary("/test.Echo/Once")(b"hello", timeout=DEADLINE_S)
    proxy.close()
    await proxy.wait_closed()
    return bytes(recorded)
