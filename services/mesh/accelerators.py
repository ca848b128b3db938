"""The catalogue: what each accelerator and each model is, from `catalogue.toml`, and the roofline that follows.

In: the names of an accelerator and a model. Out: their figures with sources, the starting `Timing` of the pair, the
KV-cache tokens that fit beside the weights, and watts at a load. The optimizer refits the timing from events.

A worker that uses several devices at once is one accelerator to the mesh, called `<key>-x<devices>`: it has their
memory, speed, watts and rate together. That nothing is lost between the devices is where the timing starts from, not a
claim: the optimizer's fit tells.

What a site declares in `[catalogue]` of its tokenworks.toml is laid over the rows that ship: its own accelerators and
models, its own rates; and over that, as JSON, what TOKENWORKS_CATALOGUE_MODELS, …_ACCELERATORS and …_DEFAULTS say.
"""

import functools
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Final

from services.mesh.errors import SettingInvalid
from services.mesh.money import usd_to_nusd
from services.mesh.timing import Timing


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One kind of accelerator; figures are for one device.

    Attributes:
        assumed: names of the fields that rest on an assumption, not on a published figure.
        detect: what vendors' libraries call it, as patterns with `*` and `?`; upper and lower case are alike.
        cpu: the machine's own processor, whose memory is the machine's.
        devices: how many of them this is; all figures are theirs together.
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
    detect: tuple[str, ...] = ()
    cpu: bool = False
    devices: int = 1

    def power_w(self, utilisation: float) -> float:
        """Watts at a utilisation of 0 to 1: linear between idle and TDP."""
        # Comparisons stand in place of `min` and `max`: a simulation asks for every step.
        part = (utilisation if utilisation < 1.0 else 1.0) if utilisation > 0.0 else 0.0
        return self.idle_w + (self.tdp_w - self.idle_w) * part

    def times(self, devices: int) -> "Accelerator":
        """That many of them, used as one; this must be one device, `devices` >= 1."""
        assert self.devices == 1, self.key
        if devices == 1:
            return self
        return replace(
            self,
            key=f"{self.key}-x{devices}",
            name=f"{devices} x {self.name}",
            bf16_flops=self.bf16_flops * devices,
            memory_bytes=self.memory_bytes * devices,
            bandwidth_bytes_s=self.bandwidth_bytes_s * devices,
            tdp_w=self.tdp_w * devices,
            idle_w=self.idle_w * devices,
            rate_nusd_per_hour=self.rate_nusd_per_hour * devices,
            devices=devices,
        )


_SEVERAL: Final = re.compile(r"(.+)-x([2-9]|[1-9][0-9]{1,3})")


def split_devices(key: str) -> tuple[str, int]:
    """What one device is called, and how many of them `key` names: ("nvidia-h100-sxm", 4) of "nvidia-h100-sxm-x4"."""
    several = _SEVERAL.fullmatch(key)
    return (several[1], int(several[2])) if several else (key, 1)


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

    def find(self, key: str) -> Accelerator | None:
        """The accelerator called `key`, which may name several devices; None when there is none."""
        if (known := self.accelerators.get(key)) is not None:
            return known
        name, devices = split_devices(key)
        one = self.accelerators.get(name)
        return one.times(devices) if one is not None else None

    def accelerator(self, key: str) -> Accelerator:
        """As `find`. Raises SettingInvalid: no accelerator is called `key`."""
        found = self.find(key)
        if found is None:
            known = ", ".join(sorted(self.accelerators))
            raise SettingInvalid(
                f"accelerator {key!r} is not in the catalogue; use one of: {known}; or declare it under"
                f" [catalogue.accelerators.{key}] in tokenworks.toml"
            )
        return found

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


_NEEDED: Final = ("vendor", "name", "bf16_tflops", "memory_gb", "bandwidth_tb_s", "tdp_w", "rate_usd_per_hour")
_OPTIONAL: Final = ("idle_w", "assumed", "source", "detect", "cpu")


