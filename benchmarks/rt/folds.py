"""Folds of the two monkeys, and their trials for the peers: ``python benchmarks/rt/folds.py``.

Five folds, stratified by monkey x |coherence| x correct (at coherence 0, where nothing is correct:
x choice), in ``folds.csv``: monkey (1 and 2, the subjects b and n), the trial's place among the
monkey's trials, fold. Reaction times outside 0.1 to 1.65 s have fold -1. The trials themselves go
to a folder that git ignores, where the peers' own environments can read them.
"""

from pathlib import Path

import numpy as np

import neurodiff as nd

HERE = Path(__file__).parent

frame = nd.load("roitman2002-monkey-rdm").to_dataframe().reset_index(drop=True)
frame["monkey"] = frame["subject"].map({"b": 1, "n": 2})
frame["trial"] = frame.groupby("monkey").cumcount()
frame["fold"] = -1
frame["stratum"] = frame["correct"].fillna(frame["choice"])
rng = np.random.default_rng(2002)
inside = frame[frame["rt"].between(0.1, 1.65)]
dealt = 0  # on from stratum to stratum, so that small strata do not all fill fold 0
for _, rows in inside.groupby(["monkey", inside["coherence"].abs(), "stratum"]):
    order = rng.permutation(rows.index.to_numpy())
    frame.loc[order, "fold"] = (dealt + np.arange(len(order))) % 5
    dealt += len(order)

frame[["monkey", "trial", "fold"]].to_csv(HERE / "folds.csv", index=False)
(HERE / ".results").mkdir(exist_ok=True)
columns = ["monkey", "trial", "fold", "coherence", "choice", "rt"]
frame[columns].to_csv(HERE / ".results" / "trials.csv", index=False)
