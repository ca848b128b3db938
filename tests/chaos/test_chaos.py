"""A mesh that is broken on purpose keeps its promises. The report of each run judges; here it only has to be clean."""

import pytest

from tests.chaos.conftest import Chaos

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(600)]


async def test_sixty_faults_lose_no_token(chaos: Chaos) -> None:
    document = await chaos("--faults", "60", "--seed", "1", "--streams", "8", "--every", "1.2")
    assert document["violations"] == []
    assert document["faults_injected"] == 60
    assert document["streams_checked"] > 50
    ways = {(each["role"], each["kind"]) for each in document["done"]}
    roles = {"router", "worker", "meter", "optimizer", "bus", "worker link", "bus link", "cable"}
    assert {role for role, _ in ways} == roles - {"cable" for each in document["skipped"] if "cable" in each}
    assert len(ways) >= 27  # every way to break it was dealt twice
    processes = {"router", "worker", "meter", "optimizer", "bus"}
    assert {role for role, kind in ways if kind == "drain"} == processes, "each was restarted as in a rolling restart"
    assert {each["name"] for each in document["checks"]} == {
        "streams",
        "conservation",
        "books",
        "budget",
        "rebuild",
        "nothing left",
    }


async def test_routers_meter_optimizer_and_three_nats_nodes_killed_in_turn_fail_no_stream(chaos: Chaos) -> None:
    document = await chaos(
        *("--in-turn", "kill", "--only", "kill:router", "--only", "kill:meter", "--only", "kill:optimizer"),
        *("--only", "kill:bus", "--nats-nodes", "3", "--streams", "20", "--every", "4", "--budget", "0"),
    )
    assert document["violations"] == []
    killed = [each["target"] for each in document["done"]]
    assert sorted(killed) == ["meter-0", "nats-0", "nats-1", "nats-2", "optimizer-0", "router-0", "router-1"]
