"""Placements, as any client of the protos asks for them and uses them: for one request, at one worker, once."""

from pathlib import Path
from typing import Any, Final

import grpc
import jwt
import pytest

from services.mesh.clock import SystemClock
from services.mesh.placement import METADATA_KEY, PlacementClaims, PlacementSigner
from services.mesh.pricing import Rates
from services.mesh.rpc import error_of
from services.mesh.settings import MeshSettings
from services.router.core import open_placements
from tests.mesh.conftest import StartMesh
from tests.mesh.local_mesh import DEADLINE_S, MODEL, LocalMesh, eventually, simulated
from tests.mesh.running_worker import running_worker
from tokenworks.v1 import inference_pb2 as wire
from tokenworks.v1 import inference_pb2_grpc

pytestmark = pytest.mark.mesh

SECRET: Final = "hush"


@pytest.fixture
async def mesh(start_mesh: StartMesh) -> LocalMesh:
    settings = MeshSettings(secret=SECRET, drain_grace_s=5.0)
    return await start_mesh(simulated("h100-0"), simulated("h100-1"), mesh=settings)


class Placer:
    """The router's Place, called as any gRPC client does."""

    def __init__(self, mesh: LocalMesh) -> None:
        self._router: Any = inference_pb2_grpc.RouterStub(mesh.channel("router"))  # type: ignore[no-untyped-call]
        self._metadata = (("authorization", f"Bearer {mesh.key}"),)
        self._mesh = mesh

    async def place(self, **changes: Any) -> wire.Placement:
        request = wire.GenerateRequest(
            **{"model": MODEL, "text": "river", "sampling": wire.Sampling(max_tokens=4, ignore_eos=True), **changes}
        )
        placement: wire.Placement = await self._router.Place(request, timeout=DEADLINE_S, metadata=self._metadata)
        return placement

    async def refusal(self, **changes: Any) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.place(**changes)
        return error_of(caught.value).reason

    async def stream(self, placement: wire.Placement, worker: str = "", **changes: Any) -> list[wire.GenerateResponse]:
        """Streams from the placement's worker, or from another."""
        stub: Any = inference_pb2_grpc.WorkerStub(self._mesh.channel(worker or placement.worker))  # type: ignore[no-untyped-call]
        request = wire.GenerateRequest(
            **{"text": "river", "sampling": wire.Sampling(max_tokens=4, ignore_eos=True), **changes}
        )
        call = stub.Generate(request, metadata=((METADATA_KEY, placement.token),), timeout=DEADLINE_S)
        return [message async for message in call]

    async def stream_refusal(self, placement: wire.Placement, worker: str = "", **changes: Any) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.stream(placement, worker, **changes)
        return error_of(caught.value).reason


async def test_placement_is_good_for_its_request_at_its_worker_once(mesh: LocalMesh) -> None:
    placer = Placer(mesh)
    placement = await placer.place(request_id="mine", slo_class="batch")
    assert (placement.request_id, placement.slo_class, placement.model) == ("mine", "batch", MODEL)
    assert placement.address == mesh.parts[placement.worker].address
    assert placement.accelerator == "nvidia-h100-sxm"
    other = next(each for each in ("h100-0", "h100-1") if each != placement.worker)
    assert await placer.stream_refusal(placement, other) == "PlacementRefused"
    messages = await placer.stream(placement, request_id="mine")
    assert sum(each.token_count for each in messages) == 4
    assert messages[-1].finish.price_nusd > 0
    assert await placer.stream_refusal(placement) == "PlacementRefused"
    forged = wire.Placement(worker=placement.worker, token=placement.token[:-4] + "AAAA")
    assert await placer.stream_refusal(forged) == "PlacementRefused"
    await mesh.settled(1)
    assert (await mesh.bill("mine")).slo_class == "batch"


async def test_placement_says_when_its_caller_s_deadline_is(mesh: LocalMesh) -> None:
    placer = Placer(mesh)
    for deadline_ms, until in ((600_000, True), (0, False)):
        placement = await placer.place(deadline_ms=deadline_ms)
        said = jwt.decode(placement.token, options={"verify_signature": False})
        assert ("until" in said) == until
        if until:
            assert abs(said["until"] - SystemClock().unix_ms() - deadline_ms) < 300_000


