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
# # Two directions of KL
#
# After this notebook you can
#
# - fit one guide to a NumPyro model in both directions of the Kullback–Leibler divergence, and
#   see what each direction does with a posterior that the guide cannot match;
# - watch the guide move under either, and say what pulls it where it goes;
# - read the figures that tell a good fit from a bad one, and know which of them can be fooled;
# - say when importance weights rescue a fit and when they cannot;
# - put your own model in the place of this one.
#
# Throughout, p is the target, the posterior you want, and q the guide, the distribution you fit.
# **Reverse** (exclusive) KL is KL(q‖p), the average of log q − log p over draws of the *guide*;
# minimising it is what SVI does when it maximises the ELBO. **Forward** (inclusive) KL is KL(p‖q),
# the average of log p − log q over draws of the *target*. All divergences are in nats.

# %%
# vi_demo draws without pyplot; the next line has Jupyter show such figures too.
# %matplotlib inline
import arviz as az
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import xarray as xr
from numpyro.distributions import constraints
from scipy.stats import norm

import vi_demo
from vi_demo.pictures.drawing import COLOURS
from vi_demo.pictures.figures import fit_figure
from vi_demo.pictures.film import animate

# JAX computes in single precision unless told otherwise, before its first computation.
# Divergences are averages of differences of log densities: double precision keeps their digits.
# The command line does the same, and keeps compiled programs for the next time.
vi_demo.prepare()

# %% [markdown]
# ## A posterior with two modes
#
# Half of the mass lies around (−4, 0), half around (4, 0). A flat site and a `factor` state the
# density and nothing else: as with most posteriors, there is no drawing from it directly. It is
# normalised, so its log evidence is exactly 0.


# %%
def two_modes(separation=4.0):
    x = numpyro.sample("x", dist.ImproperUniform(constraints.real_vector, (), (2,)))
    mode = jnp.array([separation, 0.0])
    left = dist.Normal(-mode, 1.0).to_event(1).log_prob(x)
    right = dist.Normal(mode, 1.0).to_event(1).log_prob(x)
    numpyro.factor("log_density", jnp.logaddexp(left, right) - jnp.log(2.0))


run = vi_demo.run(two_modes)
fit_figure(run)

# %% [markdown]
# The guide is the same both times: one Gaussian with a full covariance. Only the direction
# differs.
#
# - **Reverse KL sits on one mode.** It averages over draws of the guide, so the guide pays for
#   being where the target is not, and never for staying away from where the target is.
# - **Forward KL stretches over both.** It averages over draws of the target, so the guide pays
#   for every one that it leaves out, and little for lying in the empty middle, where the target
#   has hardly any.
#
# The same in figures:


