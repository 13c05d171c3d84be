"""A bar on a terminal while a long loop runs, and nothing elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int, what: str, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar of so many steps, and the function that advances it; one process of several shows."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not (shown and console.is_terminal)) as bars:
        bar = bars.add_task(what, total=total)
        yield lambda n: bars.advance(bar, n)
