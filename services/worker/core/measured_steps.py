"""Steps of an engine that does not tell about its steps: put together from what its sequences got, and when.

In: arrivals, each what one sequence got out of one step, with the second at which it was seen. Out: `StepOutput`s with
the measured seconds, the load, and each sequence's part of time and energy. Pure.

An engine with continuous batching gives every running sequence at most one thing per step: a token, or a piece of its
prompt done. So the first arrivals of all sequences since the last look belong to one step, the second ones to the next.
A step ends with its last arrival and begins where the step before it ended, or when the first sequence came to an idle
engine. The parts of its outputs add up to it exactly; a sequence that had a piece of its prompt computed has an output
without a token.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from services.mesh.accelerators import Accelerator
from services.mesh.timing import StepLoad, Timing
from services.worker.core.attribution import decode_work_s, prefill_work_s, share_out, work_units
from services.worker.core.power import MEMORY_BOUND_UTILISATION, utilisation
from services.worker.engine import FinishReason, SequenceOutput, StepOutput, TokenLogprob, joined_lists

_SLOWDOWN_WEIGHT: Final = 0.1  # of the newest step in the mean


@dataclass(slots=True, kw_only=True)  # not frozen, as `SequenceOutput`
class Arrival:
    """What one sequence got out of one step; nobody changes it.

    Attributes:
        at_s: when it was seen, on the engine's monotonic clock.
        prefill_tokens: tokens of its prompt that the step computed.
        cached_tokens: tokens of its prompt that needed no computing, where this arrival tells.
        prompt_tokens: tokens of its prompt, where this arrival knows better than whoever opened the sequence.
        finish: nothing follows; may come with the last token or alone.
        logprobs, prompt_token_ids: see `SequenceOutput`.
        tool_calls_json: see `SequenceOutput`; it goes with a token, or with the end.
    """

    sequence: int
    at_s: float
    token_count: int = 0
    token_ids: tuple[int, ...] = ()
    text: str = ""
    prefill_tokens: int = 0
    cached_tokens: int = 0
    prompt_tokens: int = 0
    finish: FinishReason | None = None
    error: tuple[str, str] | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls_json: str = ""
    prompt_token_ids: Sequence[int] = ()

    @property
    def worked(self) -> bool:
        return self.token_count > 0 or self.prefill_tokens > 0


@dataclass(slots=True)
class _Open:
    prompt_tokens: int
    queue_s: float
    cached_tokens: int = 0
    kv_tokens: int = 0


class MeasuredSteps:
    """The steps of one engine that serves one model.

    Attributes:
        busy_ns, energy_uj: of all steps so far.
        slowdown: measured over modelled seconds of a step, averaged; 1 where the model is not in the catalogue.
    """

    def __init__(self, model: str, accelerator: Accelerator, timing: Timing | None) -> None:
        self._model = model
        self._accelerator = accelerator
        self._timing = timing
        self._open: dict[int, _Open] = {}
        self._ended_s = 0.0
        self._utilisation = MEMORY_BOUND_UTILISATION
        self.busy_ns = 0
        self.energy_uj = 0
        self.steps = 0
        self.slowdown = 1.0

    @property
    def kv_tokens(self) -> int:
        return sum(each.kv_tokens for each in self._open.values())

    @property
    def power_w(self) -> float:
        return self._accelerator.power_w(self._utilisation if self._open else 0.0)

    def open(self, sequence: int, now_s: float, *, prompt_tokens: int, queue_s: float = 0.0) -> None:
        """A sequence starts to run; `prompt_tokens` without those made before a break, `queue_s` is what it waited."""
        if not self._open:
            self._ended_s = now_s
        self._open[sequence] = _Open(prompt_tokens, queue_s)

    def fold(self, arrivals: Iterable[Arrival]) -> list[StepOutput]:
        """The steps that these arrivals, in the order in which they were seen, are made of.

        A sequence is closed by the arrival that has `finish`; what arrives for one that is not open is ignored.
        """
        steps: list[list[Arrival]] = []
        depth: dict[int, int] = {}
        endings: dict[int, Arrival] = {}
        for arrival in arrivals:
            sequence = arrival.sequence
            opened = self._open.get(sequence)
            if opened is None or sequence in endings:
                continue
            opened.prompt_tokens = arrival.prompt_tokens or opened.prompt_tokens
            opened.cached_tokens = arrival.cached_tokens or opened.cached_tokens
            if arrival.worked:
                at = depth.get(sequence, 0)
                depth[sequence] = at + 1
                if at == len(steps):
                    steps.append([])
                steps[at].append(arrival)
            if arrival.finish is not None:
                endings[sequence] = arrival
        outputs = [
            self._step(step, {each for each in endings if depth.get(each) == number}, endings)
            for number, step in enumerate(steps, start=1)
        ]
        late = tuple(self._output(each, None, ending) for each, ending in endings.items() if each in self._open)
        if late:
            outputs.append(StepOutput(step_s=0.0, outputs=late, model=self._model))
        return outputs

    def _step(self, arrivals: list[Arrival], ending: set[int], endings: dict[int, Arrival]) -> StepOutput:
        ended_s = max(self._ended_s, *(each.at_s for each in arrivals))
        step_ns = round((ended_s - self._ended_s) * 1e9)
        self._ended_s = ended_s
        load, units = self._load(arrivals)
        if self._timing is not None:
            self._utilisation = utilisation(self._timing, load)
            ratio = step_ns / 1e9 / self._timing.step_s(load)
            self.slowdown += _SLOWDOWN_WEIGHT * (ratio - self.slowdown) if self.steps else ratio - self.slowdown
        energy_uj = round(self._accelerator.power_w(self._utilisation) * step_ns / 1000)
        self.busy_ns += step_ns
        self.energy_uj += energy_uj
        self.steps += 1
        outputs = tuple(
            self._output(each.sequence, each, endings[each.sequence] if each.sequence in ending else None, ns, uj)
            for each, ns, uj in zip(arrivals, share_out(step_ns, units), share_out(energy_uj, units), strict=True)
        )
        return StepOutput(step_s=step_ns / 1e9, outputs=outputs, load=load, model=self._model)

    def _load(self, arrivals: list[Arrival]) -> tuple[StepLoad, list[int]]:
        """The step's load, and the work of each of its arrivals in whole units."""
        prefill = attended = decoding = kv_tokens = 0
        own_s: list[float] = []
        units: list[int] = []
        for arrival in arrivals:
            opened = self._open[arrival.sequence]
            opened.kv_tokens = max(opened.kv_tokens, arrival.cached_tokens)
            before, fresh = opened.kv_tokens, arrival.prefill_tokens
            if fresh:
                reads = fresh * before + fresh * (fresh + 1) // 2
                prefill, attended = prefill + fresh, attended + reads
            else:
                reads = before
                decoding, kv_tokens = decoding + 1, kv_tokens + before
            if self._timing is not None:
                own_s += [prefill_work_s(self._timing, fresh, reads)] if fresh else decode_work_s(self._timing, [reads])
            units.append(max(fresh, arrival.token_count))
            opened.kv_tokens = before + fresh + arrival.token_count
        load = StepLoad(prefill, attended, decoding, kv_tokens)
        return load, units if self._timing is None else work_units(self._timing, own_s)

    def _output(
        self, sequence: int, arrival: Arrival | None, ending: Arrival | None, device_ns: int = 0, energy_uj: int = 0
    ) -> SequenceOutput:
        opened = self._open[sequence]
        text = arrival.text if arrival is not None else ""
        tool_calls_json = arrival.tool_calls_json if arrival is not None else ""
        if ending is not None:
            del self._open[sequence]
            if ending is not arrival:
                text += ending.text
                tool_calls_json = joined_lists(tool_calls_json, ending.tool_calls_json)
        return SequenceOutput(
            sequence=sequence,
            token_count=arrival.token_count if arrival is not None else 0,
            text=text,
            token_ids=arrival.token_ids if arrival is not None else (),
            finish=ending.finish if ending is not None else None,
            error=ending.error if ending is not None else None,
            prompt_tokens=opened.prompt_tokens,
            cached_prompt_tokens=min(opened.cached_tokens, opened.prompt_tokens),
            device_ns=device_ns,
            energy_uj=energy_uj,
            queue_s=opened.queue_s,
            logprobs=arrival.logprobs if arrival is not None else (),
            tool_calls_json=tool_calls_json,
            prompt_token_ids=arrival.prompt_token_ids if arrival is not None else (),
        )
