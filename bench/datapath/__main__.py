"""Our router's data path: `python -m bench.datapath [--quick] [--only cost,ttft,…] [--out datapath]`.

In: nothing but this checkout. Out: a table, and `bench/results/<out>.json`.
"""

import argparse
from typing import Any

from bench.datapath.measure import QUICK, Plan, measured
from bench.datapath.ours import SUBJECTS
from bench.datapath.processes import raise_open_files
from bench.datapath.report import tables
from bench.datapath.subject import SCENARIOS, NoRouter, Subject
from bench.record import write


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small loads, once: to see that it works")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--only", default="", help=f"some of {','.join(SCENARIOS)}")
    parser.add_argument("--subjects", default="", help="part of the names of what is measured, by commas")
    parser.add_argument("--out", default="datapath", help="name of the result")
    options = parser.parse_args()
    raise_open_files()
    plan = QUICK if options.quick else Plan(repetitions=options.repetitions)
    only = [each for each in options.only.split(",") if each]

    def figures_of(subject: Subject, only: list[str]) -> dict[str, Any]:
        return measured(subject, plan, say, fresh=True, only=only)

    wanted = [each.lower() for each in options.subjects.split(",")]
    plain = figures_of(NoRouter(), only)
    ours = [figures_of(each, only) for each in SUBJECTS if any(name in each.name.lower() for name in wanted)]
    print(tables(ours, plain, {}))
    print(f"written to {write(options.out, {'plan': repr(plan), 'plain': plain, 'subjects': ours})}")


if __name__ == "__main__":
    main()
