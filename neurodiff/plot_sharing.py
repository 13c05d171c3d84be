r"""How much a Bayes factor owes to the width of a prior.

.. math:: \log \frac{p(y \mid \text{sharing}, k)}{p(y \mid \text{one } w, k)}

over factors k on the standard deviations of the priors of laws and shifts. Every law that is not
shared pays for the width of its prior; a conclusion that turns with k is one about the prior.
"""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure

from neurodiff.panels import BLUE, GREEN, ORANGE
from neurodiff.plot import STYLE, WIDTH

_COLOURS = {"one w, shifted": ORANGE, "own w": GREEN, "all apart": BLUE}


@style.context(STYLE)
def prior_width(table: pd.DataFrame) -> Figure:
    """Log Bayes factors to one w over widths of the prior, a panel for each hypothesis.

    Lines join those of bridge sampling, with one standard error; crosses are Laplace's.

    Args:
        table: ``sharing, width, ln_bf_laplace, ln_bf_bridge, bf_se, hypothesis``, as
            :func:`neurodiff.inference.share.share` leaves it.
    """
    names = list(dict.fromkeys(table["hypothesis"]))
    figure, axes = plt.subplots(
        1, len(names), figsize=(max(WIDTH, 2.0 * len(names)), 2.3), squeeze=False, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for ax, name in zip(axes[0], names, strict=True):
        ax.axhline(0, color="black", lw=0.6)
        for sharing, colour in _COLOURS.items():
            mine = (table["hypothesis"] == name) & (table["sharing"] == sharing)
            rows = table.loc[mine].sort_values("width")
            if not rows.empty:
                ax.errorbar(rows["width"], rows["ln_bf_bridge"], yerr=rows["bf_se"], fmt="o-",
                            ms=3, lw=1, color=colour, label=sharing)  # fmt: skip
                ax.plot(rows["width"], rows["ln_bf_laplace"], "x", ms=4, color=colour)
        ax.set_xscale("log")
        ticks = sorted(set(table["width"]))
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.set(title=name, xlabel="width of the priors\n(of their defaults)")
    axes[0, 0].set_ylabel("ln Bayes factor to one w")
    axes[0, 0].legend(frameon=False)
    return figure
