"""The figures of several subjects as tables of Markdown: what a request and a token cost, and what a client notices.

A figure is the median of the repetitions; where they lie apart by more than a tenth, least and most stand beside it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from bench.datapath.fit import Spread, spread
from bench.datapath.measure import added_ttft, cost_of

Figures = Mapping[str, Any]

_NOTHING: Final = "-"
_APART: Final = 0.1
_COSTS: Final = (
    "router",
    "version, policy",
    "per request",
    "per token, 20 ms apart, at 8 · 64 · 256 streams",
    "per token, back to back, at 8 · 64 · 256 streams",
    "request of 256 tokens",
    "at rest, ms/s",
)
_NOTICED: Final = (
    "router",
    "added TTFT p50 / p99, ms",
    "of 50 streams lost when one of two backends is SIGKILLed",
    "memory per stream, KB",
    "errors among 2,000 streams",
    "their added gap p99, ms",
    "gap p99 of 500 without → with a slow reader, ms (router grew by, MB)",
)
_THROUGHPUT: Final = (
    "router",
    "requests a second",
    "CPU microseconds of the router per request",
    "cores taken by the router",
    "by the load",
    "failed",
)
_COMPARED: Final = (
    ("per request", 64, 20.0, "us_per_request"),
    ("per token, 8 streams", 8, 20.0, "us_per_token"),
    ("per token, 64 streams", 64, 20.0, "us_per_token"),
    ("per token, 256 streams", 256, 20.0, "us_per_token"),
    ("per token, 64 streams, back to back", 64, 0.0, "us_per_token"),
    ("request of 256 tokens", 64, 20.0, "us_per_request_of_256"),
)


def tables(subjects: Sequence[Figures], plain: Figures, missing: Mapping[str, str]) -> str:
    """All tables.

    Args:
        plain: of the client that talks to a backend.
        missing: peers that could not be measured, and why.
    """
    alone = [each for each in subjects if not (each.get("throughput") and "costs" not in each and "hold" not in each)]
    lines = [
        "CPU microseconds of the router's processes (per request and request of 256 tokens: 64 streams, 20 ms apart):",
        "",
        *_table(_COSTS, [_cost_row(each) for each in alone]),
        "",
        "What a client notices:",
        "",
        *_table(_NOTICED, [_noticed_row(each, plain) for each in alone]),
    ]
    if several := [_throughput_row(each) for each in subjects if each.get("throughput")]:
        lines += [
            "",
            "Requests of one token, as many as are answered; the load and the backends take their part of the cores:",
            "",
            *_table(_THROUGHPUT, several),
        ]
    for each in subjects:
        failed = sum(cost["failed"] + cost["unfinished"] for cost in each.get("costs", ()))
        if failed:
            asked = sum(run["requests"] for cost in each["costs"] for run in cost["runs"])
            lines += [
                "",
                f"{each['name']}: {failed:,} of {asked:,} requests failed or took too long; costs are of what came.",
            ]
    if missing:
        lines += ["", *[f"{name} was not measured: {why}" for name, why in missing.items()]]
    return "\n".join(lines) + "\n"


def comparison(ours: Sequence[Figures], peers: Sequence[Figures]) -> str:
    """Our costs over the lowest of the peers', as a table; below 1, ours costs less."""
    rows = []
    for label, streams, step_ms, what in _COMPARED:
        costs = {each["name"]: cost_of(each, streams, step_ms, what) for each in peers}
        known = {name: cost.median for name, cost in costs.items() if cost is not None}
        if not known:
            continue
        best = min(known, key=known.__getitem__)
        row = [label, f"{best}: {known[best]:,.1f}"]
        for each in ours:
            cost = cost_of(each, streams, step_ms, what)
            row.append(f"{cost.median / known[best]:.2f}" if cost is not None else _NOTHING)
        rows.append(row)
    heads = ("20 ms apart where nothing else is said", "lowest of the others", *[each["name"] for each in ours])
    return "\n".join(_table(heads, rows)) + "\n" if rows else ""


def _cost_row(each: Figures) -> list[str]:
    rest = each.get("at_rest")
    return [
        each["name"],
        ", ".join(filter(None, (each.get("version", ""), each.get("policy", "")))),
        _shown(cost_of(each, 64, 20.0, "us_per_request"), 0),
        " · ".join(_shown(cost_of(each, streams, 20.0, "us_per_token"), 1) for streams in (8, 64, 256)),
        " · ".join(_shown(cost_of(each, streams, 0.0, "us_per_token"), 1) for streams in (8, 64, 256)),
        _shown(cost_of(each, 64, 20.0, "us_per_request_of_256"), 0),
        f"{rest['us_per_s'] / 1000:.1f}" if rest else _NOTHING,
    ]


def _noticed_row(each: Figures, plain: Figures) -> list[str]:
    held, slow, kills = each.get("hold"), each.get("slow"), each.get("kill")
    with_ms, without_ms = (held or {}).get("gap_p99_ms"), plain.get("hold", {}).get("gap_p99_ms")
    gap_ms = with_ms - without_ms if with_ms is not None and without_ms is not None else None
    return [
        each["name"],
        f"{_shown(added_ttft(each, plain, 50), 2)} / {_shown(added_ttft(each, plain, 99), 1)}",
        _whole([kill["lost"] for kill in kills]) if kills else _NOTHING,
        f"{held['rss_bytes_per_stream'] / 1000:.0f}" if held else _NOTHING,
        f"{held['errors']:,}" if held else _NOTHING,
        _NOTHING if gap_ms is None else f"{gap_ms:.1f}",
        _slow(slow) if slow else _NOTHING,
    ]


def _throughput_row(each: Figures) -> list[str]:
    rounds = each["throughput"]
    digits = {"rps": 0, "us_per_request": 0, "router_cores": 2, "client_cores": 2}
    figures = [_shown(spread([one[what] for one in rounds]), places) for what, places in digits.items()]
    return [each["name"], *figures, f"{sum(one['failed'] for one in rounds):,}"]


def _slow(slow: Figures) -> str:
    gaps = [slow["gap_p99_without_ms"], slow["gap_p99_with_ms"]]
    shown = " → ".join(_NOTHING if gap_ms is None else f"{gap_ms:.0f}" for gap_ms in gaps)
    return f"{shown} ({slow['rss_growth_bytes'] / 1e6:.1f})"


def _shown(figure: Spread | None, digits: int) -> str:
    if figure is None:
        return _NOTHING
    shown = f"{figure.median:,.{digits}f}"
    if figure.most - figure.least > _APART * abs(figure.median):
        least, most = f"{figure.least:,.{digits}f}", f"{figure.most:,.{digits}f}"
        if least != most:
            shown += f" ({least} to {most})"
    return shown


def _whole(counts: Sequence[int]) -> str:
    figure = spread(counts)
    alike = figure.least == figure.most
    return f"{figure.median:.0f}" if alike else f"{figure.least:.0f} to {figure.most:.0f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