# %%
def figures(run):
    """One row a fit, from what `summary.json` holds."""
    rows = {
        name: {
            "KL(q‖p)": fit["divergences"]["reverse_kl"]["value"],
            "KL(p‖q)": fit["divergences"]["forward_kl"]["value"],
            "modes covered": fit["modes_covered"],
            "k-hat": fit["khat"],
            "verdict": fit["verdict"],
        }
        for name, fit in vi_demo.summary(run)["fits"].items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


figures(run).round(3)

# %% [markdown]
# ## Watch them fall
#
# A fit that begins next to a mode says little of what pulls it there. So a run in up to two
# dimensions records something else too: plain Adam, from the same few narrow guides, down either
# divergence. The red cross is the guide's mean, the ellipse its 2σ, the faint ones are the other
# starts; below, how far the divergence has fallen.

# %%
film = animate(run, size=(720, 390), format="gif")
film

# %%
lasts = {}
for name in ("reverse_kl", "forward_kl"):
    last = run[name]["descent"].isel(frame=-1, component=0)
    lasts[name] = {
        "mean of x[0], each start": last["mean"][:, 0].round(3).values,
        "sd of x[0], each start": np.sqrt(last["covariance"][:, 0, 0]).round(3).values,
        "divergence": last["divergence"][0].round(4).item(),
    }
ends = pd.DataFrame.from_dict(lasts, orient="index")
ends

# %% [markdown]
# - **Reverse KL goes to whichever mode is nearer**, widens until it fills it, and stops: starts on
#   either side end on different modes, equally content. It is *mode-seeking*.
# - **Forward KL widens first**, from wherever it began, until no draw of the target is left out,
#   and every start ends at the same place, in the middle, where there is nothing. It is
#   *mean-seeking*.
# - **It falls from much higher.** A narrow guide leaves nearly all of the target's draws in its
#   far tails, which costs forward KL a hundred nats; reverse KL, which asks the guide's own draws,
#   hardly minds.
#
# ## Judged by both
#
# Each fit is the better one by its own KL. The reverse fit's 0.693 is log 2, the price of missing
# half of the mass: on its mode the guide has twice the density of the target. Counted from the
# other side the same fit costs over 15 nats, because half of the target's draws lie eight of its
# sds away.
#
# Now look at k-hat, the shape of the upper tail of the importance weights p/q: below 0.7 they
# are taken to be well behaved. **It has nothing against either fit, not even the one that missed
# a mode**: that one's weights are nearly constant (they have no tail, hence no k-hat), because
# weights are known only where the guide draws, and this guide does not draw there. The verdict
# is unreliable all the same, because it asks from the target's side too: are the modes of the
# reference covered, its means and widths met?

# %%
for name, fit in vi_demo.summary(run)["fits"].items():
    print(f"{name}: {fit['verdict']}")
    print(*(f"  - {reason}" for reason in fit["reasons"]), sep="\n")
    print(f"  {fit['advice']}\n")

# %% [markdown]
# ## Look at the draws with ArviZ
#
# A run is an ArviZ `DataTree`. Each fit is a tree of its own and so is the reference, with
# equally many draws of equal weight: ArviZ's functions take one of them, or all three to compare.
# (The draws are independent, so r-hat and other figures of chains have nothing to tell here.)

# %%
trees = {name: run[name] for name in ("reverse_kl", "forward_kl", "reference")}
pd.concat({name: az.summary(tree, kind="stats", round_to=2) for name, tree in trees.items()})

# %%
plot = az.plot_dist(
    trees,
    color=[COLOURS["reverse_kl"], COLOURS["forward_kl"], COLOURS["target"]],
    visuals={"credible_interval": False, "point_estimate": False, "point_estimate_text": False},
    figure_kwargs={"figsize": (9, 3)},
)
plot.add_legend("model")
plt.show()

# %% [markdown]
# The forward fit has the mean and the sd of the reference. That is no accident: among Gaussians,
# KL(p‖q) is least where the moments match. Its shape is wrong nevertheless, highest where the
# reference has next to nothing.
#
# The reverse fit has the shape of one half: a quarter of the reference's sd, around a mean that
# is off by as much as the reference is wide. In the second coordinate, where one Gaussian is all
# it takes, the three agree.
#
# ## The sandwich
#
# Take log p − log q with p not normalised. Its average over draws of the guide is the ELBO, which
# falls short of the log evidence by KL(q‖p). Its average over draws of the target is the EUBO,
# which exceeds the log evidence by KL(p‖q). So ELBO ≤ log evidence ≤ EUBO, and the gap between
# them is the sum of both divergences, whether or not the log evidence is known.

# %%
fits = vi_demo.summary(run)["fits"]
sandwich = pd.DataFrame(
    {
        "ELBO": {name: fit["elbo"]["value"] for name, fit in fits.items()},
        "log evidence": vi_demo.summary(run)["reference"]["log_evidence"]["value"],
        "EUBO": {name: fit["eubo"]["value"] for name, fit in fits.items()},
    }
)
sandwich["EUBO − ELBO"] = sandwich["EUBO"] - sandwich["ELBO"]
sandwich["KL(q‖p) + KL(p‖q)"] = figures(run)["KL(q‖p)"] + figures(run)["KL(p‖q)"]
sandwich.round(2) + 0.0  # no −0

# %% [markdown]
# Judged by the ELBO alone, as fits mostly are, the one that misses half of the posterior wins.
# The EUBO prefers the other, and the gap says that neither is close.
#
# ## Move the modes apart
#
# One run for each separation; the one above is the last of them.

# %%
runs = {s: vi_demo.run(two_modes, {"separation": s}, draws=1000) for s in (1.0, 2.0, 3.0)}
runs[4.0] = run
table = pd.concat({s: figures(r) for s, r in runs.items()}, names=["separation", "fit"])
guides = [runs[s][name]["guide"] for s, name in table.index]
table.insert(0, "mean of x[0]", [float(g["mean"][0]) for g in guides])
table.insert(1, "sd of x[0]", [float(g["covariance"][0, 0]) ** 0.5 for g in guides])
table.round(2)

# %%
fine = np.linspace(0.9, 4.1)
figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
for ax, column in zip(axes, ["sd of x[0]", "KL(q‖p)", "KL(p‖q)"], strict=True):
    for name, look in {
        "forward_kl": {"marker": "s", "markersize": 10, "fillstyle": "none"},
        "reverse_kl": {"marker": "o", "markersize": 5},
    }.items():
        values = table[column].xs(name, level="fit")
        ax.plot(values, linestyle="", color=COLOURS[name], label=name, **look)
    ax.set(xlabel="separation", title=column, xticks=list(runs))
    ax.spines[["top", "right"]].set_visible(False)
exact = np.sqrt(1 + fine**2)
axes[0].plot(fine, exact, color=COLOURS["target"], zorder=0, label="√(1 + separation²)")
axes[0].legend(frameon=False)
axes[1].axhline(np.log(2), color="grey", linewidth=1, zorder=0)
axes[1].text(1, np.log(2), "log 2", color="grey", va="bottom")
axes[2].set_yscale("log")
plt.show()

# %% [markdown]
# - **The forward fit follows the curve**, the exact sd of the target: 1 within each half, and the
#   separation between them. It is never told the formula; it matches moments.
# - **The reverse fit jumps.** At 1 the halves still make a single mode, at 2 there are two, and
#   both times the fit covers everything, a little narrower than the forward one. At 3 it has
#   let go of one mode, and its sd is close to 1.
# - **The middle panel shows why.** Shaped like one half, a guide never costs more than log 2,
#   however far away the other half is. The price of covering both grows with the distance: the
#   forward fit, which does cover both, is below log 2 at 2 and above it at 3. Reverse KL buys
#   what is cheaper.
# - **k-hat rings at 3 and is silent at 4**, where the weights hardly vary. At 3 a few of the
#   reverse fit's draws still stray towards the missed mode and get enormous weights. The more
#   completely a fit misses a mode, the less its own draws can tell.
#
# So reverse KL does not always seek one mode, and where the guide nearly matches the target the
# direction hardly matters: at 1 both fits are reliable.
#
# ## Correct a fit by its weights
#
# Every fit keeps log p − log q of its draws as `log_weights`.


# %%
def expectations(x, log_weights):
    """What one might want to know of the first coordinate."""
    weights = np.exp(log_weights)
    weights = weights / weights.sum()
    mean = (weights * x).sum()
    answers = {
        "mean": mean,
        "sd": np.sqrt((weights * (x - mean) ** 2).sum()),
        "P(x[0] > 0)": (weights * (x > 0)).sum(),
        "P(|x[0]| < 2)": (weights * (abs(x) < 2)).sum(),
        "effective draws": 1 / (weights**2).sum(),
    }
    return {name: float(value) for name, value in answers.items()}


rows = {}
for name in ("forward_kl", "reverse_kl"):
    x = run[name]["posterior"]["x"].sel(x_dim_0=0)
    log_weights = run[name]["sample_stats"]["log_weights"]
    rows[f"{name}, as it is"] = expectations(x, xr.zeros_like(log_weights))
    rows[f"{name}, weighted"] = expectations(x, log_weights)
rows["exact"] = {
    "mean": 0.0,
    "sd": np.sqrt(1 + 4**2),
    "P(x[0] > 0)": 0.5,
    "P(|x[0]| < 2)": norm.cdf(-2) - norm.cdf(-6),
}
corrected = pd.DataFrame.from_dict(rows, orient="index")
corrected.round(3)

# %% [markdown]
# - **The forward fit can be corrected.** As it is, it puts over a third of its draws between −2
#   and 2, where the target has about 2%. Weighted, it agrees with the exact answers, and pays
#   with more than half of its effective draws. That is what the verdict *correctable* means.
# - **The reverse fit cannot.** Its weights are almost constant, so weighting changes nothing, and
#   practically all of its draws count as effective. No weight brings back a mode that was never
#   drawn. Here a perfect effective sample size is no comfort.
# - **What is asked matters.** P(|x[0]| < 2) is right from the reverse fit as it is, because both
#   halves agree on it. Mean, sd and P(x[0] > 0) are not.
#
# ## Too sure of itself
#
# Modes are the loud failure; the quiet one needs no second mode. Here is a single ridge, two
# coordinates of correlation 0.9, and a guide that knows no correlation.


# %%
def ridge(rho=0.9):
    cov = jnp.array([[1.0, rho], [rho, 1.0]])
    numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(2), covariance_matrix=cov))


