"""Small fleets for the tests of the router's core: heartbeats, plans, and a router's own placements, in fake time."""

from random import Random
from typing import Any, Final

from services.mesh.accelerators import load_catalogue
from services.mesh.events import (
    LatencyObserved,
    PoolPlan,
    RoutingPlan,
    Share,
    StepSample,
    TimingCoefficients,
    WorkerHeartbeat,
    WorkloadClass,
)
from services.mesh.timing import StepLoad, Timing
from services.router.core.exploration import Exploration
from services.router.core.fleet import Fleet
from services.router.core.known_worker import Placed
from services.router.core.policy import Decision, decide, make_ready
from services.router.core.promises import Promises
from services.router.core.request import Promise
from services.router.core.scores import Ask
from services.router.core.table import figure_names

MODEL: Final = "llama-3.1-8b"
H100: Final = "nvidia-h100-sxm"
MI300X: Final = "amd-mi300x"
L4: Final = "nvidia-l4"
UNIX_MS: Final = 1_700_000_000_000
MAX_QUEUE_S: Final = 60.0

PROMISES: Final = Promises(
    {
        "interactive": Promise("interactive", 0.5, 0.000125, 0.030, 0.002, 0),
        "standard": Promise("standard", 2.0, 0.000125, 0.100, 0.001, 1),
        "batch": Promise("batch", 60.0, 0.000125, 0.500, 0.0001, 2),
    }
)


def timing(accelerator: str) -> Timing:
    catalogue = load_catalogue()
    return catalogue.timing(catalogue.accelerator(accelerator), catalogue.model(MODEL))


def ask(**changes: Any) -> Ask:
    """A standard request of 500 prompt tokens and 200 to come; `slo_class` picks another promise."""
    promise = PROMISES.classes[changes.pop("slo_class", "standard")]
    return Ask(
        **{
            "prompt_tokens": 500,
            "fewest_prompt_tokens": 10,
            "completion_tokens": 200,
            "mean_completion_tokens": 200.0,
            "promise": promise,
            **changes,
        }
    )


make_ready(PROMISES)  # as a router does before its first request


