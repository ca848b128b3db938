"""The default engine: a simulated accelerator that makes tokens in real time, as fast as its catalogue figures say.

In: requests. Out: steps. A loop drives the pure cores (`core/simulation.py`) against the clock: it plans a step, asks
the timing model how long it takes, waits for its end, and reports it. A step's end is an absolute time, so what the
loop itself takes does not add up; where it is late it goes on at once, and where it has fallen far behind, because the
machine is overloaded, the delay becomes part of the step, as with a real engine on a busy host.

Several models share the accelerator: they take turns step by step, and each has an even part of the memory that all
weights together leave free. With nothing to do, the loop sleeps until a request comes.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import exp
from typing import Final

from services.mesh.accelerators import load_catalogue
from services.mesh.clock import Clock
from services.mesh.errors import EngineFailed, UnknownModel
from services.mesh.settings import WorkerSettings
from services.mesh.timing import StepLoad
from services.worker.core import tokenizer
from services.worker.core.batching import BatchLimits
from services.worker.core.kv_cache import BLOCK_TOKENS
from services.worker.core.power import utilisation
from services.worker.core.simulation import TOKENIZER, SimulatedModel
from services.worker.engine import (
    ChatMessage,
    EngineInfo,
    EngineRequest,
    EngineStats,
    OnBlocks,
    OnFailure,
    OnStep,
    StepOutput,
)
from services.worker.faults import CRASH_STATUS, Fault, FaultKind

log = logging.getLogger(__name__)

_BEHIND_S: Final = 0.050  # later than this, the delay counts as part of the step
_STEPS_PER_TURN: Final = 8  # completed before others get the event loop, when steps are shorter than a turn
_SLOWDOWN_MEMORY_S: Final = 0.5  # of steps; older ones fade from the slowdown
_SLOWDOWN_IDLE_S: Final = 2.0  # without a step for this long, nothing is known


class SimulatedEngine:
    """An `Engine` on an accelerator of the catalogue."""

    def __init__(
        self, settings: WorkerSettings, clock: Clock, note: str = "", exit_process: Callable[[int], None] = os._exit
    ) -> None:
        """Raises SettingInvalid: the accelerator or a model is not in the catalogue.

        Args:
            note: for a reader: why it is simulated.
            exit_process: what the crash fault calls, with the exit status.
        """
        catalogue = load_catalogue()
        self._settings = settings
        self._clock = clock
        self._note = note
        self._exit_process = exit_process
        self._defaults = catalogue.defaults
        self._accelerator = catalogue.accelerator(settings.accelerator)
        self._shapes = [catalogue.model(name) for name in settings.models]
        self._timings = {shape.key: catalogue.timing(self._accelerator, shape) for shape in self._shapes}
        self._models: dict[str, SimulatedModel] = {}
        self._turns: list[SimulatedModel] = []  # the next to step first
        self._on_step: OnStep = _nobody
        self._on_failure: OnFailure = _nobody
        self._on_blocks: OnBlocks | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._step: _Step | None = None
        self._reports: list[StepOutput] = []
        self._work = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._moving = asyncio.Event()
        self._moving.set()
        self._factor = 1.0
        self._busy_ns = 0
        self._busy_uj = 0
        self._steps = 0
        self._started_s = 0.0
        self._power_w = self._accelerator.idle_w
        self._observed_s = 0.0
        self._modelled_s = 0.0
        self._last_end_s = 0.0

    async def start(self, on_step: OnStep, on_failure: OnFailure) -> EngineInfo:
        free_bytes = self._accelerator.memory_bytes * self._defaults.memory_utilisation
        weight_bytes = sum(shape.weight_bytes for shape in self._shapes)
        each_bytes = (free_bytes - weight_bytes) / max(1, len(self._shapes))
        for shape in self._shapes:
            blocks = int(each_bytes / (shape.kv_bytes_per_token * BLOCK_TOKENS))
            if blocks < 1:
                raise EngineFailed(
                    f"{', '.join(self._settings.models)} take {weight_bytes / 1e9:.1f} GB of weights, and"
                    f" {self._accelerator.key} has {free_bytes / 1e9:.1f} GB to use; serve fewer or smaller models"
                )
            wanted = self._settings.context_tokens or shape.context_tokens
            context_tokens = min(wanted, shape.context_tokens, blocks * BLOCK_TOKENS)
            limits = BatchLimits(
                max_batch=self._settings.max_batch,
                max_waiting=self._settings.max_waiting,
                prefill_chunk_tokens=self._settings.prefill_chunk_tokens,
                kv_blocks=blocks,
            )
            self._models[shape.key] = SimulatedModel(
                shape.key, self._timings[shape.key], limits, context_tokens, tells_blocks=self._on_blocks is not None
            )
        self._turns = list(self._models.values())
        self._on_step, self._on_failure = on_step, on_failure
        self._started_s = self._last_end_s = self._clock.monotonic_s()
        self._loop_task = asyncio.get_running_loop().create_task(self._run(), name="simulated engine")
        self._loop_task.add_done_callback(self._loop_ended)
        return EngineInfo(
            engine="simulated",
            simulated=True,
            models=self._settings.models,
            context_tokens=min(model.context_tokens for model in self._turns),
            max_batch=self._settings.max_batch,
            max_waiting=self._settings.max_waiting,
            kv_capacity_tokens=sum(model.scheduler.limits.kv_blocks for model in self._turns) * BLOCK_TOKENS,
            prefill_chunk_tokens=self._settings.prefill_chunk_tokens,
            note=self._note,
            tokenizer=TOKENIZER,
            lacks=(
                ("process", "it runs in the worker's process"),
                ("chat_text", "the control tokens of its chat form have no spelling"),
            ),
        )

    @property
    def tokenizer(self) -> "SimulatedTokenizer":
        """What every simulated model spells its tokens with."""
        return SimulatedTokenizer()

    def watch_blocks(self, on_blocks: OnBlocks) -> None:
        """See `ReportsBlocks`."""
        self._on_blocks = on_blocks

    async def submit(self, request: EngineRequest) -> None:
        if self._loop_task is None or self._loop_task.done():
            raise EngineFailed("the engine is stopped")
        model = self._models.get(request.model)
        if model is None:
            raise UnknownModel(f"{request.model!r} is not served here; use one of: {', '.join(self._models)}")
        request.require(())
        model.submit(request, self._clock.monotonic_s())
        self._quiet.clear()
        self._work.set()

    def tune(self, model: str, step_s: float, max_batch: int) -> None:
        """See `Tunable`; of a model that is not served, nothing."""
        if (served := self._models.get(model)) is not None:
            served.scheduler.tune(step_s, max_batch)

    def cancel(self, sequence: int) -> None:
        if any(model.cancel(sequence) for model in self._turns):
            self._work.set()

    def inject(self, fault: Fault) -> str:
        """Puts the fault in force, in place of the one before; what is in force then, for a reader."""
        if fault.kind is FaultKind.CRASH:
            log.error("crashing, as asked by FaultControl")
            self._exit_process(CRASH_STATUS)
            return "crashed"
        if fault.kind is FaultKind.ENGINE_DIES:
            if self._loop_task is not None:
                self._loop_task.cancel()
            self._on_failure("the simulated engine died, as asked by FaultControl")
            return "dead"
        self._factor = fault.factor if fault.kind is FaultKind.SLOW else 1.0
        if fault.kind is FaultKind.HANG:
            self._moving.clear()
            return "hanging"
        self._moving.set()
        return "healthy" if self._factor == 1.0 else f"steps take {self._factor:g} times as long"

    def stats(self) -> EngineStats:
        now_s = self._clock.monotonic_s()
        schedulers = [model.scheduler for model in self._turns]
        known = self._modelled_s > 0 and (not self._quiet.is_set() or now_s - self._last_end_s < _SLOWDOWN_IDLE_S)
        idle_s = max(0.0, now_s - self._started_s - self._busy_ns / 1e9) if schedulers else 0.0
        return EngineStats(
            running=sum(each.running for each in schedulers),
            waiting=sum(each.waiting for each in schedulers),
            waiting_prefill_tokens=sum(each.uncomputed_tokens for each in schedulers),
            waiting_by_priority=_sums(each.waiting_by_rank for each in schedulers),
            prefill_tokens_by_priority=_sums(each.uncomputed_by_rank for each in schedulers),
            kv_cache_usage=max((each.kv.usage for each in schedulers), default=0.0),
            max_batch=min((each.max_batch for each in schedulers), default=0),
            step_s=max((each.step_s for each in schedulers), default=0.0),
            slowdown=self._observed_s / self._modelled_s if known else 1.0,
            power_w=self._power_w,
            busy_ns=self._busy_ns,
            energy_uj=self._busy_uj + int(idle_s * self._accelerator.idle_w * 1e6),
            steps=self._steps,
        )

    async def stop(self, grace_s: float) -> None:
        if self._loop_task is None:
            return
        try:
            async with asyncio.timeout(grace_s):
                await self._quiet.wait()
        except TimeoutError:
            log.warning("%d sequences are cancelled after %g s of grace", self.stats().running, grace_s)
        self._loop_task.cancel()
        await asyncio.gather(self._loop_task, return_exceptions=True)
        for model in self._turns:
            model.cancel_all()
        # The step under way ends here, however long it would have taken: its work is counted, its tokens are not made.
        if self._step is not None:
            self._complete(self._step, self._clock.monotonic_s())
        self._take_ended()
        self._report()
        self._quiet.set()

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.error("the simulated engine failed", exc_info=failure)
            self._on_failure(f"the simulated engine failed: {failure!r}")

    async def _run(self) -> None:
        begun_s = self._clock.monotonic_s()
        while True:
            self._work.clear()
            step = self._step = self._plan(begun_s)
            self._take_ended()
            if step is None:
                self._report()
                self._power_w = self._accelerator.idle_w
                self._quiet.set()
                await self._work.wait()
                begun_s = self._clock.monotonic_s()
                if begun_s - self._last_end_s > _SLOWDOWN_IDLE_S:
                    self._observed_s = self._modelled_s = 0.0
                continue
            end_s = begun_s + step.modelled_s * self._factor / self._settings.speed
            self._power_w = self._accelerator.power_w(utilisation(step.model.timing, step.load))
            wait_s = end_s - self._clock.monotonic_s()
            if wait_s > 0 or len(self._reports) >= _STEPS_PER_TURN:
                self._report()
                await asyncio.sleep(max(0.0, wait_s))
            if not self._moving.is_set():
                self._report()
                await self._moving.wait()
            now_s = self._clock.monotonic_s()
            if now_s - end_s > _BEHIND_S:
                end_s = now_s
            self._complete(step, end_s)
            begun_s = end_s

    def _plan(self, now_s: float) -> "_Step | None":
        """The next step of the first model that has one; that model goes to the end of the line."""
        for model in self._turns:
            load = model.plan_step(now_s)
            if load is not None:
                self._turns.remove(model)
                self._turns.append(model)
                return _Step(model, load, now_s, model.timing.step_s(load))
        return None

    def _complete(self, step: "_Step", end_s: float) -> None:
        self._step = None
        device_ns = round(max(0.0, end_s - step.begun_s) * 1e9)
        energy_uj = round(self._power_w * device_ns / 1000)
        self._busy_ns += device_ns
        self._busy_uj += energy_uj
        self._steps += 1
        step_s = device_ns / 1e9
        fade = exp(-step_s / _SLOWDOWN_MEMORY_S)
        self._observed_s = self._observed_s * fade + step_s
        self._modelled_s = self._modelled_s * fade + step.modelled_s
        self._last_end_s = end_s
        outputs = step.model.complete_step(device_ns, energy_uj)
        self._reports.append(StepOutput(step_s=step_s, outputs=outputs, load=step.load, model=step.model.model))

    def _take_ended(self) -> None:
        """Reports those that ended without a step."""
        for model in self._turns:
            if ended := model.take_ended():
                self._reports.append(StepOutput(step_s=0.0, outputs=ended, model=model.model))

    def _report(self) -> None:
        if self._reports:
            reports, self._reports = self._reports, []
            self._on_step(reports)
        if self._on_blocks is not None:
            for model in self._turns:
                if changes := model.take_blocks():
                    self._on_blocks(changes)


class SimulatedTokenizer:
    """The `Tokenizer` of `core/tokenizer.py`."""

    async def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        return tuple(tokenizer.encode_prompt(text) if special else tokenizer.encode(text))

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return tokenizer.decode(token_ids)

    async def encode_chat(self, chat: Sequence[ChatMessage]) -> tuple[int, ...]:
        return tuple(tokenizer.encode_chat((message.role, message.content) for message in chat))


@dataclass(frozen=True, slots=True)
class _Step:
    """The step under way."""

    model: SimulatedModel
    load: StepLoad
    begun_s: float
    modelled_s: float


def _nobody(_: object) -> None:
    """Stands in until `start` says who listens."""


def _sums(columns: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*columns, strict=True)))
