"""Where requests may be computed: what a worker is, and what a tenant or a key asks of one.

In: settings and keys. Out: `Confines`, which admit a `Site` or not, and their text, which events and plans carry:
`region=eu-1|eu-2;vendor=amd;data=health`.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

from pydantic import field_validator

from services.mesh.section import Identifier, Section

_NOWHERE: Final = "(none)"  # what two that exclude each other have in common; no setting can say it


class Site(NamedTuple):
    """Where a worker stands, who made its accelerator, and which classes of data it is cleared for."""

    region: str = ""
    vendor: str = ""
    data_classes: tuple[str, ...] = ()


NO_SITE: Final = Site()


@dataclass(frozen=True, slots=True)
class Confines:
    """What a worker must be to get a request; false where it may be any.

    Attributes:
        regions, vendors: one of them; any where empty.
        data_classes: cleared for all of them.
    """

    regions: tuple[str, ...] = ()
    vendors: tuple[str, ...] = ()
    data_classes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.regions or self.vendors or self.data_classes)

    def __str__(self) -> str:
        if not self:
            return ""
        parts = (("region", self.regions), ("vendor", self.vendors), ("data", self.data_classes))
        return ";".join(f"{name}={'|'.join(values)}" for name, values in parts if values)

    @classmethod
    def parse(cls, text: str) -> "Confines":
        """The confines of a text; `ANYWHERE` for an empty one.

        Raises:
            ValueError: it is none; says what one looks like.
        """
        if not text:
            return ANYWHERE
        found: dict[str, tuple[str, ...]] = {}
        for part in text.split(";"):
            name, _, values = part.partition("=")
            if name not in ("region", "vendor", "data") or not values or name in found:
                raise ValueError(f"{text!r} does not say where requests may go, as 'region=eu-1|eu-2;data=health' does")
            found[name] = tuple(values.split("|"))
        return cls(found.get("region", ()), found.get("vendor", ()), found.get("data", ()))

    def admits(self, site: Site) -> bool:
        return not self.missing(site)

    def missing(self, site: Site) -> str:
        """What a worker there lacks, as `region=eu-1|eu-2`; empty where it is admitted."""
        if self.regions and site.region not in self.regions:
            return str(Confines(regions=self.regions))
        if self.vendors and site.vendor not in self.vendors:
            return str(Confines(vendors=self.vendors))
        lacking = tuple(each for each in self.data_classes if each not in site.data_classes)
        return str(Confines(data_classes=lacking)) if lacking else ""

    def parts(self) -> tuple["Confines", ...]:
        """Each constraint by itself."""
        every = (
            Confines(regions=self.regions),
            Confines(vendors=self.vendors),
            *[Confines(data_classes=(each,)) for each in self.data_classes],
        )
        return tuple(each for each in every if each)

    def both(self, other: "Confines") -> "Confines":
        """What keeps within these and the others."""
        if not other:
            return self
        if not self:
            return other
        return Confines(
            _common(self.regions, other.regions),
            _common(self.vendors, other.vendors),
            tuple(sorted({*self.data_classes, *other.data_classes})),
        )


ANYWHERE: Final = Confines()


def _common(some: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    if not some or not others:
        return some or others
    return tuple(each for each in some if each in others) or (_NOWHERE,)


class ConfinesSettings(Section):
    """Where a tenant's requests may be computed; what is empty confines nothing."""

    regions: tuple[Identifier, ...] = ()
    vendors: tuple[Identifier, ...] = ()
    data_classes: tuple[Identifier, ...] = ()

    @field_validator("regions", "vendors", "data_classes")
    @classmethod
    def _in_order(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(values)))

    @property
    def confines(self) -> Confines:
        return Confines(self.regions, self.vendors, self.data_classes)
