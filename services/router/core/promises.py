"""SLO classes in bands: classes with about the same TPOT promise are weighed together, so that a pick among a thousand
workers costs the same with three classes as with a hundred."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.router.core.request import Promise

_MOST_BANDS: Final = 4


@dataclass(frozen=True, slots=True)
class Leniency:
    """What no class of a band promises less than, or loses less by: bounds what lateness costs from below."""

    ttft_s: float
    ttft_s_per_prompt_token: float
    tpot_s: float
    miss_usd: float


class Promises:
    """Every SLO class by name.

    Attributes:
        band_tpots_s: the TPOT promise that stands for each band, the tightest of its classes'.
        lenient: for each band.
    """

    def __init__(self, classes: Mapping[str, Promise]) -> None:
        self.classes = dict(classes)
        distinct = sorted({each.tpot_s for each in classes.values()})
        bands = min(_MOST_BANDS, len(distinct))
        self.band_tpots_s = tuple(distinct[index * len(distinct) // bands] for index in range(bands))
        self._band = {
            name: max(index for index, tpot_s in enumerate(self.band_tpots_s) if tpot_s <= each.tpot_s)
            for name, each in classes.items()
        }
        self.lenient = tuple(
            _most_lenient([each for name, each in classes.items() if self._band[name] == band]) for band in range(bands)
        )

    def band_of(self, slo_class: str) -> int:
        return self._band[slo_class]


def _most_lenient(classes: list[Promise]) -> Leniency:
    return Leniency(
        max(each.ttft_s for each in classes),
        max(each.ttft_s_per_prompt_token for each in classes),
        max(each.tpot_s for each in classes),
        min(each.miss_usd for each in classes),
    )
