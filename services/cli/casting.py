"""Who sends what: gives every arrival of a trace the tenant, class, workload and model that the trace does not name.

In: a trace's request and its place. Out: an `Arrival`, the same for the same seed. Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from services.twin.traces import TraceRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A trace's request with everything said; `index` is its place in the trace, from 0."""

    index: int
    request: TraceRequest
    tenant: str
    workload: str
    slo_class: str
    model: str


class Casting:
    """Fills in what a trace leaves open.

    Args:
        tenants: at least one; an arrival without a tenant gets one of these, evenly.
        slo_mix: SLO class -> weight, at least one above 0.
        workload, model: for arrivals without one.
        override_model: where given, replaces the model of every arrival.
    """

    def __init__(
        self,
        *,
        tenants: Sequence[str],
        slo_mix: Mapping[str, float],
        workload: str,
        model: str,
        override_model: str = "",
        seed: int = 0,
    ) -> None:
        self._tenants = tuple(tenants)
        self._classes = tuple(slo_mix)
        self._weights = tuple(slo_mix.values())
        self._workload = workload
        self._model = model
        self._override_model = override_model
        self._seed = seed
        self._made_up: dict[str, None] = {}

    def cast(self, request: TraceRequest, index: int) -> Arrival:
        drawn = Random(f"{self._seed}/cast/{index}")
        tenant, slo_class = drawn.choice(self._tenants), drawn.choices(self._classes, self._weights)[0]
        for what, said in (
            ("tenants", request.tenant),
            ("SLO classes", request.slo_class),
            ("workloads", request.workload),
            ("prompts' words", request.prompt),
        ):
            if not said:
                self._made_up[what] = None
        return Arrival(
            index=index,
            request=request,
            tenant=request.tenant or tenant,
            workload=request.workload or self._workload,
            slo_class=request.slo_class or slo_class,
            model=self._override_model or request.model or self._model,
        )

    @property
    def synthesised(self) -> list[str]:
        """What was made up so far, in words for the report."""
        return list(self._made_up)


def parse_slo_mix(text: str, known: Sequence[str]) -> dict[str, float]:
    """`interactive=0.5,standard=0.3,batch=0.2` as weights; they need not add up to 1.

    Raises:
        ValueError: names the part that is wrong and what would do.
    """
    mix: dict[str, float] = {}
    for part in text.split(","):
        name, separator, weight_text = (piece.strip() for piece in part.partition("="))
        if name not in known:
            raise ValueError(f"SLO class {name!r} is not one of {', '.join(known)}; write it like {known[0]}=1")
        try:
            weight = float(weight_text) if separator else 1.0
        except ValueError:
            weight = -1.0
        if not 0 <= weight < float("inf"):
            raise ValueError(f"the weight of {name} is {weight_text!r}; it must be a number of at least 0")
        mix[name] = weight
    if not any(mix.values()):
        raise ValueError(f"every weight in {text!r} is 0; at least one must be more")
    return mix
