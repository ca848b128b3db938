"""`python -m tests.fuzz MESSAGES [SEED]`: fuzzes a mesh of this process; ends in one line, and 1 if it is not well.

Options by environment: ONLY, the beginning of targets' names ("nats", "http router"); FROM, the number of the first
message, to go on where a run ended; REPLAY, the number of the only one; MINUTES, after which no further round begins;
OUT, the report, written after each round; DETAILS, to see traces.
"""

import asyncio
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its core writes a line for each bad header

from tests.fuzz.report import Report, write
from tests.fuzz.run import fuzz


def main() -> int:
    messages, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    first = int(os.environ.get("FROM") or 0)
    if replay := os.environ.get("REPLAY"):
        first, messages = int(replay), int(replay) + 1
    only, out = os.environ.get("ONLY", ""), Path(os.environ.get("OUT", "bench/results/fuzz.json"))

    def say(report: Report) -> None:
        print(report.line(), file=sys.stderr, flush=True)
        write(report, out)

    until_s = time.monotonic() + 60 * float(os.environ.get("MINUTES") or "inf")
    report = asyncio.run(
        fuzz(messages, seed, first=first, only=lambda name: name.startswith(only), until_s=until_s, say=say)
    )
    for finding, count in report.findings.most_common(40):
        print(f"{count} x {finding}", file=sys.stderr)
    if os.environ.get("DETAILS"):
        for finding, detail in report.details.items():
            print(f"--- {finding}\n{detail}", file=sys.stderr)
    write(report, out)
    print(report.line())
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
