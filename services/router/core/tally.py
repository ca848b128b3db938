"""What was placed since it was last told, by worker: what routers tell each other. Pure."""

from dataclasses import dataclass


@dataclass(slots=True)
class Made:
    """Placements at one start of one worker; `prefill_tokens` of the prompts' tokens are to be computed."""

    requests: int = 0
    prefill_tokens: int = 0
    prompt_tokens: int = 0


class Tally:
    """Sums by (worker, epoch)."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str], Made] = {}

    def __len__(self) -> int:
        return len(self._made)

    def add(self, worker: str, epoch: str, *, prefill_tokens: int, prompt_tokens: int) -> None:
        """One request was placed."""
        made = self._made.get((worker, epoch))
        if made is None:
            made = self._made[worker, epoch] = Made()
        made.requests += 1
        made.prefill_tokens += prefill_tokens
        made.prompt_tokens += prompt_tokens

    def take(self) -> list[tuple[tuple[str, str], Made]]:
        """The sums so far, which start anew."""
        taken, self._made = self._made, {}
        return list(taken.items())
