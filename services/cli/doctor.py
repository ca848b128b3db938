"""`tokenworks doctor`: what is missing on this machine, what does not answer, and what would do."""

import asyncio

import typer
from rich.markup import escape

from services.cli.options import JsonFlag
from services.cli.output import command


def doctor(*, as_json: JsonFlag = False) -> None:
    """Check this machine and the mesh on it; exit status 1 when something is wrong."""
    with command(as_json) as output:
        from services.cli.access import read_access
        from services.cli.books_checks import check_books
        from services.cli.checks import Check, Severity, run_checks
        from services.cli.hardware_checks import check_hardware
        from services.cli.report_view import table

        async def every() -> list[Check]:
            found = await run_checks()
            if not any(each.name == "settings" and each.severity is Severity.WRONG for each in found):
                found += await check_books(read_access())
            return [*found, *await check_hardware()]

        found = asyncio.run(every())
        made = table(None, "", "check", "found", "what would do")
        marks = {Severity.OK: "[green]ok[/]", Severity.NOTE: "[yellow]note[/]", Severity.WRONG: "[bold red]wrong[/]"}
        for each in found:
            made.add_row(marks[each.severity], each.name, escape(each.found), escape(each.would_do))
        for column in made.columns[2:]:
            column.no_wrap = False
        wrong = sum(1 for each in found if each.severity is Severity.WRONG)
        rows = [
            {"check": each.name, "severity": each.severity, "found": each.found, "would_do": each.would_do}
            for each in found
        ]
        output.result({"ok": not wrong, "checks": rows}, made)
        if wrong:
            raise typer.Exit(1)
