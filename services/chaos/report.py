"""The report of a run: what was done, what was checked, and one line at the end."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from services.chaos.core.faults import Fault
from services.chaos.core.figures import Done, Pause, SlowShare, pauses, slow_share
from services.chaos.core.streams import Outcome
from services.chaos.core.verdict import Check


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run.

    Attributes:
        planned: the whole schedule, to have the run again.
        skipped: what could not be broken here, and why.
        command: that makes the run again.
        load_began_s: of the outcomes' clock.
        workers: of the mesh.
        broke_off: why the run ended early; empty when it did not.
    """

    seed: int
    command: str
    planned: Sequence[Fault]
    done: Sequence[Done]
    skipped: Sequence[str]
    outcomes: Sequence[Outcome]
    checks: Sequence[Check]
    duration_s: float
    load_began_s: float
    workers: int
    broke_off: str = ""

    @property
    def injected(self) -> list[Done]:
        return [each for each in self.done if not each.failed_because]

    @property
    def violations(self) -> list[str]:
        found = [violation for check in self.checks for violation in check.violations]
        return [*([self.broke_off] if self.broke_off else []), *found]

    @property
    def longest_pause(self) -> Outcome | None:
        """The stream with the longest pause between two tokens."""
        return max(self.outcomes, key=lambda each: each.longest_pause_s, default=None)

    @property
    def pauses(self) -> list[Pause]:
        return pauses(self.done, self.outcomes, self.load_began_s)

    @property
    def slow_share(self) -> SlowShare:
        return slow_share(self.done, self.outcomes, self.load_began_s, self.workers)

    @property
    def line(self) -> str:
        served = sum(not each.refused_because for each in self.outcomes)
        tokens = sum(each.tokens for each in self.outcomes)
        return (
            f"{len(self.injected)} faults injected, {served} streams checked, {tokens:,} tokens counted,"
            f" {len(self.violations)} violations (seed {self.seed})"
        )

    def lines(self) -> list[str]:
        """For a person."""
        found = [f"What was done in {self.duration_s:.0f} s, and the longest pause of a stream meanwhile:"]
        found += [f"  {each.faults:3} {each.kind} {each.role}: {each.longest_s:.2f} s" for each in self.pauses]
        found += [
            f"  not carried out: {each.fault.words}: {each.failed_because}" for each in self.done if each.failed_because
        ]
        found += [f"  not done here: {words}" for words in self.skipped]
        found.append("What was checked:")
        for check in self.checks:
            found.append(f"  {'VIOLATED' if check.violations else 'kept'}: {check.name}: {check.compared}")
            found += [f"    {violation}" for violation in check.violations]
        if (worst := self.longest_pause) is not None:
            found.append(f"The longest pause within a stream was {worst.longest_pause_s:.2f} s.")
        if (slow := self.slow_share).began:
            found.append(
                f"Of {slow.began} requests that began while a worker was slow, {slow.share:.0%} went to it; its equal"
                f" part is {slow.fair:.0%}."
            )
        if self.broke_off:
            found.append(f"The run broke off: {self.broke_off}")
        if self.violations:
            found.append(f"To have it again: {self.command}; the schedule is in the JSON report.")
        return [*found, self.line]

    def document(self) -> dict[str, Any]:
        """As JSON."""
        worst = self.longest_pause
        return {
            "line": self.line,
            "seed": self.seed,
            "duration_s": round(self.duration_s, 2),
            "faults_injected": len(self.injected),
            "streams_checked": sum(not each.refused_because for each in self.outcomes),
            "tokens_counted": sum(each.tokens for each in self.outcomes),
            "longest_pause_s": round(worst.longest_pause_s, 3) if worst else 0.0,
            "pauses": [asdict(each) for each in self.pauses],
            "slow_share": asdict(self.slow_share) | {"share": round(self.slow_share.share, 3)},
            "command": self.command,
            "violations": self.violations,
            "checks": [asdict(check) for check in self.checks],
            "skipped": list(self.skipped),
            "done": [
                each.fault.document()
                | {
                    "done_at_s": round(each.at_s, 2),
                    "back_after_s": round(each.back_after_s, 2),
                    "failed_because": each.failed_because,
                }
                for each in self.done
            ],
            "schedule": [fault.document() for fault in self.planned],
        }
