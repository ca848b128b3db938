import io

import pytest
from rich.console import Console

from services.cli.fleet_view import LOST_AFTER_S, ROUTER_LOST_AFTER_S, FleetView, TenantSpend, picture
from services.mesh.events import (
    PlacedAtWorker,
    PlacementsMade,
    Prediction,
    RoutingPlan,
    WorkerHeartbeat,
    WorkloadClass,
)


def heartbeat(worker="h100-0", **fields):
    return WorkerHeartbeat(
        **{
            "worker": worker,
            "pool": "nvidia-h100-sxm",
            "accelerator": "nvidia-h100-sxm",
            "engine": "simulated",
            "models": ("llama-3.1-8b",),
            "address": "127.0.0.1:1",
            "epoch": "e1",
            "sequence": 1,
            "state": "ready",
            "running": 3,
            "waiting": 1,
            "waiting_prefill_tokens": 0,
            "kv_cache_usage": 0.25,
            "kv_capacity_tokens": 1000,
            "context_tokens": 1000,
            "max_batch": 8,
            "max_waiting": 8,
            "slowdown": 1.0,
            "power_w": 300.0,
            "busy_ns": 0,
            "generated_tokens": 0,
            "energy_uj": 0,
            "simulated": True,
            "rate_nusd_per_hour": 2_690_000_000,
            "failed_because": "",
            "at_unix_ms": 0,
            "steps": 0,
            "prefill_chunk_tokens": 2048,
        }
        | fields
    )


def test_rate_is_between_heartbeats_of_one_epoch():
    view = FleetView()
    for at_s, tokens in ((10.0, 100), (11.0, 300), (12.0, 500)):
        view.heartbeat(heartbeat(generated_tokens=tokens), at_s)
    (row,) = view.document(12.0)["workers"]
    assert row["tokens_per_s"] == pytest.approx(200.0)
    view.heartbeat(heartbeat(epoch="e2", generated_tokens=0), 12.5)
    assert view.document(12.5)["workers"][0]["tokens_per_s"] == 0.0


def said(router, placed=0, **fields):
    at = PlacedAtWorker(worker="h100-0", epoch="e1", requests=placed, prefill_tokens=0, prompt_tokens=0)
    return PlacementsMade(router=router, address="127.0.0.1:1", placed=(at,), at_unix_ms=0, **fields)


def test_routers_show_what_waits_there_and_how_much_they_place_and_refuse():
    view = FleetView()
    for second in range(21):  # of which the last ten count
        view.placed(said("router-0", placed=4, waiting=second, refused=2 * (second > 10)), float(second))
    view.placed(said("router-1", placed=3), 20.0)
    first, second = view.document(20.0)["routers"]
    assert first == {"router": "router-0", "state": "ready", "waiting": 20, "placed_rps": 4.0, "refused_rps": 2.0}
    assert second == {"router": "router-1", "state": "ready", "waiting": 0, "placed_rps": 3.0, "refused_rps": 0.0}
    lost = view.document(20.1 + ROUTER_LOST_AFTER_S)["routers"][0]
    assert (lost["state"], lost["waiting"]) == ("lost", 0)
    assert view.document(40.0)["routers"][0]["refused_rps"] == 0.0
    console = Console(file=io.StringIO(), width=200)
    console.print(picture(view.document(20.0)))
    assert "router-0" in console.file.getvalue()


def test_worker_that_falls_silent_is_lost():
    view = FleetView()
    view.heartbeat(heartbeat(), 10.0)
    assert view.document(10.0 + LOST_AFTER_S)["workers"][0]["state"] == "ready"
    assert view.document(10.1 + LOST_AFTER_S)["workers"][0]["state"] == "lost"


def test_frame_shows_workers_tenants_and_plans():
    view = FleetView()
    view.heartbeat(heartbeat(failed_because="out of [memory]", state="failed"), 1.0)
    view.heartbeat(heartbeat("cpu-0", simulated=False), 1.0)
    view.spent("acme", TenantSpend(2, 1_000, 5_000_000, 1_000_000, margin_nusd=4_000_000))
    view.plan(
        RoutingPlan(
            model="m",
            version=7,
            made_unix_ms=0,
            classes=(
                WorkloadClass(
                    slo_class="batch",
                    prompt_tokens_from=0,
                    prompt_tokens_to=0,
                    completion_tokens_from=0,
                    completion_tokens_to=0,
                    demand_rps=2.5,
                    mean_prompt_tokens=1.0,
                    mean_completion_tokens=1.0,
                ),
            ),
            prediction=Prediction(cost_usd_per_hour=1.5, baseline_cost_usd_per_hour=2.0, unserved_rps=0.0),
        )
    )
    document = view.document(1.0)
    assert [row["worker"] for row in document["workers"]] == ["cpu-0", "h100-0"]
    assert document["plans"][0]["demand_rps"] == 2.5
    shown = Console(file=io.StringIO(), width=160)
    shown.print(picture(document))
    text = shown.file.getvalue()
    for expected in ("out of [memory]", "(real)", "acme", "$0.004000", "m:7", "1.5000"):
        assert expected in text


def test_watts_say_who_told_them():
    view = FleetView()
    view.heartbeat(heartbeat(), 10.0)
    view.heartbeat(heartbeat("h100-1", power_w=612.4, power_source="nvml", utilisation=0.93, simulated=False), 10.0)
    document = view.document(10.0)
    assert [(row["power_source"], row["utilisation"]) for row in document["workers"]] == [
        ("catalogue", 0.0),
        ("nvml", 0.93),
    ]
    out = io.StringIO()
    Console(file=out, width=200).print(picture(document))
    (modelled, measured) = (line for line in out.getvalue().splitlines() if line.startswith("h100-"))
    assert "catalogue" in modelled
    assert "measured nvml" in measured
    assert "93%" in measured
