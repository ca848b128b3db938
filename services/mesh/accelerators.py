"""The catalogue: what each accelerator and each model is, from `catalogue.toml`, and the roofline that follows.

In: the names of an accelerator and a model. Out: their figures with sources, the starting `Timing` of the pair, the
KV-cache tokens that fit beside the weights, and watts at a load. The optimizer refits the timing from events.
"""

import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from services.mesh.errors import SettingInvalid
from services.mesh.money import usd_to_nusd
from services.mesh.timing import Timing


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One kind of accelerator; figures are for one device.

    Attributes:
        assumed: names of the fields that rest on an assumption, not on a published figure.
    """

    key: str
    vendor: str
    name: str
    bf16_flops: float
    memory_bytes: int
    bandwidth_bytes_s: float
    tdp_w: float
    idle_w: float
    rate_nusd_per_hour: int
    assumed: tuple[str, ...]
    source: str

    def power_w(self, utilisation: float) -> float:
        """Watts at a utilisation of 0 to 1: linear between idle and TDP."""
        return self.idle_w + (self.tdp_w - self.idle_w) * min(1.0, max(0.0, utilisation))


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model decides its speed."""

    key: str
    parameters: int
    layers: int
    hidden: int
    kv_heads: int
    head_dim: int
    weight_bytes_per_parameter: float
    kv_bytes_per_value: float
    context_tokens: int
    source: str

    @property
    def weight_bytes(self) -> float:
        return self.parameters * self.weight_bytes_per_parameter

    @property
    def kv_bytes_per_token(self) -> float:
        """Key and value of every layer."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.kv_bytes_per_value


@dataclass(frozen=True, slots=True)
class Defaults:
    prefill_utilisation: float
    bandwidth_utilisation: float
    memory_utilisation: float
    launch_s: float
    sequence_s: float
    idle_power_fraction: float


@dataclass(frozen=True, slots=True)
class Catalogue:
    defaults: Defaults
    accelerators: dict[str, Accelerator]
    models: dict[str, ModelShape]

    def accelerator(self, key: str) -> Accelerator:
        """Raises SettingInvalid: no accelerator is called `key`."""
        try:
            return self.accelerators[key]
        except KeyError:
            known = ", ".join(sorted(self.accelerators))
            raise SettingInvalid(f"accelerator {key!r} is not in the catalogue; use one of: {known}") from None

    def model(self, key: str) -> ModelShape:
        """Raises SettingInvalid: no model is called `key`."""
        try:
            return self.models[key]
        except KeyError:
            known = ", ".join(sorted(self.models))
            raise SettingInvalid(f"model {key!r} is not in the catalogue; use one of: {known}") from None

    def timing(self, accelerator: Accelerator, model: ModelShape) -> Timing:
        """The roofline of the pair: where the optimizer starts, and what the simulated engine runs by."""
        flops = accelerator.bf16_flops * self.defaults.prefill_utilisation
        bytes_s = accelerator.bandwidth_bytes_s * self.defaults.bandwidth_utilisation
        token_s = 2 * model.parameters / flops
        return Timing(
            prefill_overhead_s=self.defaults.launch_s,
            prefill_s_per_token=token_s,
            # One query against one key and value: 2 multiply-adds per hidden unit and layer.
            prefill_s_per_attended_token=4 * model.layers * model.hidden / flops,
            decode_base_s=self.defaults.launch_s + model.weight_bytes / bytes_s,
            decode_s_per_sequence=self.defaults.sequence_s + token_s,
            decode_s_per_kv_token=model.kv_bytes_per_token / bytes_s,
        )

    def kv_capacity_tokens(self, accelerator: Accelerator, model: ModelShape) -> int:
        """Tokens of KV cache that fit beside the weights; 0 when the weights alone do not fit."""
        free = accelerator.memory_bytes * self.defaults.memory_utilisation - model.weight_bytes
        return max(0, int(free / model.kv_bytes_per_token))


def _accelerator(key: str, row: dict[str, Any], defaults: Defaults) -> Accelerator:
    return Accelerator(
        key=key,
        vendor=row["vendor"],
        name=row["name"],
        bf16_flops=row["bf16_tflops"] * 1e12,
        memory_bytes=int(row["memory_gb"] * 1e9),
        bandwidth_bytes_s=row["bandwidth_tb_s"] * 1e12,
        tdp_w=row["tdp_w"],
        idle_w=row.get("idle_w", row["tdp_w"] * defaults.idle_power_fraction),
        rate_nusd_per_hour=usd_to_nusd(row["rate_usd_per_hour"]),
        assumed=tuple(row["assumed"]),
        source=row["source"],
    )


@functools.cache
def load_catalogue() -> Catalogue:
    """The catalogue that ships with the package; read once."""
    text = resources.files("services.mesh").joinpath("catalogue.toml").read_text(encoding="utf-8")
    data = tomllib.loads(text)
    defaults = Defaults(**data["defaults"])
    return Catalogue(
        defaults=defaults,
        accelerators={key: _accelerator(key, row, defaults) for key, row in data["accelerators"].items()},
        models={key: ModelShape(key=key, **row) for key, row in data["models"].items()},
    )