narrow = vi_demo.run(ridge, guide="diagonal", draws=1000)
fit_figure(narrow)

# %% [markdown]
# - **Reverse KL is over-confident**: it fits inside the ridge, with sd √(1 − 0.9²) = 0.44 where 1
#   is right. An interval of 95 % by this guide holds the truth some 61 % of the time. With a
#   factorised guide it does that on every correlated Gaussian.
# - **Forward KL has each sd right** and the rest wrong: most of its draws lie beside the ridge.
# - Nothing here is multimodal, and more steps would not help either of them. What is wrong is the
#   guide; `--guide full_rank`, the default, has both directions exact.
#
# ## Maximum likelihood is forward KL
#
# KL(p‖q) = E_p[log p] − E_p[log q], and the first term is not the guide's to change. So with draws
# of p at hand, minimising forward KL is maximising the average of log q over them: maximum
# likelihood, with the posterior in the place of the world. Nothing else of p is needed.

# %%
from_draws = vi_demo.run(vi_demo.Target.from_draws(run["reference"]["posterior"]["x"][0].values))
by_likelihood = from_draws["forward_kl"]["guide"]
sample = run["reference"]["posterior"]["x"][0]
pd.DataFrame(
    {
        "forward KL of the draws": [
            float(by_likelihood["mean"][0]),
            float(by_likelihood["covariance"][0, 0]) ** 0.5,
        ],
        "mean and sd of the draws": [float(sample[:, 0].mean()), float(sample[:, 0].std())],
        "forward KL of the density": [
            float(run["forward_kl"]["guide"]["mean"][0]),
            float(run["forward_kl"]["guide"]["covariance"][0, 0]) ** 0.5,
        ],
    },
    index=["mean of x[0]", "sd of x[0]"],
).round(3)

