"""Costs come to the fleet's bill on a small trace with workers joining, leaving and dying."""

from pathlib import Path

from bench.fleet_bill import generated_trace, run
from services.meter.core.fleet_bill import IdleRule


def test_all_costs_come_to_the_bill_while_workers_join_leave_and_die(tmp_path: Path) -> None:
    trace = generated_trace(60, 60.0, 2)
    fleet = "1 nvidia-h100-sxm, 2 nvidia-l4"
    found = run(trace, fleet, speed=1.0, rule=IdleRule.BY_TOKENS, folder=tmp_path)
    assert found["agrees"]
    assert min(found["resumed"], found["late"], found["duplicates"]) > 0
    assert found["accounts_nusd"]["house.waste"] > 0
    assert found["accounts_nusd"]["house.replay"] > 0
    assert found["accounts_nusd"]["house.warm_up"] > 0