def _accelerator(key: str, row: Mapping[str, Any], defaults: Defaults) -> Accelerator:
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
        assumed=tuple(row.get("assumed", ())),
        source=row.get("source", "declared in tokenworks.toml"),
        detect=tuple(row.get("detect", ())),
        cpu=bool(row.get("cpu", False)),
    )


def read_catalogue(declared: Mapping[str, Any]) -> Catalogue:
    """The catalogue that ships, with what a site declares laid over it, field by field.

    Args:
        declared: the `[catalogue]` table of tokenworks.toml: `defaults`, `accelerators` and `models`, each optional.

    Raises:
        SettingInvalid: names the row and what is wrong with it.
    """
    text = resources.files("services.mesh").joinpath("catalogue.toml").read_text(encoding="utf-8")
    data = tomllib.loads(text)
    _lay_over(data, declared)
    defaults = _row("defaults", Defaults, data["defaults"])
    accelerators = {}
    for key, row in data["accelerators"].items():
        where = f"catalogue.accelerators.{key}"
        _check_names(where, row, needed=_NEEDED, optional=_OPTIONAL)
        if split_devices(key)[1] > 1:
            raise SettingInvalid(f"{where}: a name that ends in -x and a number is that many devices; name one device")
        try:
            accelerators[key] = _accelerator(key, row, defaults)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise SettingInvalid(f"{where}: {error}; the rows of services/mesh/catalogue.toml show the form") from error
    models = {
        key: _row(f"catalogue.models.{key}", ModelShape, {"key": key, "source": "declared in tokenworks.toml", **row})
        for key, row in data["models"].items()
    }
    return Catalogue(defaults=defaults, accelerators=accelerators, models=models)


@functools.cache
def load_catalogue() -> Catalogue:
    """The catalogue of this process, with what its tokenworks.toml and its environment declare; read once.

    Raises:
        SettingInvalid: see `read_catalogue`; or the file cannot be read.
    """
    path = Path(os.environ.get("TOKENWORKS_CONFIG", "tokenworks.toml"))
    try:
        declared = tomllib.loads(path.read_text(encoding="utf-8")).get("catalogue", {}) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise SettingInvalid(f"{path} could not be read: {error}") from error
    for section in ("defaults", "accelerators", "models"):
        variable = f"TOKENWORKS_CATALOGUE_{section.upper()}"
        if text := os.environ.get(variable):
            try:
                declared = {**declared, section: {**declared.get(section, {}), **json.loads(text)}}
            except (TypeError, ValueError) as error:
                raise SettingInvalid(f"{variable} is no table in JSON: {error}") from error
    return read_catalogue(declared)


def _lay_over(data: dict[str, Any], declared: Mapping[str, Any]) -> None:
    for section, rows in declared.items():
        if section not in data or not isinstance(rows, Mapping):
            raise SettingInvalid(f"catalogue.{section} is none of: {', '.join(data)}; each is a table")
        for key, row in rows.items():
            if section != "defaults" and not isinstance(row, Mapping):
                raise SettingInvalid(f"catalogue.{section}.{key} = {row!r} is no table of figures")
            data[section][key] = {**data[section].get(key, {}), **row} if section != "defaults" else row


def _check_names(where: str, row: Mapping[str, Any], *, needed: tuple[str, ...], optional: tuple[str, ...]) -> None:
    missing = [name for name in needed if name not in row]
    unknown = [name for name in row if name not in needed and name not in optional]
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has {', '.join(unknown)}, which is not known"] if unknown else []
        raise SettingInvalid(f"{where} {' and '.join(parts)}; the rows of services/mesh/catalogue.toml show the form")


def _row(where: str, cls: Any, row: Mapping[str, Any]) -> Any:
    _check_names(where, row, needed=tuple(each.name for each in fields(cls)), optional=())
    return cls(**row)
