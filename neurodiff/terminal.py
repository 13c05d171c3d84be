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


def show_shared(table: "pd.DataFrame") -> None:
    """The ways to share one hypothesis."""
    from rich.table import Table

    first = table.iloc[0]
    title = f"{first['hypothesis']}, front end {first['front_end']} (nats, over {first['over']})"
    shown = Table(title=title, title_justify="left", box=None)
    shown.add_column("sharing")
    numbers = {"parameters": 0, "elpd": 1, "elpd_diff": 1, "dse": 1, "ln_bf_laplace": 1,
               "ln_bf_bridge": 1, "bf_se": 1}  # fmt: skip
    for name in numbers:
        shown.add_column(name, justify="right")
    shown.add_column("verdict")
    for row in table.to_dict("records"):
        cells = [f"{row[name]:.{digits}f}" for name, digits in numbers.items()]
        shown.add_row(row["sharing"], *cells, row["verdict"])
    _console().print(shown, "")


def next_run() -> Path:
    """The next numbered folder under runs/."""
    taken = [int(p.name) for p in Path("runs").glob("*") if p.name.isdigit()]
    return Path("runs") / f"{max(taken, default=0) + 1:03d}"
