r"""The numbers behind the figures of choices and reaction times, and of what stopping does.

Quantiles of reaction time are of the right answers at each unsigned strength (at strength 0 of all)
and of the wrong ones their median; proportions are of the upper choice at each signed strength. The
bands are those of replicated data: what the fit predicts for as many trials. An effective weighting
stands at :math:`\lambda = \log v^2 s` of the mean drift v.
"""

import numpy as np
import pandas as pd
import xarray as xr

from neurodiff import summary

QUANTILES = (0.1, 0.5, 0.9)


def _trials(fit: xr.DataTree) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Signed times observed (trial,) and replicated (draw, trial), strengths, and known choices.

    Raises:
        ValueError: If the fit is not of choices and reaction times.
    """
    if "signed_rt" not in fit["observed_data"].dataset:
        found = ", ".join(map(str, fit["observed_data"].dataset.data_vars))
        raise ValueError(f"the fit is of {found}; wanted one of choices and reaction times")
    observed = fit["observed_data"].dataset["signed_rt"].values
    replicated = fit["posterior_predictive"].dataset["signed_rt"].values
    kept = fit["constant_data"].dataset
    known = kept["choice_known"].values > 0.5
    return observed, replicated.reshape(-1, len(observed)), kept["strength"].values, known


def choices(fit: xr.DataTree) -> pd.DataFrame:
    """Proportion of upper choices at each signed strength, observed and predicted."""
    observed, replicated, strength, known = _trials(fit)
    keep = known & np.isfinite(observed)
    upper = (replicated[:, keep] > 0).astype(float)
    table = summary.by_level((observed[keep] > 0).astype(float), upper, strength[keep], None)
    return table.rename(columns={"logsnr": "strength"})


def times(fit: xr.DataTree) -> pd.DataFrame:
    """Quantiles of reaction time at each unsigned strength, observed and predicted.

    Returns:
        Columns ``strength, answer, quantile, n, observed, q05, q25, median, q75, q95``, seconds.
    """
    observed, replicated, strength, known = _trials(fit)
    rows = []
    for size in np.unique(np.abs(strength)):
        here = np.abs(strength) == size
        y, many = observed[here], replicated[:, here]
        sign = np.where(strength[here] == 0, np.sign(y), np.sign(strength[here]))
        for answer in ("right", "wrong"):
            s = 1 if answer == "right" else -1
            mine = (s * sign * y > 0) & np.isfinite(y) & (known[here] | (strength[here] == 0))
            if mine.sum() < 10:
                continue
            theirs = np.where((s * sign * many > 0) & np.isfinite(many), np.abs(many), np.nan)
            if size == 0:
                theirs = np.where(np.isfinite(many), np.abs(many), np.nan)
            for q in QUANTILES if answer == "right" else (0.5,):
                row = {"strength": size, "answer": answer, "quantile": q, "n": int(mine.sum())}
                predicted = np.nanquantile(theirs, q, axis=1)
                row |= {"observed": np.quantile(np.abs(y[mine]), q)}
                rows.append(row | summary.quantiles(predicted))
    return pd.DataFrame(rows)


def stopping(fit: xr.DataTree, name: str) -> pd.DataFrame:
    """Quantiles over draws of a curve of the group ``stopping``, on time and on logsnr.

    Raises:
        ValueError: If the fit has no such curves.
    """
    if "stopping" not in fit.children or name not in fit["stopping"].dataset:
        raise ValueError(
            f"the fit has no curve {name!r}: wanted one of a bounded kind whose drift is constant, "
            "by neurodiff fit without --by"
        )
    curves = fit["stopping"].dataset
    tables = []
    for c in curves["strength"].values:
        one = curves.sel(strength=c)
        logsnr = np.log(float(one["drift"].mean()) ** 2 * curves["time"].values)
        columns = {"curve": name, "strength": c, "time": curves["time"].values, "logsnr": logsnr}
        tables.append(pd.DataFrame({**columns, **summary.quantiles(one[name].values)}))
    return pd.concat(tables, ignore_index=True)
