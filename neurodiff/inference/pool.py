"""Worker processes for the units of a study: spawned once a run, and stopped with it.

Spawned rather than forked, since torch's threads do not survive a fork. Ctrl-C reaches the main
process alone, which then ends its workers, even in the middle of a long unit.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """A main process that was killed cannot end its workers: they see to it themselves."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextmanager
def workers(n: int) -> Iterator[Executor | None]:
    """An executor of ``n`` spawned processes; None, which is this process, for one.

    Raises:
        ValueError: If ``n`` is below 1.

    >>> with workers(1) as executor:
    ...     executor is None
    True
    """
    if n < 1:
        raise ValueError(f"got {n} workers, wanted at least 1")
    if n == 1:
        yield None
        return
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(n, mp_context=context, initializer=_begin)
    try:
        yield executor
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        mine = set(multiprocessing.active_children()) - others
        for process in mine:
            process.terminate()
        for process in mine:
            process.join()
        raise
    executor.shutdown()
