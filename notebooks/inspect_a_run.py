# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Inspect a run with ArviZ
#
# A run is an ArviZ `DataTree` in a file. After this notebook you can
#
# - open a saved run, say what lies where in it, and hand each part to ArviZ;
# - compare a fit with the reference: tables, intervals, densities, ranks;
# - smooth the importance weights of a fit, read k-hat, and use the weights;
# - cross-validate by a fit, predict with it, and draw more from it;
# - follow a fit to its end, and compare its starts and the modes of the posterior.
#
# p is the posterior and q the guide. The run is of eight schools, non-centred: whether coaching
# helps in each of eight schools, and how much schools differ (`tau`).

# %%
# vi_demo draws without pyplot; the next line has Jupyter show such figures too.
# %matplotlib inline
import warnings

import vi_demo  # before JAX, which it sets up for large data

# isort: split
import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats.base import array_stats

from vi_demo.pictures.drawing import COLOURS

# In double precision, and with compiled programs kept for the next time.
vi_demo.prepare()
pd.set_option("display.max_colwidth", None)

FITS = ["reverse_kl", "forward_kl"]
OURS = [COLOURS["reverse_kl"], COLOURS["forward_kl"], COLOURS["target"]]

# %% [markdown]
# ## Make one, save it, open it
#
# `vi-demo run eight_schools_noncentred` would save the same, with its pictures.

# %%
vi_demo.save(vi_demo.run("eight_schools_noncentred"), "runs/schools")

run = vi_demo.load("runs/schools")


def sizes(node):
    """The dimensions of a group that have a name of their own."""
    return ", ".join(f"{k} {n}" for k, n in node.sizes.items() if "_dim_" not in k)


pd.DataFrame(
    [
        {"group": node.path, "holds": ", ".join(node.data_vars), "sizes": sizes(node)}
        for node in run.subtree
        if node.data_vars and not node.path.startswith("/forward_kl")
    ]
).set_index("group")

# %% [markdown]
# Two fits and the reference, each a tree of its own as ArviZ's functions take it; `/forward_kl`,
# left out of the table, is like `/reverse_kl` without restarts. `posterior` is on the model's
# own scale, deterministic sites such as `theta` included; `guide` and `history` are on R^d. All
# figures of the run are one dictionary, the same as in `summary.json`.

# %%
for name, fit in vi_demo.summary(run)["fits"].items():
    print(f"{name}: {fit['verdict']}")
    print(*(f"  - {reason}" for reason in fit["reasons"]), sep="\n")

# %% [markdown]
# So `tau` it is that neither guide has right. The rest of this notebook looks at the same thing
# from every side.
#
# ## Tables and intervals
#
# The draws of a guide are independent: R-hat and effective sizes of chains have nothing to say of
# them, hence `kind="stats"`.

# %%
trees = {name: run[name] for name in (*FITS, "reference")}
pd.concat(
    {
        name: az.summary(tree, var_names=["mu", "tau"], kind="stats", round_to=2)
        for name, tree in trees.items()
    }
)

# %%
plot = az.plot_forest(
    trees, var_names=["tau", "theta"], color=OURS, figure_kwargs={"figsize": (8, 6)}
)
plot.add_legend("model")
plt.show()

# %% [markdown]
# The reverse fit's interval for `tau` is too short at both ends, the forward fit's too long
# upwards. In `theta`, the effects that were asked for, less is left of it.
#
# ## Weights and k-hat
#
# `log_weights` are log p − log q of each draw. `psislw` fits a generalised Pareto distribution to
# the largest weights and smooths them; k-hat is its shape, below 0.7 if means of them are to be
# believed. **It takes minus the log weights**, for it was made for log likelihoods in
# leave-one-out.


# %%
def smoothed(fit):
    """Pareto-smoothed weights of a fit's draws, adding up to one, and k-hat."""
    log_weights = run[fit]["sample_stats"]["log_weights"].values.ravel()
    smooth, khat = array_stats.psislw(-log_weights)
    return np.exp(smooth), float(khat)


weights, khats = {}, {}
for name in FITS:
    weights[name], khats[name] = smoothed(name)

figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for ax, name in zip(axes, FITS, strict=True):
    raw = run[name]["sample_stats"]["log_weights"].values.ravel()
    largest = np.argsort(raw)[::-1][:200]
    raw = np.exp(raw - np.logaddexp.reduce(raw))
    look = {"color": COLOURS[name], "linestyle": ""}
    rank = np.arange(1, 201)
    ax.loglog(rank, raw[largest], marker="o", fillstyle="none", label="raw", **look)
    ax.loglog(rank, weights[name][largest], marker=".", label="smoothed", **look)
    ax.axhline(1 / len(raw), color="grey", linewidth=1)
    ax.set(title=f"{name}, k-hat {khats[name]:.2f}", xlabel="draw, by its weight")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("weight")
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# The line is what each of 4,000 equal draws would weigh. The reverse fit's heaviest draw counts
# as some thirty of them: its `tau` is near 0, where the posterior has mass and the guide hardly
# draws. The forward fit draws there, and its weights vary less. (k-hat of so few draws is known
# to about 0.1; that of `summary.json` is from 10,000.) What they are worth:


# %%
def weighted(fit, site):
    """Mean, sd and effective draws of a site, as they are and weighted, beside the reference."""
    x = run[fit]["posterior"][site].values.ravel()
    w = weights[fit]
    mean = w @ x
    return {
        "mean": x.mean(),
        "mean, weighted": mean,
        "sd": x.std(),
        "sd, weighted": np.sqrt(w @ (x - mean) ** 2),
        "effective draws": 1 / (w @ w),
        "k-hat": khats[fit],
    }


truth = run["reference/posterior"]["tau"].values
rows = {name: weighted(name, "tau") for name in FITS}
rows["reference"] = {"mean": truth.mean(), "sd": truth.std()}
of_tau = pd.DataFrame.from_dict(rows, orient="index")
of_tau.round(2)

# %% [markdown]
# The forward fit's sd is nearly twice the right one as it is, and within a few per cent of it
# with its weights.
#
# ArviZ's plots take draws of equal weight. `extract` makes them of weighted ones, if it is told
# to resample multinomially. A Gaussian guide is a Gaussian on R^d, where `tau` is its logarithm:
# that is the scale on which to see what it cannot bend to.

# %%
resampled = az.extract(
    run["forward_kl"],
    weights=weights["forward_kl"],
    num_samples=4000,
    resampling_method="multinomial",
    random_seed=0,
)
on_log_scale = {
    name: np.log(tree["posterior"]["tau"]).rename("log tau") for name, tree in trees.items()
}
on_log_scale["forward_kl, weighted"] = xr.DataArray(
    np.log(resampled["tau"].values)[None], dims=["chain", "draw"], name="log tau"
)
plot = az.plot_dist(
    {
        name: xr.DataTree.from_dict({"posterior": x.to_dataset()})
        for name, x in on_log_scale.items()
    },
    color=[*OURS, "C4"],
    visuals={"credible_interval": False, "point_estimate": False, "point_estimate_text": False},
    figure_kwargs={"figsize": (9, 3.5)},
)
plot.add_legend("model")
plt.show()

# %% [markdown]
# The posterior has a long tail to the left, where schools hardly differ. Reverse KL puts its
# Gaussian where the density is high and gives up the tail. Forward KL has the mean and the sd of
# `log tau` right, tail included, and for that puts mass on the right where there is next to none:
# on the scale of `tau` itself that becomes the largest error of all. Its weights take it away.
#
# ## More draws, and ranks
#
# A saved guide can be drawn from without its model. If the guide were the posterior, the rank of
# a posterior draw among many draws of the guide would be uniform.

# %%
more = {name: vi_demo.draw(run, name, 50_000)["posterior"] for name in FITS}
some = run["reference/posterior"].to_dataset()[["mu", "tau"]].isel(draw=slice(None, None, 4))


def ranks(theirs, ours):
    """Normalised ranks (rank + ½)/(n + 1) of draws among n others."""
    ours = np.sort(ours.values.ravel())
    return theirs.copy(data=(np.searchsorted(ours, theirs.values) + 0.5) / (len(ours) + 1))


uniform = {f"{k}, {name}": ranks(some[k], more[name][k]) for k in some for name in FITS}
tree = xr.DataTree.from_dict({"ranks": xr.Dataset(uniform)})
az.plot_ecdf_pit(tree, group="ranks", figure_kwargs={"figsize": (11, 3.2)})
for ax in plt.gcf().axes:
    ax.set_ylim(-0.15, 0.15)
plt.show()

# %% [markdown]
# Each curve is how far the share of ranks below a value is from that value, and its height the
# largest error in the probability of being below anything; `summary.json` has it for each site as
# `rank_distance`. For `mu` it is a few per cent. For `tau` under the reverse fit it is about ten:
# too many of the posterior's draws are at both ends, the guide is too narrow. With a thousand
# ranks the test behind the p-value finds what nobody need mind, so look at the height first.
#
# ## Leave-one-out
#
# The pointwise log likelihood is saved with each fit and with the reference, to compare models
# by. `loo` takes draws for the posterior's own. Those of a guide have to be corrected for
# log p − log q as well, which `loo_approximate_posterior` does.

