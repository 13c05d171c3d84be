"""What a terminal shows: signs of life while something runs, and tables; and where a run goes.

Nothing moves where the output is a file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console


def _console(stderr: bool = False) -> "Console":
    """A wide one where the output is a file."""
    from rich.console import Console

    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=160)


@contextmanager
def status(what: str) -> Iterator[None]:
    """A sign of life on a terminal, and nothing elsewhere."""
    console = _console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(f"{what} …"):
        yield


def show_table(table: "pd.DataFrame") -> None:
    """One table for each data part and front end."""
    from rich.table import Table

    for (data, end), rows in table.groupby(["data", "front_end"], sort=False):  # pyright: ignore
        shown = Table(title=f"{data}, front end {end} (nats)", title_justify="left", box=None)
        for name in ("hypothesis", "gauge", "kind"):
            shown.add_column(name)
        numbers = ["elpd", "se", "elpd_diff", "dse", "weight"]
        numbers += ["bits_per_spike"] if "bits_per_spike" in rows else []
        for name in numbers:
            shown.add_column(name, justify="right")
        shown.add_column("verdict")
        for row in rows.to_dict("records"):
            digits = {"weight": 2, "bits_per_spike": 3}
            cells = [f"{row[n]:.{digits.get(n, 1)}f}".replace("nan", "") for n in numbers]
            shown.add_row(row["hypothesis"], row["gauge"], row["kind"], *cells, row["verdict"])
        _console().print(shown, "")


def next_run() -> Path:
    """The next numbered folder under runs/."""
    taken = [int(p.name) for p in Path("runs").glob("*") if p.name.isdigit()]
    return Path("runs") / f"{max(taken, default=0) + 1:03d}"
