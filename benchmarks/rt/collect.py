"""The committed tables, out of ``.results/``.

``peers.csv``: held-out mean log density a trial (choice and reaction time, 1/s) and its standard
error, the number of parameters, processor seconds a fit (median of the folds), folds that failed
(missing or not finite). Compare by the differences of the second table: log density of each trial,
the peers' columns named tool:model.
"""

import csv

import numpy as np
import pandas as pd
from held_out import HERE, RESULTS, trials

MODELS = [
    ("scipy", "wiener"),
    ("scipy", "wiener-biased"),
    ("PyDDM", "wiener"),
    ("PyDDM", "exponential"),
    ("PyDDM", "leak-exponential"),
    ("HSSM", "ddm-map"),
    ("HSSM", "angle-map"),
    ("scipy", "kernel-density"),
    ("scipy", "kernel-density-mirrored"),
]
HEADER = "tool,model,version,monkey,heldout_mean,se,parameters,cpu_seconds_a_fit,failed_folds"

rows, columns = [], []
frames = pd.concat([trials(monkey) for monkey in (1, 2)])[["monkey", "trial", "fold"]]
frames = frames.set_index(["monkey", "trial"])
for tool, model in MODELS:
    for monkey in (1, 2):
        scored, seconds, failed = {}, [], 0
        for fold in range(5):
            path = RESULTS / f"{tool}.{model}.{monkey}.{fold}.npz"
            if not path.exists() or not np.isfinite(np.load(path)["log_density"]).all():
                failed += 1
                continue
            with np.load(path) as left:
                scored |= dict(zip(left["trial"], left["log_density"], strict=True))
                seconds.append(float(left["seconds"]))
                size, version = len(left["names"]), str(left["version"])
        if not scored:
            continue
        values = np.array(list(scored.values()))
        error = values.std() / np.sqrt(len(values))
        row = [tool, model, version, monkey, f"{values.mean():.4f}", f"{error:.4f}", size]
        rows.append([*row, f"{np.median(seconds):.2f}", failed])
        at = pd.MultiIndex.from_product([[monkey], list(scored)], names=frames.index.names)
        frames.loc[at, f"{tool}:{model}"] = values

with (HERE / "peers.csv").open("w", newline="") as file:
    csv.writer(file).writerows([HEADER.split(","), *rows])
frames.round(5).to_csv(HERE / "peers_per_trial.csv.gz", compression={"method": "gzip", "mtime": 0})
print(pd.DataFrame(rows, columns=HEADER.split(",")).to_string(index=False))

kept = ["mean", "sd", "ess_bulk", "ess_tail", "r_hat", "cpu_seconds", "elpd_loo_per_trial"]
drawn = {path.name[5:-4]: pd.read_csv(path, index_col=0) for path in RESULTS.glob("nuts.*.csv")}
if drawn:
    table = pd.concat(drawn, names=["model.monkey", "parameter"])
    table[[column for column in kept if column in table]].round(4).to_csv(HERE / "nuts.csv")
