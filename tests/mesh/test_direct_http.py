"""OpenAI's clients sent on to the worker that makes their tokens: the official package follows by itself."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import aiohttp
import openai
import pytest

from services.mesh.keys import KeyStore
from services.mesh.settings import MeshSettings
from services.router.dispatch import Dispatcher
from tests.mesh.conftest import StartMesh
from tests.mesh.local_mesh import DEADLINE_S, MODEL, LocalMesh, eventually, simulated
from tokenworks import Client

pytestmark = pytest.mark.mesh

HELLO: Final[list[Any]] = [{"role": "user", "content": "Hello"}]
BODY: Final[dict[str, Any]] = {"model": MODEL, "messages": HELLO, "max_tokens": 6, "ignore_eos": True}


@pytest.fixture
async def mesh(start_mesh: StartMesh) -> LocalMesh:
    return await start_mesh(
        simulated("h100-0"), simulated("h100-1"), mesh=MeshSettings(secret="hush", drain_grace_s=5.0)
    )


@pytest.fixture
def direct_key(mesh: LocalMesh, tmp_path: Path) -> str:
    """A key of the tenant whose HTTP requests are sent on."""
    return KeyStore(tmp_path / "mesh-0" / "keys.json").create("local", "sent on", 1, direct_http=True)


@pytest.fixture
async def client(mesh: LocalMesh, direct_key: str) -> AsyncIterator[openai.AsyncOpenAI]:
    client = openai.AsyncOpenAI(base_url=f"{base(mesh)}/v1", api_key=direct_key, max_retries=0, timeout=DEADLINE_S)
    yield client
    await client.close()


@pytest.fixture
async def http(mesh: LocalMesh) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def base(mesh: LocalMesh) -> str:
    return f"http://127.0.0.1:{mesh.parts['router'].running.http_port}"


def forbid_relaying(monkeypatch: pytest.MonkeyPatch) -> None:
    def relays(*_: object) -> None:
        raise AssertionError("the router relays")

    monkeypatch.setattr(Dispatcher, "admit", relays)


async def test_the_openai_package_follows_to_the_worker_streaming_and_not(
    mesh: LocalMesh, client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = await mesh.client().generate(chat=HELLO, model=MODEL, max_tokens=6, ignore_eos=True).text()
    forbid_relaying(monkeypatch)
    more = {"ignore_eos": True, "workload": "support"}
    whole = await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=6, extra_body=more)
    assert whole.choices[0].message.content == wanted
    assert whole.usage is not None
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        max_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=more,
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == wanted
    assert chunks[-1].usage == whole.usage
    completed = await client.completions.create(model=MODEL, prompt="river", max_tokens=5, extra_body=more)
    assert completed.usage is not None
    assert completed.usage.completion_tokens == 5
    total = await mesh.settled(4)
    assert total.delivered_tokens == total.generated_tokens == 6 + 6 + 6 + 5
    rows = {row.key.workload: row for row in (await mesh.usage("workload")).rows}
    assert rows["support"].finished_requests == 3


async def test_the_placement_is_in_the_url_and_good_once(
    mesh: LocalMesh, http: aiohttp.ClientSession, direct_key: str
) -> None:
    headers = {"Authorization": f"Bearer {direct_key}"}
    async with http.post(
        f"{base(mesh)}/v1/chat/completions", json=BODY, headers=headers, allow_redirects=False
    ) as answer:
        assert answer.status == 307
        there = answer.headers["Location"]
    ports = {f"127.0.0.1:{mesh.parts[each].running.http_port}" for each in ("h100-0", "h100-1")}
    assert urlsplit(there).netloc in ports
    assert urlsplit(there).path == "/v1/chat/completions"
    assert parse_qs(urlsplit(there).query).keys() == {"placement", "traceparent"}
    async with http.post(there, json=BODY) as answer:
        body = await answer.json()
        assert (answer.status, body["usage"]["completion_tokens"]) == (200, 6)
        assert body["tokenworks"]["price_nusd"] > 0
        assert answer.headers["x-tokenworks-trace-id"] in there
    for used in (there, there.split("?")[0]):
        async with http.post(used, json=BODY) as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["code"], error["type"]) == (403, "PlacementRefused", "permission_error")
    assert (await mesh.settled(1)).price_nusd == body["tokenworks"]["price_nusd"]


async def test_key_that_did_not_ask_for_it_is_relayed(mesh: LocalMesh, http: aiohttp.ClientSession) -> None:
    headers = {"Authorization": f"Bearer {mesh.key}"}
    async with http.post(
        f"{base(mesh)}/v1/chat/completions", json=BODY, headers=headers, allow_redirects=False
    ) as answer:
        assert answer.status == 200
        assert (await answer.json())["usage"]["completion_tokens"] == 6


async def test_mesh_without_a_secret_relays_whatever_the_key(start_mesh: StartMesh, tmp_path: Path) -> None:
    mesh = await start_mesh(simulated("h100-0"))
    key = KeyStore(tmp_path / "mesh-0" / "keys.json").create("local", "sent on", 1, direct_http=True)
    async with aiohttp.ClientSession() as http:
        headers = {"Authorization": f"Bearer {key}"}
        async with http.post(
            f"{base(mesh)}/v1/chat/completions", json=BODY, headers=headers, allow_redirects=False
        ) as answer:
            assert answer.status == 200


async def test_what_is_wrong_is_said_by_the_router_already(mesh: LocalMesh, client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="gpt-none", messages=HELLO)
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model=MODEL, messages=HELLO, temperature=3.0)


async def test_client_that_disconnects_cancels_the_engine_and_pays_what_it_got(
    mesh: LocalMesh, client: openai.AsyncOpenAI
) -> None:
    stream = await client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=100_000, stream=True, extra_body={"ignore_eos": True}
    )
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    await stream.close()

    async def idle() -> bool:
        return not any(mesh.parts[each].running.engine.stats().running for each in ("h100-0", "h100-1"))

    await eventually(idle, "the engine has dropped the sequence")
    total = await mesh.settled(1)
    assert 0 < total.delivered_tokens <= total.generated_tokens < 2_000
    bill = await mesh.bill(chunk.id.removeprefix("chatcmpl-"))
    assert (bill.outcome, bill.delivered_tokens) == ("cancelled", total.delivered_tokens)


async def test_a_long_request_is_refused_by_size(start_mesh: StartMesh, tmp_path: Path) -> None:
    mesh = await start_mesh(simulated("h100-0"), mesh=MeshSettings(secret="hush", max_message_bytes=4096))
    async with aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{mesh.parts['h100-0'].running.http_port}/v1/completions?placement=x"
        async with http.post(url, json={"model": MODEL, "prompt": "x" * 10_000}) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (413, "MessageTooLarge")


async def test_direct_grpc_and_direct_http_give_the_same_text(mesh: LocalMesh, client: openai.AsyncOpenAI) -> None:
    grpc_client: Client = mesh.client(direct=True)
    wanted = await grpc_client.generate(text="river", model=MODEL, max_tokens=9, ignore_eos=True).text()
    answer = await client.completions.create(model=MODEL, prompt="river", max_tokens=9, extra_body={"ignore_eos": True})
    assert answer.choices[0].text == wanted
