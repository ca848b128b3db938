"""What the plan asks of engines."""

from services.mesh.accelerators import load_catalogue
from services.optimizer.core.demand import ClassDemand, ClassKey
from services.optimizer.core.knobs import Knobs, knobs
from services.optimizer.core.plan import Pool, Problem
from services.optimizer.core.service_curve import Promise, Station

MODEL = "llama-3.1-8b"
CATALOGUE = load_catalogue()
DEVICES = ("nvidia-h100-sxm", "nvidia-l4")
CLASSES = (ClassKey(MODEL, "interactive", 2, 1), ClassKey(MODEL, "batch", 2, 1))
PROBLEM = Problem(
    pools=tuple(
        Pool(
            name=name,
            accelerator=name,
            workers=1,
            devices=1.0,
            rate_usd_per_hour=1.0,
            loaded_w=100.0,
            stations={
                MODEL: Station(
                    timing=CATALOGUE.timing(CATALOGUE.accelerator(name), CATALOGUE.model(MODEL)),
                    workers=1,
                    max_batch=256,
                    kv_capacity_tokens=100_000,
                    context_tokens=8192,
                    prefill_chunk_tokens=2048,
                )
            },
        )
        for name in DEVICES
    ),
    classes=tuple(ClassDemand(key, 10.0, 800.0, 100.0) for key in CLASSES),
    promises={"interactive": Promise(0.5, 0.0, 0.03, 0.002), "batch": Promise(60.0, 0.0, 0.5, 0.0001)},
    target_utilisation=0.85,
    tariff_usd_per_kwh=0.1,
)


def test_steps_keep_the_tightest_promise_that_is_planned_for_a_pool() -> None:
    shares = {CLASSES[0]: {"nvidia-h100-sxm": 1.0}, CLASSES[1]: {"nvidia-h100-sxm": 0.5, "nvidia-l4": 0.5}}
    asked = knobs(PROBLEM, shares, MODEL)
    assert asked["nvidia-h100-sxm"].step_s == 0.03 * 0.85
    assert asked["nvidia-l4"].step_s == 0.5 * 0.85


def test_as_many_run_at_once_as_the_loosest_promise_that_is_planned_for_a_pool_allows() -> None:
    timing = PROBLEM.pools[0].stations[MODEL].timing
    for shared, tpot_s in ((0.0, 0.03), (0.5, 0.5)):
        shares = {CLASSES[0]: {"nvidia-h100-sxm": 1.0}, CLASSES[1]: {"nvidia-h100-sxm": shared}}
        batch = knobs(PROBLEM, shares, MODEL)["nvidia-h100-sxm"].max_batch
        assert timing.decode_s(batch, batch * 850) <= tpot_s * 0.85 < timing.decode_s(batch + 1, (batch + 1) * 850)


def test_a_class_that_hardly_comes_to_a_pool_does_not_set_its_pace() -> None:
    shares = {CLASSES[0]: {"nvidia-h100-sxm": 0.99, "nvidia-l4": 0.01}, CLASSES[1]: {"nvidia-l4": 1.0}}
    assert knobs(PROBLEM, shares, MODEL)["nvidia-l4"].step_s == 0.5 * 0.85


def test_a_pool_that_nothing_is_planned_for_yet_keeps_the_tightest_promise_that_it_can() -> None:
    asked = knobs(PROBLEM, {}, MODEL)
    assert asked == {"nvidia-h100-sxm": Knobs(0.03 * 0.85), "nvidia-l4": Knobs(0.5 * 0.85)}
    weights_s = PROBLEM.pools[1].stations[MODEL].timing.decode_base_s
    assert 0.03 * 0.85 < weights_s < 0.5 * 0.85  # which an L4 reads for each step