# %% [markdown]
# The first two columns are the same numbers: for a Gaussian, maximum likelihood is the moments.
# The third had no draws to begin with; it made its own, and weighted them. This is also what
# training a language model on a teacher's texts is, and why a model too small for its teacher
# says things that the teacher never would: it covers.
#
# ## Which direction, then?
#
# - **Reverse KL** needs only draws of the guide and the density of the target. It serves where the
#   guide can match the target, or where one mode is enough, because all say the same thing with
#   the labels swapped, as in `models/old_faithful.py`.
# - **Forward KL** serves where leaving mass out is the worse mistake: to match means and sds, or
#   to have draws that importance weights can correct. It needs weighted draws of the target,
#   which is the hard part.
#
# Neither is the better one. Mass-covering objectives are hard to optimise in moderate and high
# dimension, and often no more accurate there
# ([arXiv 2103.01085](https://arxiv.org/abs/2103.01085)). And a factorised guide can match at most
# one of the marginal variances, the precisions and the entropy of a correlated target: the
# direction only chooses which ([arXiv 2403.13748](https://arxiv.org/abs/2403.13748)).
#
# To see what becomes of your own model, put it in the place of `two_modes`, its data in the
# second argument: `vi_demo.run(model, data)`. Or write it to a file like `models/bimodal.py` and
# have the figures, the picture and the draws saved:
#
# ```
# vi-demo run models/bimodal.py
# ```
#
# `vi_demo.load("runs/bimodal")` opens in a notebook what that saved.
