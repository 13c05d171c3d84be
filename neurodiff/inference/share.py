r"""Is it one weighting? The same w for all read-outs, shifted by person, of each person, or apart.

.. math:: \begin{aligned}
    \text{one w}: &\ w_{ir} = w & \text{one w, shifted}: &\ w_{ir}(λ) = w(λ - s_i) \\
    \text{own w}: &\ w_{ir} = w_i & \text{all apart}: &\ w_{ir}
    \end{aligned}

of person i in read-out r. What is not the weighting (lapse, guess, front end, rate) is each
part's own in all four, and a law has the same prior in all four. They are compared by what they
predict of held-out trials or blocks, five folds within each part, and by their log evidence, twice:
by Laplace's formula and by bridge sampling. Evidence depends on how wide the prior of a law is, so
it is given over widths.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn

from neurodiff.inference.common_law import Points, explore
from neurodiff.inference.compare import distinguished, paired
from neurodiff.inference.fit import modes_of
from neurodiff.inference.heldout import alternating
from neurodiff.inference.hypotheses import priors_of
from neurodiff.inference.importance import importance_draws
from neurodiff.inference.join import join
from neurodiff.inference.posterior import on_one_thread
from neurodiff.inference.tied import FOLDS, Part

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
_DRAWS = 500  # of a part by itself
_PERSONS = 5  # from which on persons are what a difference generalises over
_WAYS = {
    "one w": (lambda part: "all", False),
    "one w, shifted": (lambda part: "all", True),
    "own w": (lambda part: part.person, False),
    "all apart": (lambda part: part.name, False),
}


@on_one_thread
def part_of(data: xr.Dataset, model: nn.Module, name: str, person: str, seed: int = 0) -> Part:
    """One read-out of one person: a model met with data, its trials or blocks in five folds.

    Args:
        data: One study of one person.
        model: What is fitted; its weighting (or its law) is what can be shared.
        name: Of the part.
        person: Whose it is.
        seed: By which trials, or units, are put into folds.
    """
    bound = join(model, data, priors_of(model))
    joint, rng = bound.posterior, np.random.default_rng(seed)
    if bound.unit_dim != bound.dim:  # blocks, images
        fold = alternating(len(bound.unit_names), FOLDS)
        fold = fold if bound.unit_dim == "block" else rng.permutation(fold)
        copies = torch.ones(len(fold))
    else:
        each = rng.permutation(np.arange(data.sizes[bound.dim]) % FOLDS)
        data = data.assign_coords(_fold=(bound.dim, each))
        bound = join(model, data, priors_of(model), unit="_fold")
        fold, copies = bound.posterior.unit.numpy(), bound.posterior.weight
        rows = torch.arange(len(fold))
        joint = replace(bound.posterior, unit=rows, mask=torch.ones(1, len(rows)).double())
    modes = modes_of(bound, 3, seed)
    drawn = importance_draws(joint, modes, _DRAWS, torch.Generator().manual_seed(seed))
    return Part(name, person, joint, modes, drawn, torch.as_tensor(fold), copies.double())


@on_one_thread
def share(
    parts: Sequence[Part],
    widths: Sequence[float] = WIDTHS,
    *,
    points: int = 256,
    draws: int = 256,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare one w for all parts with one shifted by person, one of each person, and all apart.

    Args:
        parts: Read-outs of persons, from :func:`part_of`, whose weightings have the same
            parameters.
        widths: Factors on the standard deviations of the priors of laws and shifts.
        points: Of each law, at which all else is integrated out; of a shifted one half as many.
        draws: Of all else, for all points.
        seed: Of both.

    Returns:
        A row for each way to share that differs from the others: ``sharing, parameters, elpd,
        elpd_diff, dse`` (to the best), ``over`` (what the standard error is over), ``k_hat``,
        ``ln_bf_laplace``, ``ln_bf_bridge``, ``bf_se`` (log Bayes factors to one w), ``verdict``.
        And the Bayes factors at every width: ``sharing, width, ln_bf_laplace, ln_bf_bridge,
        bf_se``.

    Raises:
        ValueError: If there are fewer than two parts, or their weightings differ in parameters.
    """
    found = {
        name: [
            explore(group, owner, shifted, points // (1 + shifted), draws, seed)
            for group in _groups(parts, owner)
        ]
        for name, (owner, shifted) in ((name, _WAYS[name]) for name in ways(parts))
    }
    sensitivity = _by_width(found, list(dict.fromkeys([1.0, *widths])))
    rows = [_scored(name, parts, groups) for name, groups in found.items()]
    best = max(rows, key=lambda row: row["units"].sum())
    for row in rows:
        row["elpd_diff"], row["dse"] = paired(row["units"], best["units"])
        row["elpd"] = row["units"].sum()
        row["verdict"] = _verdict(row, best)
    table = pd.DataFrame(rows)
    plain = sensitivity[sensitivity["width"] == 1.0].drop(columns="width")
    table = table.merge(plain, on="sharing", sort=False)
    columns = ["sharing", "parameters", "elpd", "elpd_diff", "dse", "over", "k_hat"]
    columns += ["ln_bf_laplace", "ln_bf_bridge", "bf_se", "verdict"]
    return table.loc[:, columns], sensitivity


def ways(parts: Sequence[Part]) -> list[str]:
    """The ways to share that differ: of one person, or one part a person, fewer than four.

    Raises:
        ValueError: If there are fewer than two parts.
    """
    persons = {part.person for part in parts}
    if len(parts) < 2 or len({part.name for part in parts}) < len(parts):
        raise ValueError(
            f"got the parts {[part.name for part in parts]}; wanted at least two, of different "
            "names: a weighting is shared by several"
        )
    left = set() if len(persons) > 1 else {"one w, shifted", "own w"}
    left |= {"own w"} if len(persons) == len(parts) else set()
    return [name for name in _WAYS if name not in left]


def _groups(parts: Sequence[Part], owner: Callable[[Part], str]) -> list[list[Part]]:
    """Parts that have a law in common."""
    names = dict.fromkeys(owner(part) for part in parts)
    return [[part for part in parts if owner(part) == name] for name in names]


def _scored(name: str, parts: Sequence[Part], groups: Sequence[Points]) -> dict:
    """Held-out scores by person or by trial, and the size of one way to share."""
    each = [group.held_out() for group in groups]
    elpd = {part: value for own, _ in each for part, value in own.items()}
    size, k_hat = sum(group.tied.size for group in groups), max(k for _, k in each)
    return {"sharing": name, "parameters": size, "k_hat": k_hat, **_units(parts, elpd)}


def _units(parts: Sequence[Part], elpd: dict[str, Tensor]) -> dict:
    """What differences are paired over: persons where there are five, else trials or blocks."""
    persons = dict.fromkeys(part.person for part in parts)
    if len(persons) >= _PERSONS:
        units = [sum(float(elpd[p.name].sum()) for p in parts if p.person == i) for i in persons]
        return {"units": np.array(units), "over": f"{len(persons)} persons"}
    each = [(elpd[p.name] / p.copies).repeat_interleave(p.copies.long()) for p in parts]
    units = torch.cat(each).numpy()
    return {"units": units, "over": f"{len(units)} trials or blocks"}


def _by_width(found: dict[str, list[Points]], widths: Sequence[float]) -> pd.DataFrame:
    """Log Bayes factors to one w at every width."""
    rows = []
    for width in widths:
        each = {
            name: np.array([group.evidence(width) for group in groups])
            for name, groups in found.items()
        }
        one = each["one w"]
        for name, own in each.items():
            laplace, log_z = (own[:, i].sum() - one[:, i].sum() for i in (0, 1))
            error = np.sqrt((own[:, 2] ** 2).sum() + (one[:, 2] ** 2).sum())
            rows.append((name, width, laplace, log_z, 0.0 if name == "one w" else error))
    columns = ["sharing", "width", "ln_bf_laplace", "ln_bf_bridge", "bf_se"]
    return pd.DataFrame(rows, columns=columns)


def _verdict(row: dict, best: dict) -> str:
    words = ["best"] if row is best else []
    if not words:
        behind = distinguished(row["elpd_diff"], row["dse"])
        words = ["behind" if behind else "not distinguished"]
    if row["sharing"] == "one w" and words[0] != "behind":
        words.append("one w is not refuted")
    if row["k_hat"] > 0.7:
        words.append("k-hat above 0.7: numerically unsure")
    return "; ".join(words)
