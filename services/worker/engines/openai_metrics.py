"""How busy a server says it is: its metrics page, read in the words of each kind of server.

In: the text of a page in Prometheus' format, or TensorRT-LLM's list of iterations. Out: a `ServerLoad`. Pure.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Final

_LINE: Final = re.compile(r"^([A-Za-z_:][A-Za-z0-9_:]*)(\{[^}]*\})?\s+(\S+)")
_LABEL: Final = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')

# By figure: names of which a server has one; several lines of a name (engines, ranks) are added, shares averaged.
_RUNNING: Final = (
    "vllm:num_requests_running",
    "sglang:num_running_reqs",
    "llamacpp:requests_processing",
    "tgi_batch_current_size",
    "trtllm_num_requests_running",
    "num_requests_running",  # older NIMs
)
_WAITING: Final = (
    "vllm:num_requests_waiting",
    "sglang:num_queue_reqs",
    "llamacpp:requests_deferred",
    "tgi_queue_size",
    "trtllm_num_requests_waiting",
    "num_requests_waiting",
)
_KV_USAGE: Final = (
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "sglang:token_usage",
    "llamacpp:kv_cache_usage_ratio",
    "trtllm_kv_cache_utilization",
    "gpu_cache_usage_perc",
)
_PROGRESS: Final = (  # what grows with every step in which anything is computed
    "vllm:generation_tokens_total",
    "sglang:generation_tokens_total",
    "llamacpp:n_decode_total",
    "generation_tokens_total",
)
_VLLM_CACHE: Final = "vllm:cache_config_info"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLoad:
    """What a server says of itself; None where it does not.

    Attributes:
        running, waiting: requests, those of other clients included.
        kv_usage: of its KV cache, 0 to 1.
        progress: grows with every step that computed something.
        kv_capacity_tokens: of its KV cache.
    """

    running: int | None = None
    waiting: int | None = None
    kv_usage: float | None = None
    progress: float | None = None
    kv_capacity_tokens: int | None = None

    @property
    def tells_nothing(self) -> bool:
        return self.running is None and self.waiting is None and self.kv_usage is None


def read_metrics(page: str) -> ServerLoad:
    """The load on a metrics page; what cannot be read is as if it were not there."""
    if page.lstrip().startswith(("[", "{")):
        return _iterations(page)
    values: dict[str, list[float]] = {}
    capacity: int | None = None
    for line in page.splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        name, labels, value = found.groups()
        if name == _VLLM_CACHE:
            capacity = (capacity or 0) + _vllm_capacity(labels or "")
            continue
        try:
            values.setdefault(name, []).append(float(value))
        except ValueError:
            continue
    running, waiting = _first(values, _RUNNING), _first(values, _WAITING)
    usage, progress = _first(values, _KV_USAGE), _first(values, _PROGRESS)
    return ServerLoad(
        running=None if running is None else max(0, int(sum(running))),
        waiting=None if waiting is None else max(0, int(sum(waiting))),
        kv_usage=None if usage is None else min(1.0, max(0.0, sum(usage) / len(usage))),
        progress=None if progress is None else sum(progress),
        kv_capacity_tokens=capacity or None,
    )


def _first(values: dict[str, list[float]], names: tuple[str, ...]) -> list[float] | None:
    return next((values[name] for name in names if name in values), None)


def _vllm_capacity(labels: str) -> int:
    told = dict(_LABEL.findall(labels))
    try:
        return int(told["num_gpu_blocks"]) * int(told["block_size"])
    except (KeyError, ValueError):
        return 0


def _iterations(page: str) -> ServerLoad:
    """TensorRT-LLM's: statistics of the iterations since they were last asked for, the newest last."""
    try:
        told = json.loads(page)
        newest: dict[str, Any] = told[-1] if isinstance(told, list) else told
        cache = newest.get("kvCacheStats") or {}
        used, most = cache.get("usedNumBlocks"), cache.get("maxNumBlocks")
        block_tokens = cache.get("tokensPerBlock")
        return ServerLoad(
            running=newest.get("numActiveRequests"),
            waiting=newest.get("numQueuedRequests"),
            kv_usage=min(1.0, used / most) if used is not None and most else None,
            progress=newest.get("iter"),
            kv_capacity_tokens=most * block_tokens if most and block_tokens else None,
        )
    except (ValueError, TypeError, IndexError, AttributeError):
        return ServerLoad()
