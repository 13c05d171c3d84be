"""HSSM on the two monkeys, in an environment of its own (``run.sh``): v ~ 0 + coherence.

Its prior on a slope by default is Normal(0, 0.25), which halves the slope of these trials (5.5 for
10.3 per unit coherence, 0.1 nats a trial lost): here it is Normal(0, 30). Else its defaults.

``ddm`` is its analytical density. ``angle`` (bounds that fall in a line) needs a network that HSSM
fetches from a model hub when a model is built; here it gets the network of that name in HDDM 1.0.1
(``angle_network.py``) as an ONNX file. The network knows |v| <= 3, so its times are in quarters of
a second: v halves, a doubles, and the density is four times as high.

HSSM's lapses are a density of time alone, given to each choice: with its Uniform(0, 20) the
mixture integrates to more than 1. Uniform(0, 4) is uniform over 2 s and two choices, as elsewhere
here. Held-out densities are at the mode (``find_MAP``). With ``nuts``: its sampler by default on
all trials of a monkey, two chains of 500 after 500; draws and seconds go to
``.results/nuts.*.csv``.
"""

import sys
import time
import warnings

import arviz as az
import bambi
import hssm
import jax
import numpy as np
import onnx
import pandas as pd
from held_out import LAPSE, LAPSE_DENSITY, RESULTS, scores, trials
from hssm.distribution_utils.onnx_utils.onnx2jax import make_jax_func
from hssm.likelihoods.analytical import logp_ddm
from onnx import TensorProto, helper, numpy_helper

warnings.filterwarnings("ignore")
WIDE = bambi.Prior("Normal", mu=0.0, sigma=30.0)
SCALE = {"ddm": 1.0, "angle": 4.0}


def network():
    """The plain arrays as an ONNX graph: linear layers and tanh, one trial at a time."""
    arrays = np.load(RESULTS / "angle.npz")
    layers = sorted({int(name.split(".")[1]) for name in arrays})
    nodes, weights, last = [], [], "input"
    for i in layers:
        weights.append(numpy_helper.from_array(arrays[f"layers.{i}.weight"].T.copy(), f"w{i}"))
        weights.append(numpy_helper.from_array(arrays[f"layers.{i}.bias"], f"b{i}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("Add", [f"m{i}", f"b{i}"], [f"a{i}"]))
        last = f"a{i}"
        if i != layers[-1]:
            nodes.append(helper.make_node("Tanh", [last], [f"t{i}"]))
            last = f"t{i}"
    into = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 7])
    out = helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, 1])
    graph = helper.make_graph(nodes, "angle", [into], [out], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])


def build(name, frame):
    how = {}
    if name == "angle":
        onnx.save(network(), RESULTS / "angle.onnx")
        path = str(RESULTS / "angle.onnx")
        how = {"loglik": path, "loglik_kind": "approx_differentiable"}
    return hssm.HSSM(
        coded(name, frame),
        model=name,
        include=[{"name": "v", "formula": "v ~ 0 + coh", "prior": {"coh": WIDE}}],
        p_outlier=LAPSE,
        lapse=bambi.Prior("Uniform", lower=0.0, upper=SCALE[name] / LAPSE_DENSITY),
        **how,
    )


def coded(name, frame):
    response = 2 * frame["choice"].astype(int) - 1
    columns = {"rt": frame["rt"] * SCALE[name], "response": response, "coh": frame["coherence"]}
    return pd.DataFrame(columns).reset_index(drop=True)


def log_density(name, frame, at):
    """HSSM's own likelihood at one setting of the parameters, in 1/s, lapses mixed in."""
    data = coded(name, frame)
    v, times = at["v_coh"] * data["coh"].to_numpy(), data[["rt", "response"]].to_numpy(float)
    if name == "ddm":
        decided = logp_ddm(times, v, at["a"], at["z"], at["t"]).eval()
    else:
        rest = np.tile([at[k] for k in ("a", "z", "t", "theta")], (len(v), 1))
        inputs = np.column_stack([v, rest, times])[:, None].astype(np.float32)
        decided = np.asarray(jax.vmap(make_jax_func(network()))(inputs)).ravel()
    return np.log((1 - LAPSE) * np.exp(decided) * SCALE[name] + LAPSE * LAPSE_DENSITY)


def mode(name):
    def score(train, test):
        # from its own start (a = 0) the search ends where every trial is a lapse
        start = {"v_coh": 10.0, "a": 0.8, "z": 0.5, "t": 0.2, "theta": 0.3}
        if name == "angle":
            start |= {"v_coh": 5.0, "a": 1.6, "t": 0.8}
        model = build(name, train)
        known = {rv.name for rv in model.pymc_model.free_RVs}
        start = {k: np.asarray(value) for k, value in start.items() if k in known}
        at = model.find_MAP(progressbar=False, start=start)
        at = {k: float(at[k]) for k in ("v_coh", "a", "z", "t", "theta") if k in at}
        return log_density(name, test, at), at

    return score


def nuts(name, monkey):
    path = RESULTS / f"nuts.{name}.{monkey}.csv"
    if path.exists():
        return
    began = time.process_time()
    drawn = build(name, trials(monkey)).sample(
        draws=500, tune=500, chains=2, cores=1, random_seed=0, progressbar=False
    )
    seconds = time.process_time() - began
    summary = az.summary(drawn, round_to=6)
    loo = az.loo(drawn)
    elpd = getattr(loo, "elpd", None) or loo.elpd_loo
    summary["cpu_seconds"] = seconds
    summary["elpd_loo_per_trial"] = elpd / len(trials(monkey)) + np.log(SCALE[name])
    summary.to_csv(path)
    print(summary)


if __name__ == "__main__":
    for name in [word for word in sys.argv[1:] if word in SCALE] or SCALE:
        if "nuts" in sys.argv:
            for monkey in [int(word) for word in sys.argv[1:] if word in "12"] or (1, 2):
                nuts(name, monkey)
        else:
            scores("HSSM", f"{name}-map", hssm.__version__, mode(name))
