"""What a run of the fuzzer says: per target what was sent, what came of it, what was wrong, and how memory grew.

Out: JSON, one line, and rows of a table.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_FINDINGS_SHOWN: Final = 20
_OUTCOMES_SHOWN: Final = 12
WARM_AFTER: Final = 10  # batches of a target until what is bounded is taken to be full


@dataclass(slots=True)
class Tally:
    """What came of one target's messages.

    Attributes:
        grown_bytes: of the process, by batch of this target.
    """

    messages: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    cpu_s: float = 0.0
    grown_bytes: list[int] = field(default_factory=list)

    @property
    def later_growth_mib(self) -> float:
        """What the process grew by while this target had its turns, from the tenth on."""
        return sum(self.grown_bytes[WARM_AFTER:]) / 2**20


@dataclass(slots=True)
class Report:
    """A whole run.

    Attributes:
        findings: what was wrong, each kind once, with how often it came.
        details: of some findings, what to send again, or a trace.
        memory_mib: the process after each round, over what it had before the first.
    """

    seed: int
    first: int = 0
    targets: dict[str, Tally] = field(default_factory=dict)
    findings: Counter[str] = field(default_factory=Counter)
    details: dict[str, str] = field(default_factory=dict)
    memory_mib: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def messages(self) -> int:
        return sum(each.messages for each in self.targets.values())

    @property
    def violations(self) -> int:
        return sum(self.findings.values())

    def line(self) -> str:
        """The whole run in one line."""
        least = min((each.messages for each in self.targets.values()), default=0)
        grown = self.memory_mib[-1] if self.memory_mib else 0.0
        since = self.memory_mib[WARM_AFTER - 1 :]
        later = f", {since[-1] - since[0]:+.0f} of it since round {WARM_AFTER}" if len(since) > 1 else ""
        return (
            f"fuzz: {self.messages} messages to {len(self.targets)} targets, {least} or more to each, seed {self.seed},"
            f" {self.cpu_s:.0f} CPU-s, memory {grown:+.0f} MiB{later}: {self.violations} violations"
        )

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "seed": self.seed,
            "first": self.first,
            "messages": self.messages,
            "violations": self.violations,
            "findings": dict(self.findings.most_common(_FINDINGS_SHOWN)),
            "details": {each: self.details[each] for each in list(self.details)[:_FINDINGS_SHOWN]},
            "wall_s": round(self.wall_s, 1),
            "cpu_s": round(self.cpu_s, 1),
            "memory_mib": [round(each, 1) for each in self.memory_mib],
            "targets": {
                name: {
                    "messages": each.messages,
                    "wrong": each.wrong,
                    "cpu_s": round(each.cpu_s, 1),
                    "growth_mib": round(sum(each.grown_bytes) / 2**20, 1),
                    "later_growth_mib": round(each.later_growth_mib, 1),
                    "outcomes": dict(each.outcomes.most_common(_OUTCOMES_SHOWN)),
                }
                for name, each in sorted(self.targets.items())
            },
        }


def write(report: Report, path: Path) -> None:
    """The report as a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report.document(), indent=1) + "\n", encoding="utf-8")