async def test_client_cannot_stretch_its_placement(mesh: LocalMesh) -> None:
    placer = Placer(mesh)
    messages = await placer.stream(await placer.place(), sampling=wire.Sampling(max_tokens=900, ignore_eos=True))
    assert sum(each.token_count for each in messages) == 4
    for changes in ({"request_id": "other"}, {"model": "other"}, {"resume_from": 2}):
        assert await placer.stream_refusal(await placer.place(), **changes) == "InvalidRequest"


async def test_same_request_is_placed_again_only_to_go_on(mesh: LocalMesh) -> None:
    placer = Placer(mesh)
    placement = await placer.place(request_id="mine")
    assert await placer.refusal(request_id="mine") == "DuplicateRequest"
    await placer.place(request_id="mine", place_lost=True)
    elsewhere = await placer.place(request_id="mine", avoid_workers=[placement.worker])
    assert elsewhere.worker != placement.worker
    await placer.place(request_id="mine", resume_from=1, resumed_text="w")
    assert await placer.refusal(request_id="mine", resume_from=2) == "ResumeRefused"
    wrong = wire.TokenIds(ids=[1])
    assert await placer.refusal(request_id="mine", resume_from=2, resumed_token_ids=wrong) == "ResumeRefused"
    guided = {"resume_from": 1, "resumed_text": "w", "response_format_json": '{"type": "json_object"}'}
    assert await placer.refusal(request_id="mine", **guided) == "ResumeRefused"
    for _ in range(5):
        await placer.place(request_id="mine", resume_from=1, resumed_text="w")
    assert await placer.refusal(request_id="mine", resume_from=1, resumed_text="w") == "ResumeRefused"


async def test_unclaimed_placement_is_forgotten_and_counts_for_nothing(
    mesh: LocalMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_placements, "_TOLD_WITHIN_S", -60.0)  # as if it had expired a minute ago
    placer = Placer(mesh)
    await placer.place(request_id="unclaimed")
    router = mesh.parts["router"].running

    async def forgotten() -> bool:
        return len(router.direct) == 0

    await eventually(forgotten, "the placement is over")
    await mesh.client(direct=True).generate(text="river", model=MODEL, max_tokens=4).text()
    assert (await mesh.settled(1)).requests == 1


def claims(epoch: str, **changes: Any) -> PlacementClaims:
    now_unix_ms = SystemClock().unix_ms()
    fields: dict[str, Any] = {
        "id": "p-1",
        "request_id": "r-1",
        "router": "router-0",
        "worker": "h100-0",
        "epoch": epoch,
        "tenant": "umbra",
        "model": MODEL,
        "slo_class": "standard",
        "workload": "",
        "plan": "",
        "price_book": "list@1",
        "rates": Rates(50_000_000, 25_000_000, 100_000_000),
        "admitted_unix_ms": now_unix_ms,
        "resume_from": 0,
        "funded_tokens": 4,
        "prompt_tokens": 3,
        "ttft_promise_s": 2.0,
        "ttft_promise_s_per_prompt_token": 0.001,
        "tpot_promise_s": 0.1,
        "priority": 1,
        "expires_unix_ms": now_unix_ms + 10_000,
    }
    return PlacementClaims(**{**fields, **changes})


async def test_worker_names_what_is_wrong_with_a_placement(tmp_path: Path) -> None:
    async with running_worker(tmp_path, secret=SECRET) as worker:
        epoch = worker.beat.epoch
        long_ago = SystemClock().unix_ms() - 60_000
        wrong = {
            "is for worker": PlacementSigner([SECRET]).sign(claims(epoch, worker="l4-7")),
            "has started anew": PlacementSigner([SECRET]).sign(claims("another")),
            "expired": PlacementSigner([SECRET]).sign(claims(epoch, expires_unix_ms=long_ago)),
            "does not know": PlacementSigner(["guess"]).sign(claims(epoch)),
            "not genuine": "not.a.placement",
            "has no x-tokenworks-placement": "",
        }
        for why, token in wrong.items():
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await worker.stub.Generate(
                    wire.GenerateRequest(text="river"), metadata=((METADATA_KEY, token),), timeout=DEADLINE_S
                ).read()
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert error_of(caught.value).reason == "PlacementRefused"
            assert why in (caught.value.details() or "")


async def test_router_remembers_no_more_placements_than_it_may(
    mesh: LocalMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = mesh.parts["router"].running.direct
    limited = running._settings.model_copy(update={"max_direct": 1})
    monkeypatch.setattr(running, "_settings", limited)
    placer = Placer(mesh)
    await placer.place(request_id="first")
    assert await placer.refusal(request_id="second") == "QueueFull"
