"""Real traffic through a real mesh, exported to a real OTLP receiver, held against the table of edges both ways."""

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import pytest

from services.mesh.conventions import CLIENT_SPAN, EDGES, Edge, Relation, settle_span
from services.mesh.settings import MeshSettings
from services.mesh.subjects import FINISHED, TOKENS
from tests.mesh.conftest import StartMesh
from tests.mesh.local_mesh import DEADLINE_S, MODEL, LocalMesh, simulated
from tests.otlp_receiver import OtlpReceiver, ReceivedSpan

pytestmark = pytest.mark.mesh

_NAMES: Final = frozenset(name for edge in EDGES for _, name in (edge.source, edge.target))


def _general(name: str) -> str:
    """The name as the table spells it: `{model}` for a model's name."""
    for known in _NAMES:
        start, model, end = known.partition("{model}")
        if model and re.fullmatch(f"{re.escape(start)}[^{{}}]+{re.escape(end)}", name):
            return known
    return name


@dataclass(frozen=True, slots=True)
class Seen:
    """The edges between the spans that arrived, by service and by general name."""

    spans: dict[tuple[str, str], ReceivedSpan]

    @classmethod
    def of(cls, spans: Iterable[ReceivedSpan]) -> "Seen":
        return cls({(each.trace, each.span): each for each in spans})

    def edges(self) -> set[Edge]:
        found = set()
        for span in self.spans.values():
            sources = [((span.trace, span.parent), Relation.CHILD), *((link, Relation.LINK) for link in span.links)]
            for source, relation in sources:
                if source in self.spans:
                    found.add(Edge(_node(self.spans[source]), _node(span), relation))
        return found

    def orphans(self) -> list[ReceivedSpan]:
        """Spans whose parent has not arrived."""
        return [each for each in self.spans.values() if each.parent and (each.trace, each.parent) not in self.spans]


def _node(span: ReceivedSpan) -> tuple[str, str]:
    return (span.service, _general(span.name))


async def _traced_mesh(start_mesh: StartMesh, receiver: OtlpReceiver) -> LocalMesh:
    settings = MeshSettings(secret="hush", drain_grace_s=5.0)
    return await start_mesh(simulated("h100-0"), simulated("l4-0", "nvidia-l4"), receiver=receiver, mesh=settings)


async def _generate(mesh: LocalMesh, requests: int, *, direct: bool) -> list[str]:
    """Streams `requests` answers at once from a traced client; their trace ids."""
    async with mesh.client(tracer=mesh.telemetry("client").tracer, direct=direct) as client:

        async def one(number: int) -> str:
            async with client.generate(text=f"river {number}", model=MODEL, max_tokens=12) as stream:
                await stream.text()
            return stream.trace_id

        return await asyncio.gather(*[one(number) for number in range(requests)])


async def test_every_edge_of_the_table_is_seen_and_no_other_crosses_services(
    start_mesh: StartMesh, receiver: OtlpReceiver
) -> None:
    mesh = await _traced_mesh(start_mesh, receiver)

    def missing() -> set[Edge]:
        return set(EDGES) - Seen.of(receiver.spans).edges()

    # A plan that links to this traffic's latencies shapes a later request, so traffic goes on until it has.
    for turn in range(20):
        await _generate(mesh, 4, direct=turn % 2 == 0)
        if await receiver.wait_for(lambda spans: not set(EDGES) - Seen.of(spans).edges(), timeout_s=1.5):
            break
    assert not missing()
    await mesh.stop()  # sends what is buffered
    unknown = {edge for edge in Seen.of(receiver.spans).edges() - set(EDGES) if edge.source[0] != edge.target[0]}
    assert not unknown


@pytest.mark.parametrize("direct", [False, True])
async def test_one_request_is_one_trace_from_client_to_booking(
    start_mesh: StartMesh, receiver: OtlpReceiver, *, direct: bool
) -> None:
    mesh = await _traced_mesh(start_mesh, receiver)
    traces = await _generate(mesh, 3, direct=direct)
    bookings = {("meter", settle_span(TOKENS.template)), ("meter", settle_span(FINISHED.template))}

    def nodes(spans: Iterable[ReceivedSpan], trace: str) -> set[tuple[str, str]]:
        return {_node(each) for each in spans if each.trace == trace}

    assert await receiver.wait_for(
        lambda spans: all(bookings | {("client", CLIENT_SPAN)} <= nodes(spans, each) for each in traces), DEADLINE_S
    )
    await mesh.stop()
    for trace in traces:
        spans = [each for each in receiver.spans if each.trace == trace]
        assert {each.service for each in spans} == {"client", "router", "worker", "meter"}
        roots = [each for each in spans if not each.parent]
        assert [_node(each) for each in roots] == [("client", CLIENT_SPAN)]
        assert not Seen.of(spans).orphans()


async def test_nothing_is_exported_and_requests_keep_their_trace_id_when_no_endpoint_is_set(
    mesh: LocalMesh,
) -> None:
    async with mesh.client() as client:
        async with client.generate(text="river", model=MODEL, max_tokens=4) as stream:
            await stream.text()
        explained = await client.explain(stream.request_id)
    assert not any(part.telemetry.exporting for part in mesh.parts.values())
    assert explained.trace_id == stream.trace_id
