"""A price book: what tokens cost whom, under a label (`name@version`) whose prices never change.

In: what a person wrote, in `[prices]` of tokenworks.toml or in a file of its own (`price_files.py`). Out: the entry
that prices a request, by model, tenant or plan, and SLO class; `pricing.py` makes rates of it.

An entry may have tiers: beyond a volume in a period (of one tenant, in the requests that the entry prices), tokens of a
kind cost less; and a committed volume, which is paid whether it is used or not. Requests are priced at the entry's
first rates as they come, which is what holds and budgets count with; what tiers take off, and what a commitment adds at
the period's end, is booked beside them (`meter/core/volumes.py`). So later tiers never cost more than earlier ones.
"""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from services.mesh.section import Identifier, Section, Usd

KINDS: Final = ("input", "cached_input", "output")

Mtok = Annotated[Decimal, Field(ge=0, max_digits=12, decimal_places=6)]  # millions of tokens; whole tokens


class Tier(Section):
    """Rates for the tokens of each kind beyond `from_mtok` million in a period; what is not given stays as before."""

    from_mtok: Annotated[Decimal, Field(gt=0, max_digits=12, decimal_places=6)]
    input_usd_per_mtok: Usd | None = None
    cached_input_usd_per_mtok: Usd | None = None
    output_usd_per_mtok: Usd | None = None

    def usd_per_mtok(self, kind: str) -> Decimal | None:
        given: Decimal | None = getattr(self, f"{kind}_usd_per_mtok")
        return given


class Price(Section):
    """US dollars per million tokens; an empty model, tenant, plan or class matches any, the most specific entry wins.

    Attributes:
        plan: a group of tenants, see `PriceBook.plans`; an entry names a tenant or a plan, not both.
        tiers: by volume, each from more tokens on than the one before it.
        committed_input_mtok, committed_cached_input_mtok, committed_output_mtok: paid in every period, used or not.
        period: of tiers and commitments, in UTC.
    """

    model: str = ""
    tenant: str = ""
    plan: str = ""
    slo_class: str = ""
    input_usd_per_mtok: Usd
    cached_input_usd_per_mtok: Usd
    output_usd_per_mtok: Usd
    tiers: tuple[Tier, ...] = ()
    committed_input_mtok: Mtok = Decimal(0)
    committed_cached_input_mtok: Mtok = Decimal(0)
    committed_output_mtok: Mtok = Decimal(0)
    period: Literal["day", "month"] = "month"

    @model_validator(mode="after")
    def _tiers_never_rise(self) -> Self:
        if self.tenant and self.plan:
            raise ValueError(f"an entry names tenant {self.tenant!r} and plan {self.plan!r}; name one of them")
        if self.committed and not (self.tenant or self.plan):
            raise ValueError("a commitment needs a tenant or a plan: nobody else can have agreed to it")
        for kind in KINDS:
            last_mtok, last_usd = Decimal(0), self.usd_per_mtok(kind)
            for tier in self.tiers:
                if tier.from_mtok <= last_mtok:
                    raise ValueError(
                        f"tier from_mtok = {tier.from_mtok} does not begin after {last_mtok}; sort the tiers"
                    )
                rate_usd = tier.usd_per_mtok(kind)
                if rate_usd is not None and rate_usd > last_usd:
                    raise ValueError(
                        f"tier from_mtok = {tier.from_mtok}: {kind}_usd_per_mtok = {rate_usd} is more than {last_usd}"
                        " before it; a tier may only be cheaper, since requests are held at the first"
                    )
                last_mtok, last_usd = tier.from_mtok, last_usd if rate_usd is None else rate_usd
        return self

    @property
    def committed(self) -> bool:
        return bool(self.committed_input_mtok or self.committed_cached_input_mtok or self.committed_output_mtok)

    @property
    def by_volume(self) -> bool:
        """Whether what is due also depends on the period's volume."""
        return bool(self.tiers) or self.committed

    def usd_per_mtok(self, kind: str) -> Decimal:
        """Of the first tokens of a kind (`KINDS`)."""
        given: Decimal = getattr(self, f"{kind}_usd_per_mtok")
        return given

    def committed_mtok(self, kind: str) -> Decimal:
        given: Decimal = getattr(self, f"committed_{kind}_mtok")
        return given


