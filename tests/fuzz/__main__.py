"""`python -m tests.fuzz MESSAGES [SEED]`: fuzzes a mesh of this process; ends in one line, and 1 if it is not well.

Options by environment: ONLY, a part of targets' names; MINUTES, after which no further round begins; OUT, the report.
"""

import asyncio
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its core writes a line for each bad header

from tests.fuzz.run import fuzz, write


def main() -> int:
    messages, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    only, minutes = os.environ.get("ONLY", ""), float(os.environ.get("MINUTES", "inf"))
    report = asyncio.run(
        fuzz(
            messages,
            seed,
            only=lambda name: only in name,
            until_s=time.monotonic() + 60 * minutes,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    )
    for finding, count in report.findings.most_common(40):
        print(f"{count} x {finding}", file=sys.stderr)
    if os.environ.get("DETAILS"):
        for finding, detail in report.details.items():
            print(f"--- {finding}\n{detail}", file=sys.stderr)
    write(report, Path(os.environ.get("OUT", "bench/results/fuzz.json")))
    print(report.line())
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