class World:
    """A fleet, and what happens to it; `now_s` is the time."""

    def __init__(self, exploration: Exploration | None = None) -> None:
        self.fleet = Fleet(
            load_catalogue(),
            PROMISES,
            heartbeat_timeout_s=2.0,
            tariff_usd_per_kwh=0.08,
            exploration=exploration or Exploration(share=0.0, burst=0.0),
        )
        self.now_s = 0.0
        self.rng = Random(1)
        self._sequences: dict[str, int] = {}

    @property
    def unix_ms(self) -> int:
        return UNIX_MS + round(self.now_s * 1000)

    def beat(self, worker: str, device: str = H100, **changes: Any) -> WorkerHeartbeat:
        """Folds a heartbeat of `worker`, made now; `changes` replace fields of an idle `device`."""
        catalogue = load_catalogue()
        figures = catalogue.accelerator(device)
        sequence = self._sequences[worker] = self._sequences.get(worker, 0) + 1
        beat = WorkerHeartbeat(
            **{
                "worker": worker,
                "pool": device,
                "accelerator": device,
                "engine": "simulated",
                "models": (MODEL,),
                "address": f"{worker}:7610",
                "epoch": "e1",
                "sequence": sequence,
                "state": "ready",
                "running": 0,
                "waiting": 0,
                "waiting_prefill_tokens": 0,
                "kv_cache_usage": 0.0,
                "kv_capacity_tokens": catalogue.kv_capacity_tokens(figures, catalogue.model(MODEL)),
                "context_tokens": 8192,
                "max_batch": 256,
                "max_waiting": 1024,
                "slowdown": 1.0,
                "power_w": figures.idle_w,
                "busy_ns": 0,
                "generated_tokens": 0,
                "energy_uj": 0,
                "simulated": True,
                "rate_nusd_per_hour": figures.rate_nusd_per_hour,
                "failed_because": "",
                "at_unix_ms": self.unix_ms,
                "steps": sequence,
                "prefill_chunk_tokens": 2048,
                **changes,
            }
        )
        self.fleet.heartbeat(beat, self.now_s, self.unix_ms)
        return beat

    def stakes(self, worker: str) -> list[float]:
        """What is at stake there, by band, as a pick sees it."""
        table = self.fleet.models[MODEL]
        (row,) = [row for row, each in enumerate(table.serving) if each.worker.name == worker]
        names = figure_names(len(PROMISES.band_tpots_s))
        figures = dict(zip(names, table.figures[:, row].tolist(), strict=True))
        return [figure for name, figure in figures.items() if name.startswith("at_stake_usd")]

    def decide(self, asked: Ask | None = None) -> Decision:
        return decide(self.fleet, MODEL, asked or ask(), max_queue_s=MAX_QUEUE_S, now_s=self.now_s, rng=self.rng)

    def place(self, asked: Ask | None = None) -> Placed:
        """Decides, and sends the request there."""
        asked = asked or ask()
        decision = self.decide(asked)
        return self.fleet.place(
            decision.worker,
            model=MODEL,
            slo_class=asked.promise.name,
            priority=asked.promise.priority,
            prompt_tokens=asked.prompt_tokens,
            cached_tokens=decision.cached_tokens,
            completion_tokens=asked.completion_tokens,
            explored=decision.explored,
            now_s=self.now_s,
        )

    def observe(self, worker: str, slow: float, samples: int = 1, accelerator: str = H100) -> None:
        """Folds step samples that took `slow` times what the catalogue predicts."""
        load = StepLoad(decode_sequences=4, kv_tokens=2000)
        step = StepSample(
            prefill_tokens=0,
            decode_sequences=load.decode_sequences,
            kv_tokens=load.kv_tokens,
            step_s=slow * timing(accelerator).step_s(load),
            attended_tokens=0,
        )
        self.fleet.latency(
            LatencyObserved(
                worker=worker,
                pool=accelerator,
                accelerator=accelerator,
                model=MODEL,
                requests=(),
                steps=(step,) * samples,
                at_unix_ms=self.unix_ms,
            ),
            self.now_s,
        )

    def plan(
        self,
        *,
        version: int = 1,
        shares: dict[str, float] | None = None,
        shadow: float = 0.0,
        scale: float = 1.0,
        advisory: bool = False,
        canary_share: float = 0.0,
        model: str = MODEL,
    ) -> None:
        """Puts a plan for one class in force: shares by pool, one shadow price, catalogue timings times `scale`."""
        pools = tuple(
            PoolPlan(
                pool=pool,
                accelerator=pool,
                workers=1,
                shadow_usd_per_device_s=shadow,
                utilisation=0.5,
                timing=_coefficients(timing(pool).scaled(scale)),
                observations=100,
                mean_error=0.05,
                rate_usd_per_hour=1.0,
            )
            for pool in (shares or {H100: 1.0})
        )
        standard = WorkloadClass(
            slo_class="standard",
            prompt_tokens_from=0,
            prompt_tokens_to=0,
            completion_tokens_from=0,
            completion_tokens_to=0,
            demand_rps=1.0,
            mean_prompt_tokens=500.0,
            mean_completion_tokens=200.0,
        )
        plan = RoutingPlan(
            model=model,
            version=version,
            made_unix_ms=self.unix_ms,
            classes=(standard,),
            shares=tuple(
                Share(
                    workload_class=0,
                    pool=pool,
                    share=share,
                    feasible=True,
                    device_s_per_request=0.1,
                    usd_per_request=0.0001,
                )
                for pool, share in (shares or {}).items()
            ),
            pools=pools,
            advisory=advisory,
            canary_share=canary_share,
        )
        self.fleet.plan(plan, "", self.now_s)


def _coefficients(of: Timing) -> TimingCoefficients:
    return TimingCoefficients(
        prefill_overhead_s=of.prefill_overhead_s,
        prefill_s_per_token=of.prefill_s_per_token,
        decode_base_s=of.decode_base_s,
        decode_s_per_sequence=of.decode_s_per_sequence,
        decode_s_per_kv_token=of.decode_s_per_kv_token,
        prefill_s_per_attended_token=of.prefill_s_per_attended_token,
    )