class Plan(Section):
    """Tenants that are priced alike."""

    name: Identifier
    tenants: tuple[str, ...]


class PriceBook(Section):
    """Attributes:
    currency: what the book was written in; its prices are converted to dollars at `usd_per_unit`, which is part of it.
    """

    name: Identifier = "list"
    version: Annotated[int, Field(ge=1)] = 1
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "USD"
    usd_per_unit: Annotated[Decimal, Field(gt=0, max_digits=18, decimal_places=9)] = Decimal(1)
    plans: tuple[Plan, ...] = ()
    prices: tuple[Price, ...] = (
        Price(
            input_usd_per_mtok=Decimal("0.05"),
            cached_input_usd_per_mtok=Decimal("0.025"),
            output_usd_per_mtok=Decimal("0.10"),
        ),
        Price(
            slo_class="interactive",
            input_usd_per_mtok=Decimal("0.10"),
            cached_input_usd_per_mtok=Decimal("0.05"),
            output_usd_per_mtok=Decimal("0.20"),
        ),
        Price(
            slo_class="batch",
            input_usd_per_mtok=Decimal("0.025"),
            cached_input_usd_per_mtok=Decimal("0.0125"),
            output_usd_per_mtok=Decimal("0.05"),
        ),
    )

    @field_validator("prices")
    @classmethod
    def _prices_everything_once(cls, prices: tuple[Price, ...]) -> tuple[Price, ...]:
        named = [(each.model, each.tenant, each.plan, each.slo_class) for each in prices]
        if ("", "", "", "") not in named:
            raise ValueError("one entry must name no model, tenant or slo_class: it prices what no other entry names")
        seen: set[tuple[str, str, str, str]] = set()
        for each in named:
            if each in seen:
                raise ValueError(f"two entries name the same (model, tenant, plan, slo_class) {each}; remove one")
            seen.add(each)
        return prices

    @model_validator(mode="after")
    def _plans_are_known(self) -> Self:
        seen: dict[str, str] = {}
        for plan in self.plans:
            for tenant in plan.tenants:
                if tenant in seen:
                    raise ValueError(f"tenant {tenant!r} is in plan {seen[tenant]!r} and in {plan.name!r}; it has one")
                seen[tenant] = plan.name
        names = [plan.name for plan in self.plans]
        for each in self.prices:
            if each.plan and each.plan not in names:
                raise ValueError(f"an entry names plan {each.plan!r}, which no [[plans]] declares; declared: {names}")
        if self.currency == "USD" and self.usd_per_unit != 1:
            raise ValueError(f"usd_per_unit = {self.usd_per_unit}, but a dollar is a dollar; leave it out")
        return self

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}"

    def find(self, model: str, tenant: str, slo_class: str) -> Price:
        """The entry that prices such a request: the most specific that matches; there is always one.

        More named fields win; of as many, a tenant wins over its plan, that over the model, that over the class.
        """
        keys = (
            (model_key, *whom, class_key)
            for whom in self._names(tenant)
            for model_key in (model, "")
            for class_key in (slo_class, "")
        )
        found = [self._entries[key] for key in dict.fromkeys(keys) if key in self._entries]
        return max(found, key=_specificity)

    def _names(self, tenant: str) -> Iterator[tuple[str, str]]:
        """(tenant, plan) as entries may name this tenant, the most specific first."""
        yield tenant, ""
        if plan := self._plan_of.get(tenant):
            yield "", plan
        yield "", ""

    @cached_property
    def _entries(self) -> Mapping[tuple[str, str, str, str], Price]:
        return {(each.model, each.tenant, each.plan, each.slo_class): each for each in self.prices}

    @cached_property
    def _plan_of(self) -> Mapping[str, str]:
        return {tenant: plan.name for plan in self.plans for tenant in plan.tenants}


def _specificity(price: Price) -> tuple[int, ...]:
    """Order of precedence: how many fields are named; of as many, tenant before plan before model before class."""
    whom = bool(price.tenant or price.plan)
    named = (whom, bool(price.model), bool(price.slo_class))
    return (sum(named), whom, bool(price.tenant), bool(price.model), bool(price.slo_class))
