"""What every bus promises, held by the one on NATS (a real server) and by its twin in memory."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from services.mesh import conventions as names
from services.mesh import reading as reading_module
from services.mesh import subjects
from services.mesh.bus import Bus, Delivered, EventId, LeaseHandler, Progress
from services.mesh.codec import decode
from services.mesh.errors import BusUnavailable, OutboxFull, WorkerLost
from services.mesh.events import (
    Control,
    ControlAnswered,
    CreditChanged,
    Drain,
    GapAnswered,
    LeaseAsked,
    LeaseGranted,
    LeaseLine,
    SequenceRange,
    TokensGenerated,
    WorkerHeartbeat,
)
from services.mesh.subjects import ADMITTED, CREDIT, FINISHED, FLEET, LATENCY, TOKENS
from tests.contract.bus_worlds import (
    MemoryWorld,
    NatsWorld,
    Reading,
    World,
    admitted,
    credit,
    eventually,
    eventually_so,
    finished,
    heartbeat,
    latency,
    tokens,
)

CALLERS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ANOTHER = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203332-01"


@pytest.fixture(params=[MemoryWorld, NatsWorld], ids=["memory", "nats"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    made: World = request.param()
    await made.start(tmp_path)
    yield made
    await made.close()


async def test_events_are_numbered_from_one_per_channel_under_their_publisher(world: World) -> None:
    bus = await world.bus("worker", "h100-0")
    ids = [bus.publish(tokens()), bus.publish(tokens()), bus.publish(latency()), bus.publish(tokens())]
    assert [(each.publisher, each.sequence) for each in ids] == [
        ("worker.h100-0.tokens", 1),
        ("worker.h100-0.tokens", 2),
        ("worker.h100-0.latency", 1),
        ("worker.h100-0.tokens", 3),
    ]
    assert len({each.epoch for each in ids}) == 1


async def test_a_restarted_publisher_has_another_epoch(world: World) -> None:
    first, second = await world.bus("worker", "h100-0"), await world.bus("worker", "h100-0")
    assert first.publish(tokens()).epoch != second.publish(tokens()).epoch


async def test_a_durable_reader_gets_everything_in_order_as_it_was_published(world: World) -> None:
    worker, meter = await world.bus("worker"), await world.bus("meter")
    reading = Reading().consume(meter, [TOKENS], "meter", batch=32)
    published = [(worker.publish(tokens(f"r{number}")), f"r{number}") for number in range(500)]
    received = await reading.until(500)
    assert [(each.id, _request_of(each)) for each in received] == published
    assert [each.stream_sequence for each in received] == list(range(1, 501))
    assert all(each.attempt == 1 and each.subject == "tw.tokens.nvidia-h100.h100-0" for each in received)
    assert max(reading.batches) <= 32
    assert received[-1].pending == 0
    assert await worker.flush(5.0) == 0
    await reading.stop()


async def test_a_replay_gives_all_that_the_stream_holds_in_order_and_ends(world: World) -> None:
    worker, meter = await world.bus("worker"), await world.bus("meter")
    reading = Reading().consume(meter, [TOKENS], "meter")
    published = [worker.publish(tokens(f"r{number}")) for number in range(300)]
    await reading.until(300)
    await reading.stop()
    replayed: list[Delivered] = []

    async def note(messages: Sequence[Delivered]) -> None:
        replayed.extend(messages)

    assert await meter.replay([TOKENS], note, batch=64) == 300
    assert [each.id for each in replayed] == published
    assert await meter.replay([ADMITTED, FINISHED], note) == 0


async def test_a_replay_is_of_the_channels_asked_for(world: World) -> None:
    router, meter = await world.bus("router"), await world.bus("meter")
    for number in range(5):
        router.publish(admitted(f"r{number}"))
        router.publish(finished(f"r{number}"))
    assert await router.flush(5.0) == 0
    replayed: list[Delivered] = []

    async def note(messages: Sequence[Delivered]) -> None:
        replayed.extend(messages)

    assert await meter.replay([FINISHED], note) == 5
    assert {type(each.event).__name__ for each in replayed} == {"RequestFinished"}


async def test_a_replay_begins_behind_a_position(world: World) -> None:
    worker = await world.bus("worker")
    published = [worker.publish(tokens()) for _ in range(10)]
    assert await worker.flush(5.0) == 0
    replayed: list[Delivered] = []

    async def note(messages: Sequence[Delivered]) -> None:
        replayed.extend(messages)

    assert await worker.replay([TOKENS], note, after_sequence=7) == 3
    assert [each.id for each in replayed] == published[7:]
    assert await worker.replay([TOKENS], note, after_sequence=10) == 0


async def test_how_far_a_durable_reader_has_acked_is_known_to_all(world: World) -> None:
    worker, meter = await world.bus("worker"), await world.bus("meter")
    assert await meter.progress([TOKENS], "meter") == Progress(acked=0, last=0, left=0)
    reading = Reading().consume(meter, [TOKENS], "meter")
    for _ in range(5):
        worker.publish(tokens())
    await reading.until(5)
    await reading.stop()

    async def all_acked() -> bool:
        return await worker.progress([TOKENS], "meter") == Progress(acked=5, last=5, left=0)

    await eventually_so(all_acked, "everything is acked")
    worker.publish(tokens())
    assert await worker.flush(5.0) == 0
    assert await worker.progress([TOKENS], "meter") == Progress(acked=5, last=6, left=1)


async def test_what_a_stream_has_lost_its_publisher_sends_again(world: World) -> None:
    worker, meter = await world.bus("worker", "h100-0"), await world.bus("meter")
    published = [worker.publish(tokens(f"r{number}")) for number in range(5)]
    assert await worker.flush(5.0) == 0
    for lost in (published[1], published[3]):
        await world.lose(TOKENS, str(lost))
    reading = Reading().consume(meter, [TOKENS], "meter")
    await reading.until(3)
    asked = [SequenceRange(2, 2), SequenceRange(4, 9)]
    answer = await meter.ask_again("worker.h100-0.tokens", published[0].epoch, asked, 5.0)
    assert (answer.sent_ranges, answer.lacking, answer.last) == ((SequenceRange(2, 2), SequenceRange(4, 5)), (), 5)
    received = await reading.until(6)  # one of them for the second time: what is asked for is sent
    assert sorted({(each.id.sequence, _request_of(each)) for each in received}) == [
        (number + 1, f"r{number}") for number in range(5)
    ]
    await reading.stop()


async def test_of_an_earlier_start_a_publisher_has_nothing_and_says_so(world: World) -> None:
    worker, meter = await world.bus("worker", "h100-0"), await world.bus("meter")
    worker.publish(tokens())
    answer = await meter.ask_again("worker.h100-0.tokens", "an earlier one", [SequenceRange(1, 1)], 5.0)
    assert answer == GapAnswered(sent_ranges=(), lacking=(), last=0)


async def test_a_publisher_that_is_gone_gives_no_answer(world: World) -> None:
    meter = await world.bus("meter")
    with pytest.raises(BusUnavailable, match="no answer"):
        await meter.ask_again("worker.h100-0.tokens", "e", [SequenceRange(1, 1)], 0.2)


async def test_what_a_replays_handler_raises_ends_it(world: World) -> None:
    worker = await world.bus("worker")
    worker.publish(tokens())
    assert await worker.flush(5.0) == 0

    async def fail(messages: Sequence[Delivered]) -> None:
        raise KeyError("no such book")

    with pytest.raises(KeyError, match="no such book"):
        await worker.replay([TOKENS], fail)


async def test_a_durable_reader_of_two_channels_gets_both_and_no_other(world: World) -> None:
    router, meter = await world.bus("router"), await world.bus("meter")
    both = Reading().consume(meter, [ADMITTED, FINISHED], "both")
    one = Reading().consume(meter, [FINISHED], "one")
    for number in range(10):
        router.publish(admitted(f"r{number}"))
        router.publish(finished(f"r{number}"))
    kinds = [type(each.event).__name__ for each in await both.until(20)]
    assert kinds.count("RequestAdmitted") == kinds.count("RequestFinished") == 10
    assert {type(each.event).__name__ for each in await one.until(10)} == {"RequestFinished"}
    await both.stop()
    await one.stop()


async def test_a_durable_has_a_plain_name_and_reads_one_stream(world: World) -> None:
    bus = await world.bus("meter")
    for wrong in ([TOKENS, FINISHED], [FLEET], []):
        with pytest.raises(ValueError, match="one stream"):
            await Reading().consume(bus, wrong, "meter").end()
    with pytest.raises(ValueError, match=r"'meter\.books'"):
        await Reading().consume(bus, [TOKENS], "meter.books").end()


async def test_what_a_raising_handler_got_comes_again_and_in_order(world: World) -> None:
    worker, meter = await world.bus("worker"), await world.bus("meter")
    failures = iter([True, True])
    reading = Reading(lambda _: next(failures, False)).consume(meter, [TOKENS], "meter")
    for _ in range(20):
        worker.publish(tokens())
    received = await reading.until(20)
    assert [each.id.sequence for each in received] == list(range(1, 21))
    assert received[0].attempt > 1
    await reading.stop()


async def test_one_message_that_always_fails_does_not_stop_the_others(world: World) -> None:
    worker, meter = await world.bus("worker"), await world.bus("meter")

    def failing(messages: Sequence[Delivered]) -> bool:
        return any(each.id.sequence == 3 for each in messages)

    reading = Reading(failing).consume(meter, [TOKENS], "meter")
    for _ in range(10):
        worker.publish(tokens())
    await reading.until(9)
    assert sorted(reading.sequences) == [1, 2, 4, 5, 6, 7, 8, 9, 10]
    await reading.stop()


async def test_what_fails_alone_again_and_again_is_put_aside_once_others_passed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_module, "RETRY_MOST_S", 0.02)
    monkeypatch.setattr(subjects, "_BY_DURABLE", {"meter": subjects.Consumer("meter", most_attempts=5)})
    worker, meter = await world.bus("worker"), await world.bus("meter")

    def failing(messages: Sequence[Delivered]) -> bool:
        return any(each.id.sequence == 1 for each in messages)

    reading = Reading(failing).consume(meter, [TOKENS], "meter")
    worker.publish(tokens("at-fault"))
    worker.publish(tokens("another"))
    await reading.until(1)

    async def put_aside() -> bool:
        return bool(await world.dead("meter"))

    await eventually_so(put_aside, "it is put aside")
    [(subject, body, reason)] = await world.dead("meter")
    assert (subject, decode(TokensGenerated, body)) == ("tw.tokens.nvidia-h100.h100-0", tokens("at-fault"))
    assert "its reader failed" in reason
    assert "the reader's database is gone" in reason
    await reading.stop()


async def test_while_nothing_is_handled_nothing_is_put_aside(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_module, "RETRY_MOST_S", 0.02)
    monkeypatch.setattr(subjects, "_BY_DURABLE", {"meter": subjects.Consumer("meter", most_attempts=3)})
    worker, meter = await world.bus("worker"), await world.bus("meter")
    attempts = 0

    def failing(messages: Sequence[Delivered]) -> bool:
        nonlocal attempts
        attempts = max(attempts, *(each.attempt for each in messages))
        return attempts < 8

    reading = Reading(failing).consume(meter, [TOKENS], "meter")
    for _ in range(3):
        worker.publish(tokens())
    await reading.until(3)
    assert await world.dead("meter") == []
    await reading.stop()


async def test_a_restarted_reader_goes_on_where_the_last_one_stopped(world: World) -> None:
    worker, meter = await world.bus("worker"), await world.bus("meter")
    first = Reading().consume(meter, [TOKENS], "meter")
    for _ in range(10):
        worker.publish(tokens())
    await first.until(10)
    await first.stop()
    for _ in range(10):
        worker.publish(tokens())
    second = Reading().consume(await world.bus("meter"), [TOKENS], "meter")
    await second.until(10)
    assert [each for each in second.sequences if each > 10] == list(range(11, 21))
    await second.stop()


async def test_what_a_stopped_reader_was_handling_comes_again_at_once(world: World) -> None:
    worker, meter = await world.bus("worker"), await world.bus("meter")
    handling = asyncio.Event()

    async def hang(_: Sequence[Delivered]) -> None:
        handling.set()
        await asyncio.Event().wait()

    stuck = asyncio.create_task(meter.consume([TOKENS], "meter", hang, batch=4))
    for _ in range(10):
        worker.publish(tokens())
    await handling.wait()
    stuck.cancel()
    await asyncio.gather(stuck, return_exceptions=True)
    reading = Reading().consume(meter, [TOKENS], "meter")
    async with asyncio.timeout(5.0):  # well before the server gives up on a reader that was killed
        await reading.until(10)
    assert sorted(reading.sequences) == list(range(1, 11))
    await reading.stop()


async def test_a_full_outbox_refuses_before_it_numbers(world: World) -> None:
    bus = await world.bus("worker", outbox_events=16)
    await world.down()
    accepted = [bus.publish(tokens()) for _ in range(16)]
    assert bus.outbox_free == 0.0
    with pytest.raises(OutboxFull, match=r"'tokens'.*nats\.outbox_events"):
        bus.publish(tokens())
    assert bus.publish(latency()).sequence == 1  # another channel has an outbox of its own
    assert await bus.flush(0.05) == 17
    await world.up()
    assert await bus.flush(15.0) == 0
    assert bus.publish(tokens()).sequence == accepted[-1].sequence + 1


async def test_nothing_is_lost_or_reordered_when_the_server_goes_and_comes_back(world: World) -> None:
    worker, meter = await world.bus("worker"), await world.bus("meter")
    reading = Reading().consume(meter, [TOKENS], "meter", batch=16)
    for _ in range(3):
        for _ in range(300):
            worker.publish(tokens())
        await reading.until(1)
        await world.down()
        for _ in range(50):
            worker.publish(tokens())
        await world.up()
    await eventually(lambda: len(set(reading.sequences)) == 1050, "each of 1,050 events")
    first_time = list(dict.fromkeys(reading.sequences))
    assert first_time == list(range(1, 1051))
    assert await worker.flush(5.0) == 0
    await reading.stop()


async def test_a_memory_streams_readers_go_on_after_a_restart(world: World) -> None:
    worker, router = await world.bus("worker"), await world.bus("router")
    reading = Reading().watch(router, [LATENCY])
    await _watched(reading, lambda: worker.publish(latency()))
    await world.down()
    await world.up()
    await _watched(reading, lambda: worker.publish(latency()))
    assert await worker.flush(10.0) == 0
    await reading.stop()


async def test_the_same_event_stored_twice_has_the_same_id(world: World) -> None:
    meter = await world.bus("meter")
    worker = await world.bus("worker")
    event_id = worker.publish(tokens())
    assert await worker.flush(5.0) == 0
    [headers] = await world.headers_on(TOKENS)
    assert EventId.parse(headers["Nats-Msg-Id"]) == event_id
    reading = Reading().consume(meter, [TOKENS], "meter")
    [delivered] = await reading.until(1)
    # Sent again, as after a lost acknowledgement: the server knows it.
    await world.put(delivered.subject, headers, b"whatever")
    worker.publish(tokens())
    await reading.until(2)
    assert reading.sequences == [1, 2]
    await reading.stop()


async def test_a_watch_starts_with_what_stands_and_goes_on_with_what_is_new(world: World) -> None:
    meter, router = await world.bus("meter"), await world.bus("router")
    for remaining in (90, 80, 70):
        meter.publish(credit("acme", remaining))
    meter.publish(credit("umbra", 10))
    assert await meter.flush(5.0) == 0
    reading = Reading().watch(router, [CREDIT])
    standing = [each.event for each in await reading.until(2)]
    assert [(each.tenant, each.remaining_nusd) for each in standing if isinstance(each, CreditChanged)] == [
        ("acme", 70),
        ("umbra", 10),
    ]
    meter.publish(credit("acme", 60))
    latest = (await reading.until(3))[2].event
    assert isinstance(latest, CreditChanged)
    assert latest.remaining_nusd == 60
    await reading.stop()


async def test_a_watch_of_facts_gets_only_what_is_new(world: World) -> None:
    worker, optimizer = await world.bus("worker"), await world.bus("optimizer")
    worker.publish(tokens("old"))
    assert await worker.flush(5.0) == 0
    reading = Reading().watch(optimizer, [TOKENS, LATENCY])
    await _watched(reading, lambda: worker.publish(tokens("new")))
    assert {_request_of(each) for each in reading.received} == {"new"}
    await reading.stop()


async def test_a_watch_survives_its_handler(world: World) -> None:
    worker, router = await world.bus("worker"), await world.bus("router")
    failures = iter([True])
    reading = Reading(lambda _: next(failures, False)).watch(router, [TOKENS])
    await _watched(reading, lambda: worker.publish(tokens()))
    await reading.stop()


async def test_heartbeats_reach_who_watches_and_wait_for_nobody(world: World) -> None:
    worker, router = await world.bus("worker"), await world.bus("router")
    sent = [worker.publish(heartbeat("h100-0", 1)).sequence]
    assert worker.outbox_free == 1.0
    worker.publish(tokens())
    assert await worker.flush(10.0) == 0  # so the heartbeat has left too, and found nobody
    reading = Reading().watch(router, [FLEET])
    await _watched(reading, lambda: sent.append(worker.publish(heartbeat("h100-0", len(sent))).sequence))
    assert 1 not in reading.sequences
    assert sent == list(range(1, len(sent) + 1))
    event = reading.received[0].event
    assert isinstance(event, WorkerHeartbeat)
    assert event.models == ("m",)
    await reading.stop()


async def test_heartbeats_from_while_the_server_was_away_are_not_sent_late(world: World) -> None:
    worker, router = await world.bus("worker"), await world.bus("router")
    reading = Reading().watch(router, [FLEET])
    await _watched(reading, lambda: worker.publish(heartbeat("h100-0", 1)))
    await world.down()
    stale = [worker.publish(heartbeat("h100-0", 2)).sequence for _ in range(100)]
    worker.publish(tokens())
    await world.up()
    assert await worker.flush(10.0) == 0  # it is back
    before = len(reading.received)
    await _watched(reading, lambda: worker.publish(heartbeat("h100-0", 3)))
    late = [each.id.sequence for each in reading.received[before:] if each.id.sequence in stale]
    # Those that were on their way to the server when it went may be lost or sent; none that came after.
    assert late == []
    await reading.stop()


@pytest.mark.parametrize(
    ("headers", "body", "reason"),
    [
        ({"Nats-Msg-Id": "p:e:1"}, b"\xff\xff\xff", r"3 bytes are no TokensGenerated"),
        ({"Nats-Msg-Id": "p:e:1"}, b"", r"empty body is no TokensGenerated"),
        ({"Nats-Msg-Id": "p:e:1"}, b"\x0a\x01w", r"belongs on 'tw\.tokens\.~\.w', it came on 'tw\.tokens\.p\.w'"),
        ({}, b"\x0a\x01w\x12\x01p", r"'' is not an event id"),
        ({"Nats-Msg-Id": "p:e:zero"}, b"\x0a\x01w\x12\x01p", r"'p:e:zero' is not an event id"),
    ],
    ids=["garbage", "empty", "astray", "nameless", "unnumbered"],
)
async def test_what_cannot_be_decoded_is_put_aside_with_the_reason(
    world: World, headers: dict[str, str], body: bytes, reason: str
) -> None:
    worker, meter = await world.bus("worker"), await world.bus("meter")
    await world.put("tw.tokens.p.w", headers, body)
    worker.publish(tokens())
    reading = Reading().consume(meter, [TOKENS], "meter-books")
    await reading.until(1)
    [(subject, kept, said)] = await world.dead("meter-books")
    assert (subject, kept) == ("tw.tokens.p.w", body)
    assert re.search(reason, said), said
    await reading.stop()


async def test_a_watch_passes_over_what_cannot_be_decoded(world: World) -> None:
    worker, router = await world.bus("worker"), await world.bus("router")
    reading = Reading().watch(router, [TOKENS])
    await _watched(reading, lambda: worker.publish(tokens()))
    await world.put("tw.tokens.p.w", {"Nats-Msg-Id": "p:e:1"}, b"\xff")
    await _watched(reading, lambda: worker.publish(tokens()))
    await reading.stop()


async def test_a_drain_request_is_answered_by_the_worker_it_names(world: World) -> None:
    worker, other, router = await world.bus("worker", "a"), await world.bus("worker", "b"), await world.bus("router")
    asked: list[Control] = []

    async def accept(control: Control) -> ControlAnswered:
        asked.append(control)
        return ControlAnswered(accepted=True, message="draining")

    async def refuse(_: Control) -> ControlAnswered:
        return ControlAnswered(accepted=False, message="")

    serving = [
        asyncio.create_task(worker.serve_control("a", accept)),
        asyncio.create_task(other.serve_control("b", refuse)),
    ]
    answered = await _answer(router, "a")
    assert (answered.accepted, answered.message) == (True, "draining")
    assert asked == [Drain(grace_ms=1500)]
    assert await _answer(router, "b") == ControlAnswered(accepted=False, message="")
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving, return_exceptions=True)


async def test_a_worker_that_fails_on_a_drain_request_says_so(world: World) -> None:
    worker, router = await world.bus("worker"), await world.bus("router")

    async def fail(_: Control) -> ControlAnswered:
        raise RuntimeError("no engine")

    serving = asyncio.create_task(worker.serve_control("a", fail))
    assert await _answer(router, "a") == ControlAnswered(accepted=False, message="RuntimeError: no engine")
    serving.cancel()


async def test_a_drain_request_that_nobody_answers_is_a_lost_worker(world: World) -> None:
    router, worker = await world.bus("router"), await world.bus("worker")
    with pytest.raises(WorkerLost, match="'nobody'"):
        await router.request_control("nobody", Drain(grace_ms=0), 0.5)

    heard = asyncio.Event()

    async def hang(_: Control) -> ControlAnswered:
        heard.set()
        await asyncio.Event().wait()
        raise AssertionError

    serving = asyncio.create_task(worker.serve_control("a", hang))
    while not heard.is_set():
        with pytest.raises(WorkerLost, match="'a'"):
            await router.request_control("a", Drain(grace_ms=0), 0.2)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_every_message_carries_its_identity_its_kind_and_its_trace(world: World) -> None:
    bus = await world.bus("router", "router-0")
    event_id = bus.publish(finished("r"), traceparent=CALLERS)
    assert await bus.flush(5.0) == 0
    [headers] = await world.headers_on(FINISHED)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", headers["ce-time"])
    assert {key: value for key, value in headers.items() if key != "ce-time"} == {
        "Nats-Msg-Id": str(event_id),
        "ce-id": str(event_id),
        "ce-source": "/tokenworks/router/router-0",
        "ce-type": "tokenworks.v1.RequestFinished",
        "ce-specversion": "1.0",
        "content-type": "application/protobuf",
        "traceparent": CALLERS,
    }


async def test_a_publish_is_a_span_of_the_callers_trace_and_the_message_carries_it_on(world: World) -> None:
    exporter = InMemorySpanExporter()
    worker, meter = await world.bus("worker", exporter=exporter), await world.bus("meter")
    reading = Reading().consume(meter, [TOKENS], "meter")
    event_id = worker.publish(tokens(traceparent=ANOTHER), traceparent=CALLERS)
    worker.publish(heartbeat("h100-0", 1))
    [delivered] = await reading.until(1)
    assert await worker.flush(5.0) == 0
    await world.close()
    [span] = exporter.get_finished_spans()
    assert (span.name, span.kind) == ("publish tw.tokens.{pool}.{worker}", SpanKind.PRODUCER)
    assert span.context is not None
    assert span.parent is not None
    assert f"00-{span.context.trace_id:032x}-{span.parent.span_id:016x}-01" == CALLERS
    assert delivered.traceparent == f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01"
    assert [f"00-{link.context.trace_id:032x}-{link.context.span_id:016x}-01" for link in span.links] == [ANOTHER]
    assert dict(span.attributes or {}) == {
        names.MESSAGING_SYSTEM: "nats",
        names.MESSAGING_OPERATION_NAME: "publish",
        names.MESSAGING_OPERATION_TYPE: "send",
        names.MESSAGING_DESTINATION: "tw.tokens.nvidia-h100.h100-0",
        names.MESSAGING_DESTINATION_TEMPLATE: "tw.tokens.{pool}.{worker}",
        names.MESSAGING_MESSAGE_ID: str(event_id),
        names.MESSAGING_BATCH_COUNT: 1,
    }


async def test_an_event_too_large_for_a_message_is_refused_before_it_is_numbered(world: World) -> None:
    bus = await world.bus("worker")
    with pytest.raises(ValueError, match="in parts of 1000000"):
        bus.publish(tokens("r" * 1_000_001))
    assert bus.publish(tokens()).sequence == 1


async def test_a_bus_without_a_server_does_not_connect(world: World) -> None:
    await world.down()
    with pytest.raises(BusUnavailable):
        await world.bus("worker")


async def test_reading_ends_when_the_bus_is_closed(world: World) -> None:
    worker, meter = await world.bus("worker"), await world.bus("meter")
    consuming, watching = Reading().consume(meter, [TOKENS], "meter"), Reading().watch(meter, [TOKENS, FLEET])
    await _watched(watching, lambda: worker.publish(tokens()))
    await consuming.until(1)
    await meter.close()
    for reading in (consuming, watching):
        await reading.end()


def _request_of(message: Delivered) -> str:
    assert isinstance(message.event, TokensGenerated)
    return message.event.entries[0].request_id


async def _watched(reading: Reading, publish: Callable[[], object]) -> None:
    """Publishes until the watch, which may only just have started, sees one more."""
    before = len(reading.received)
    async with asyncio.timeout(15.0):
        while len(reading.received) == before:
            publish()
            await asyncio.sleep(0.01)


async def _answer(bus: Bus, worker: str) -> ControlAnswered:
    """The answer of a worker that may only just have begun to listen."""
    async with asyncio.timeout(15.0):
        while True:
            try:
                return await bus.request_control(worker, Drain(grace_ms=1500), 5.0)
            except WorkerLost:
                await asyncio.sleep(0.01)


async def test_requests_for_credit_are_answered_one_by_one_whatever_became_of_the_others(world: World) -> None:
    meter, router = await world.bus("meter"), await world.bus("router")

    async def grant(asked: Sequence[LeaseAsked]) -> list[LeaseGranted]:
        if any(each.holder == "trouble" for each in asked):
            raise RuntimeError("no books")
        return [LeaseGranted(refused=each.holder, ttl_ms=len(each.lines), grants=()) for each in asked]

    with pytest.raises(BusUnavailable, match="router-0"):
        await router.ask_lease(LeaseAsked(holder="router-0", epoch="1", lines=()), 0.2)
    serving = asyncio.create_task(meter.serve_leases(grant))
    line = LeaseLine(budget=1, subject="", window=0, granted=5, returned=0, idle=5, least=0, want=9)
    answer = None
    async with asyncio.timeout(10):
        while answer is None:
            with suppress(BusUnavailable):
                answer = await router.ask_lease(LeaseAsked(holder="router-0", epoch="1", lines=(line,)), 0.2)
    assert answer == LeaseGranted(refused="router-0", ttl_ms=1, grants=())
    with pytest.raises(BusUnavailable, match="trouble"):
        await router.ask_lease(LeaseAsked(holder="trouble", epoch="1", lines=()), 0.2)
    assert (await router.ask_lease(LeaseAsked(holder="router-1", epoch="1", lines=()), 1.0)).refused == "router-1"
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_credit_is_asked_of_the_meter_that_books_the_partition(world: World) -> None:
    one, other, router = await world.bus("meter"), await world.bus("meter"), await world.bus("router")

    def named(name: str) -> LeaseHandler:
        async def grant(asked: Sequence[LeaseAsked]) -> list[LeaseGranted]:
            return [LeaseGranted(refused=name, ttl_ms=0, grants=()) for _ in asked]

        return grant

    serving = [
        asyncio.create_task(one.serve_leases(named("one"), {0, 1})),
        asyncio.create_task(other.serve_leases(named("other"), {2})),
    ]
    said: dict[int, str] = {}
    async with asyncio.timeout(15):
        while len(said) < 3:
            for partition in range(3):
                with suppress(BusUnavailable):
                    word = LeaseAsked(holder="router-0", epoch="1", lines=())
                    said[partition] = (await router.ask_lease(word, 0.2, partition=partition)).refused
    assert said == {0: "one", 1: "one", 2: "other"}
    with pytest.raises(BusUnavailable):
        await router.ask_lease(LeaseAsked(holder="router-0", epoch="1", lines=()), 0.2, partition=3)
    for each in serving:
        each.cancel()
    await asyncio.gather(*serving, return_exceptions=True)


async def test_a_new_durable_reader_begins_where_it_is_told_and_then_keeps_its_place(world: World) -> None:
    worker, meter = await world.bus("worker"), await world.bus("meter")
    for number in range(6):
        worker.publish(tokens(f"r{number}"))
    assert await worker.flush(10.0) == 0
    first = Reading().consume(meter, [TOKENS], "meter-1", after_sequence=3)
    assert [each.stream_sequence for each in await first.until(3)] == [4, 5, 6]

    async def acked() -> bool:
        return (await meter.progress([TOKENS], "meter-1")).acked == 6

    await eventually_so(acked, "all is acked")
    await first.stop()
    worker.publish(tokens("r6"))
    again = Reading().consume(meter, [TOKENS], "meter-1", after_sequence=1)
    assert [each.stream_sequence for each in await again.until(1)] == [7]
    await again.stop()