# %%
with warnings.catch_warnings(action="ignore"):  # of k-hats, all of which are shown below
    loos = {"reference": az.loo(run["reference"], pointwise=True)}
    for name in FITS:
        stats = run[name]["sample_stats"]
        loos[name] = az.loo_approximate_posterior(
            run[name], log_p=stats["log_p"], log_q=stats["log_q"], pointwise=True
        )
loo = pd.DataFrame.from_dict(
    {
        name: {
            "elpd": found.elpd,
            "its error": found.se,
            "effective parameters": found.p,
            "largest k-hat": float(found.pareto_k.max()),
        }
        for name, found in loos.items()
    },
    orient="index",
)
loo.round(2)

# %%
figure, ax = plt.subplots(figsize=(9, 2.8), layout="constrained")
for name, marker in zip(loos, "s^o", strict=True):
    colour = COLOURS["target" if name == "reference" else name]
    ax.plot(list("ABCDEFGH"), loos[name].pareto_k, marker, color=colour, label=name)
ax.axhline(0.7, color="grey", linewidth=1)
ax.set(xlabel="school left out", ylabel="k-hat")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# All three say the same of the model within a tenth of a nat, far less than its error.
#
# ## Predictions
#
# With the model at hand, `predict` draws new data from it at a fit's draws. The data that were
# seen lie in the fit's own tree, where ArviZ's predictive checks look for them.

# %%
predicted = vi_demo.predict(run, "forward_kl", "eight_schools_noncentred")
predicted["observed_data"] = run["forward_kl/observed_data"]
az.plot_ppc_interval(predicted, var_names=["y"], figure_kwargs={"figsize": (9, 3)})
plt.show()
lower, upper = predicted["posterior_predictive"]["y"].quantile([0.055, 0.945], ["chain", "draw"])
observed = run["forward_kl/observed_data"]["y"]
inside = int(((lower < observed) & (observed < upper)).sum())
print(f"{inside} of 8 schools are within the central 89% of what is predicted for them")

# %% [markdown]
# ## The way there
#
# `history` has a row a recorded step. Reverse KL began from several starts, whose ELBOs it keeps;
# forward KL goes in rounds of importance draws, each from the guide of the round before.

# %%
elbo = run["reverse_kl/history"]["elbo"]
figure, ax = plt.subplots(figsize=(9, 3), layout="constrained")
ax.plot(elbo, color=COLOURS["reverse_kl"], linewidth=0.8)
ax.set(
    xlabel="step", ylabel="ELBO, nats", ylim=(float(elbo[-1].min()) - 2, float(elbo.max()) + 0.2)
)
ax.spines[["top", "right"]].set_visible(False)
plt.show()
rounds = run["forward_kl/history"].to_dataset()[["ess", "khat"]].to_dataframe()
rounds.round(2)

# %% [markdown]
# Starts and modes are worth a look where there are several of them. Two equal modes, far apart:

# %%
bimodal = vi_demo.run("bimodal")
starts = bimodal["reverse_kl/restarts"].to_dataset()
modes = bimodal["reference/modes"].to_dataset()
one = pd.DataFrame(starts["loc"].values, columns=modes["coordinate"].values).assign(
    elbo=starts["elbo"].values
)
other = pd.DataFrame(modes["location"].values, columns=modes["coordinate"].values).assign(
    mass=modes["mass"].values
)
places = pd.concat({"start": one, "mode": other})
places.round(3) + 0.0  # no −0

# %%
agreement = vi_demo.summary(bimodal)["fits"]["reverse_kl"]["restarts"]
print(f"R-hat across starts {agreement['rhat']:.2f}, at {agreement['places']} places")
print(f"ELBO of the best {agreement['elbos'][0]:.3f}")
print(f"ELBO of both together {round(agreement['stacked_elbo']['value'], 3) + 0.0:.3f}")

# %% [markdown]
# Each start found one of the modes and none of them could know of the other. Taken as chains they
# do not mix; taken together they are the posterior: the ELBO of both is the log evidence, 0.
#
# ## Try it
#
# - Resample the *reverse* fit by its weights and add it to the densities of `log tau`. Which part
#   of the left tail comes back, and which cannot?
# - Ask LOO of the fits without correction, `az.loo(run["forward_kl"])`. What does it warn of?
# - Open a run of yours: `vi_demo.load("runs/<model>")`. Which site has the largest
#   `rank_distance`?
