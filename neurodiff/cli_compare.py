"""``neurodiff compare``: fits of several runs in one table, or one weighting for all of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from neurodiff.terminal import next_run, show_shared, show_table, status


def compare(
    *folders: Path,
    share: Literal["weighting"] | None = None,
    out: Path | None = None,
    seed: int = 0,
) -> None:
    """Compare the fits of one or several run folders; or ask whether one weighting serves them all.

    With --share weighting every hypothesis that all runs have in common is fitted to their data
    again, four ways: one w for all, one w shifted by person, a w of each person, and all apart.
    What is not the weighting (lapse, front end) is each run's own. Data are read again from where
    they were, and must be what was fitted.

    Args:
        folders: Run folders.
        share: What the runs may have in common.
        out: With --share, a new folder for shared.csv, prior-width.csv and the figure; by default
            the next number under runs/.
        seed: With --share; the same seed gives the same result.
    """
    from neurodiff.inference.compare import compare

    if not folders:
        raise ValueError("got no run folder; wanted at least one, such as runs/001")
    if share is not None:
        return _share(folders, out or next_run(), seed)
    several, fits = len(folders) > 1, {}
    for folder in folders:
        found = sorted((folder / "fits").glob("*.nc"))
        if not found:
            raise ValueError(f"{folder} holds no fits (fits/*.nc); wanted a run folder")
        fits |= {f"{folder}/{path.stem}" if several else path.stem: path for path in found}
    with status("comparing"):
        table = compare(fits)
    show_table(table)


def _share(folders: Sequence[Path], out: Path, seed: int) -> None:
    import pandas as pd

    from neurodiff.inference.share import share
    from neurodiff.plot_sharing import prior_width
    from neurodiff.runs import shared_parts

    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: name another folder with --out")
    with status("reading"):
        found = shared_parts(folders)
    tables, widths = [], []
    for (name, end), parts in found.items():
        with status(f"{name}: {len(parts)} parts, four ways"):
            table, width = share(parts, seed=seed)
        for frames, frame in ((tables, table), (widths, width)):
            frames.append(frame.assign(hypothesis=name, front_end=end))
        show_shared(tables[-1])
    out.mkdir(parents=True, exist_ok=True)
    pd.concat(tables).to_csv(out / "shared.csv", index=False, float_format="%.6g")
    all_widths = pd.concat(widths)
    all_widths.to_csv(out / "prior-width.csv", index=False, float_format="%.6g")
    prior_width(all_widths).savefig(out / "prior-width.png", dpi=300)
    print("Bayes factors are natural logs, to one w; shifts have the prior Normal(0, 1) nats.")
    print(f"tables, and Bayes factors over widths of the priors: {out}")
