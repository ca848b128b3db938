"""SLO classes in bands: classes with about the same TPOT promise are weighed together, so that a pick among a thousand
workers costs the same with three classes as with a hundred."""

from collections.abc import Mapping
from typing import Final

from services.router.core.request import Promise

_MOST_BANDS: Final = 4


class Promises:
    """Every SLO class by name.

    Attributes:
        band_tpots_s: the TPOT promise that stands for each band, the tightest of its classes'.
    """

    def __init__(self, classes: Mapping[str, Promise]) -> None:
        self.classes = dict(classes)
        distinct = sorted({each.tpot_s for each in classes.values()})
        bands = min(_MOST_BANDS, len(distinct))
        self.band_tpots_s = tuple(distinct[index * len(distinct) // bands] for index in range(bands))
        self._others = [(each.ttft_s, each.priority) for each in classes.values()]
        self._band = {
            name: max(index for index, tpot_s in enumerate(self.band_tpots_s) if tpot_s <= each.tpot_s)
            for name, each in classes.items()
        }

    def urgency(self, promise: Promise, left_s: float) -> int:
        """The priority of a request that is to give its first token within `left_s`: its class's; or where its long
        prompt leaves it more time than a less urgent class promises for a short one, only that one's. So an urgent
        class's long prompts, which take seconds, don't pass all others until these are late.
        """
        priority = promise.priority
        for ttft_s, other in self._others:
            if promise.ttft_s < ttft_s < left_s and other > priority:
                priority = other
        return priority

    def band_of(self, slo_class: str) -> int:
        return self._band[slo_class]
