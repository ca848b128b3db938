"""What sections of settings, and files that people write, are made of: frozen, and without fields that nobody knows."""

from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from services.mesh.conventions import LONGEST_NAME

Port = Annotated[int, Field(ge=0, le=65_535)]
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
Name = Annotated[str, Field(max_length=LONGEST_NAME)]  # goes over the bus as it is
Usd = Annotated[Decimal, Field(ge=0, max_digits=18, decimal_places=9)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
