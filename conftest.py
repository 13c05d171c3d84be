"""float64, one torch thread, no window, no deadlines; shapes are checked in all but slow tests."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from hypothesis import settings

# a test fails for what it finds, and not because the machine is busy
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure(config):
    if "not slow" in (config.option.markexpr or ""):
        import jaxtyping

        jaxtyping.install_import_hook("neurodiff", "beartype.beartype")
    import torch

    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    missing = [r for r in skipped if "data set" in str(r.longrepr)]
    terminalreporter.write_line(f"{len(missing)} tests skipped for want of data")
