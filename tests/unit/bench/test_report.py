"""The tables."""

from typing import Any

from bench.datapath.report import comparison, tables


def costs(**changes: Any) -> dict[str, Any]:
    return {
        "streams": 64,
        "step_ms": 20.0,
        "us_per_request": 250.0,
        "us_per_token": 36.0,
        "us_per_request_of_256": 9466.0,
        "failed": 0,
        "unfinished": 0,
        "runs": [{"requests": 256}],
        **changes,
    }


PLAIN = {
    "name": "no router",
    "ttft": [{"ttft_p50_ms": 0.5, "ttft_p99_ms": 1.0}],
    "hold": {"gap_p99_ms": 205.0},
}


def row(table: str, name: str, of: int = 0) -> list[str]:
    rows = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in rows[of].split("|")[1:-1]]


def test_medians_stand_with_their_spread_where_repetitions_lie_apart() -> None:
    alike, apart = costs(), costs(us_per_request=300.0)
    table = tables([{"name": "smg", "version": "1", "policy": "p", "costs": [alike, alike, apart]}], PLAIN, {})
    told = row(table, "smg")
    assert told[1:4] == ["1, p", "250 (250 to 300)", "- · 36.0 · -"]


def test_time_to_first_token_and_gaps_are_told_beyond_those_without_a_router() -> None:
    figures = {
        "name": "smg",
        "ttft": [{"ttft_p50_ms": 1.25, "ttft_p99_ms": 4.0}],
        "hold": {"gap_p99_ms": 225.5, "rss_bytes_per_stream": 50_400.0, "errors": 3},
        "slow": {"gap_p99_without_ms": 105.0, "gap_p99_with_ms": 106.4, "rss_growth_bytes": 1_500_000},
        "kill": [{"lost": 25}, {"lost": 21}],
    }
    told = row(tables([figures], PLAIN, {}), "smg", of=1)
    assert told[1:] == ["0.75 / 3.0", "21 to 25", "50", "3", "20.5", "105 → 106 (1.5)"]


def test_what_one_more_process_adds_stands_beside_what_it_costs() -> None:
    figures = {"rps": 900.0, "us_per_request": 700.0, "router_cores": 0.63, "client_cores": 0.4, "failed": 0}
    table = tables([{"name": "one", "throughput": [figures]}, {"name": "none"}], PLAIN, {})
    assert row(table, "one")[1:] == ["900", "700", "0.63", "0.40", "0"]
    assert len([line for line in table.splitlines() if line.startswith("| none |")]) == 2


def test_what_was_not_measured_is_said_and_not_invented() -> None:
    table = tables([{"name": "smg"}], PLAIN, {"nginx": "no nginx on the path"})
    assert "nginx was not measured: no nginx on the path" in table
    assert set(row(table, "smg")[2:]) <= {"-", "- · - · -"}


def test_ours_are_compared_with_the_lowest_of_the_others() -> None:
    ours = {"name": "ours", "costs": [costs(us_per_token=9.0)]}
    peers = [
        {"name": "smg", "costs": [costs(us_per_token=36.0)]},
        {"name": "vllm", "costs": [costs(us_per_token=30.0)]},
    ]
    told = row(comparison([ours], peers), "per token, 64 streams")
    assert told == ["per token, 64 streams", "vllm: 30.0", "0.30"]
    assert comparison([ours], []) == ""


def test_requests_that_failed_while_costs_were_measured_are_told() -> None:
    table = tables([{"name": "smg", "costs": [costs(failed=3, unfinished=1)]}], PLAIN, {})
    assert "smg: 4 of 256 requests failed or took too long" in table
