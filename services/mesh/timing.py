"""How long one engine step takes: the one timing model that simulated engine, router, optimizer and twin share.

An engine with continuous batching runs steps. A step decodes one token for each of `decode_sequences` sequences, which
together read `kv_tokens` tokens of KV cache, and computes `prefill_tokens` prompt tokens, which together attend to
`attended_tokens` tokens (the sum over the prefilled tokens). The weights are read once per step whichever of the two it
does, so

    step_s = max(decode_base_s, prefill_overhead_s + prefill_s_per_token * prefill_tokens)
             + decode_s_per_sequence * decode_sequences
             + decode_s_per_kv_token * kv_tokens
             + prefill_s_per_attended_token * attended_tokens

Source: decode step = base + slope * batch + KV bytes / bandwidth, prefill = overhead + 2 * parameters * tokens /
(FLOP/s * utilisation), as fitted by Splitwise and DistServe; the max is the roofline of a mixed step.
"""

from dataclasses import dataclass
from typing import Final

READING: Final = 1.125  # a step for prompt tokens that cost nothing more, in times of reading the weights


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What one engine step holds; all counts >= 0."""

    prefill_tokens: int = 0
    attended_tokens: int = 0
    decode_sequences: int = 0
    kv_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Coefficients of the timing model for one accelerator and one model; all in seconds, all >= 0."""

    prefill_overhead_s: float
    prefill_s_per_token: float
    prefill_s_per_attended_token: float
    decode_base_s: float
    decode_s_per_sequence: float
    decode_s_per_kv_token: float

    def step_s(self, load: StepLoad) -> float:
        """Seconds that a step with this load takes; 0 for an empty step."""
        if not load.prefill_tokens and not load.decode_sequences:
            return 0.0
        weights_s = self.decode_base_s
        if load.prefill_tokens:
            weights_s = max(weights_s, self.prefill_overhead_s + self.prefill_s_per_token * load.prefill_tokens)
        return (
            weights_s
            + self.decode_s_per_sequence * load.decode_sequences
            + self.decode_s_per_kv_token * load.kv_tokens
            + self.prefill_s_per_attended_token * load.attended_tokens
        )

    def prefill_room_s(self, step_s: float, sequences: int, kv_tokens: float) -> float:
        """Seconds of a step of `step_s` that its decodes leave for reading the weights and computing prompt tokens.

        At least a little longer than the weights take to be read: up to there, prompt tokens cost nothing more.
        """
        riding_s = self.decode_s_per_sequence * sequences + self.decode_s_per_kv_token * kv_tokens
        return max(step_s - riding_s, self.decode_base_s * READING)

    def prefill_within(self, room_s: float, attended: float) -> float:
        """Prompt tokens that fit into `room_s` of a step when each attends to so many tokens; may be below 0."""
        attended_s = self.prefill_s_per_attended_token * attended
        token_s = self.prefill_s_per_token + attended_s
        tokens = (room_s - self.prefill_overhead_s) / max(token_s, 1e-12)
        # Attention does not overlap with the weights being read.
        return tokens if attended_s <= 0 else min(tokens, (room_s - self.decode_base_s) / attended_s)

    def prefill_s(self, prompt_tokens: int, cached_tokens: int = 0, chunk_tokens: int = 2048) -> float:
        """Seconds to compute a prompt alone on the accelerator, in chunks of `chunk_tokens`.

        Args:
            prompt_tokens: >= cached_tokens; the whole prompt.
            cached_tokens: tokens whose KV is cached and that are not computed again.
            chunk_tokens: >= 1.
        """
        fresh = max(0, prompt_tokens - cached_tokens)
        if fresh == 0:
            return 0.0
        whole, rest = divmod(fresh, chunk_tokens)
        attended = (cached_tokens + prompt_tokens + 1) * fresh // 2
        seconds = whole * max(self.decode_base_s, self.prefill_overhead_s + self.prefill_s_per_token * chunk_tokens)
        if rest:
            seconds += max(self.decode_base_s, self.prefill_overhead_s + self.prefill_s_per_token * rest)
        return seconds + self.prefill_s_per_attended_token * attended

    def decode_s(self, sequences: int, kv_tokens: int) -> float:
        """Seconds of one decode step of a batch; `sequences` >= 1, `kv_tokens` summed over the batch."""
        return self.decode_base_s + self.decode_s_per_sequence * sequences + self.decode_s_per_kv_token * kv_tokens

    def decodes_s(self, load: StepLoad, steps: int) -> list[float]:
        """Seconds of each of `steps` steps in a row that only decode, the first with `load`: to the last bit what
        `step_s` says of each, every sequence reading one token more from step to step.
        """
        fixed_s = self.decode_base_s + self.decode_s_per_sequence * load.decode_sequences
        first, by = load.kv_tokens, load.decode_sequences
        token_s = self.decode_s_per_kv_token
        return [fixed_s + token_s * kv_tokens for kv_tokens in range(first, first + by * steps, by)]

    def scaled(self, factor: float) -> "Timing":
        """The same accelerator, `factor` times as slow."""
        return Timing(
            self.prefill_overhead_s * factor,
            self.prefill_s_per_token * factor,
            self.prefill_s_per_attended_token * factor,
            self.decode_base_s * factor,
            self.decode_s_per_sequence * factor,
            self.decode_s_per_kv_token * factor,
        )
