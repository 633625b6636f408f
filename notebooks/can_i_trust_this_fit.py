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
# # Can I trust this fit?
#
# Three models of real data, three verdicts, and each followed to its end. After this notebook you
# can
#
# - read a verdict and say what it rests on, from the guide's side and from the posterior's;
# - ask the same of one quantity, since a fit that is wrong somewhere may be right where you look;
# - correct what can be corrected, and see what each correction cost;
# - tell from the starts of a fit that there is more than one answer.
#
# p is the posterior and q the guide. At the command line all of it is `vi-demo run MODEL`, with
# `--quantity SITE` and `--correct`.

# %%
# vi_demo draws without pyplot; the next line has Jupyter show such figures too.
# %matplotlib inline
import vi_demo  # before JAX, which it sets up for large data

# isort: split
import pandas as pd
from IPython.display import display

from vi_demo.pictures.figures import fit_figure
from vi_demo.pictures.sandwich import sandwich_figure

# In double precision, and with compiled programs kept for the next time.
vi_demo.prepare()
pd.set_option("display.max_colwidth", None)


def verdicts(run):
    """What is said of each fit, how sure it is, and why."""
    return pd.DataFrame.from_dict(
        {
            name: {
                "verdict": fit["verdict"],
                "confidence": fit["confidence"],
                "k-hat": fit["khat"],
                "reasons": "; ".join(fit["reasons"]),
            }
            for name, fit in vi_demo.summary(run)["fits"].items()
        },
        orient="index",
    ).round(2)


# %% [markdown]
# ## Reliable: one normal for a geyser
#
# Minutes between eruptions of Old Faithful, 272 of them, and one normal for all: its mean and its
# sd are asked for.

# %%
one_kind = vi_demo.run("old_faithful:one_kind", film=False)
display(fit_figure(one_kind))
verdicts(one_kind)

# %% [markdown]
# Two unknowns: the reference is an integral over a plane. Both directions of KL end at nearly the
# same Gaussian, means and widths agree with the reference, and so do probabilities: use the draws
# as they are. The sandwich says it in nats. ELBO is below log evidence by KL(q‖p), EUBO above it
# by KL(p‖q): two bars of next to no length. Importance weights are all but constant, and then
# there is no tail of them for k-hat to measure.

# %%
sandwich_figure(one_kind)

# %% [markdown]
# That is said of the fit and not of the model. A fit is reliable when it is right about the
# posterior, and this one is; whether waits are normal is for the data to say, and they say no.

# %%
waits = pd.Series(one_kind["reference/observed_data/waiting"].values, name="minutes")
histogram = waits.value_counts(bins=range(40, 101, 5), sort=False)
histogram.to_frame("waits")

# %% [markdown]
# ## Correctable: eight schools, one quantity at a time
#
# The effects of coaching in eight schools, non-centred. `tau` is how much schools differ, `theta`
# is computed from the sites that are fitted; asked for by name, each gets errors of its own.

# %%
schools = vi_demo.run("eight_schools_noncentred", quantity=["tau", "theta"])
display(fit_figure(schools))
verdicts(schools)


# %%
def told(run, fit, label):
    """Each statistic of one quantity: by the guide, with weights, by the reference."""
    entries = vi_demo.summary(run)["fits"][fit]["quantities"][label]
    rows = {
        name: {side: e[side]["value"] for side in ("guide", "corrected", "reference")}
        | {"k-hat": e["khat"], "verdict": e["verdict"]}
        for name, e in entries.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").round(2)


of_tau, of_theta = told(schools, "forward_kl", "tau"), told(schools, "reverse_kl", "theta[B]")
display(of_tau, of_theta)

# %% [markdown]
# The fit as a whole is wrong in `tau`, whose tail no Gaussian on its logarithm has. Yet the mean
# effect of coaching in school B, and how uncertain it is, are right: who asks for these alone can
# use the draws as they are. Who asks for `tau` uses the weights of the forward fit, which is wide
# there. They were seen to correct its mean: within 0.1 sd of the reference, which is what
# *correctable* promises, and sds within 5 %. The reverse fit's weights are at the edge of that.

# %% [markdown]
# ## Unreliable: two normals for the geyser
#
# There are two kinds of wait, around 55 minutes and around 80: a mixture of two normals. Its log
# evidence is higher by far, so the model is better, and its fit is worse. The labels can be
# switched, so the posterior has two modes of equal mass. Reverse KL goes to one, with a k-hat that
# passes.

# %%
geyser = vi_demo.run("old_faithful", correct=True)
display(fit_figure(geyser))
evidence = {
    model: vi_demo.summary(run)["reference"]["log_evidence"]["value"]
    for model, run in (("one normal", one_kind), ("two normals", geyser))
}
print("log evidence:", ", ".join(f"{k} {v:.1f}" for k, v in evidence.items()))
verdicts(geyser)

# %% [markdown]
# What gives it away is the other side: draws of the posterior, half of which the guide cannot
# make. The starts of the fit say it too, if they are taken as chains. They ended at two places,
# R-hat across them is far from 1, and both together have log 2 more of the evidence than either.

# %%
starts = vi_demo.summary(geyser)["fits"]["reverse_kl"]["restarts"]
pd.Series(
    {
        "starts": len(starts["elbos"]),
        "places": starts["places"],
        f"R-hat of {starts['rhat_at']}": round(starts["rhat"], 2),
        "ELBO of the best": round(starts["elbos"][0], 3),
        "ELBO of all places together": round(starts["stacked_elbo"]["value"], 3),
    }
).to_frame("")

# %% [markdown]
# The next thing to do was tried rather than advised. Each rung of the ladder is measured as the
# fits are; it ends at the first that is right, and with several modes that is a guide on all.

# %%
ladder = vi_demo.summary(geyser)["correction"]
rows = pd.DataFrame(
    {
        rung["name"]: {
            "mean off by sds": rung["worst_mean_error_in_sd"],
            "sd, times the right": rung["worst_sd_ratio"],
            "KL(q‖p)": rung["divergences"]["reverse_kl"]["value"],
            "looks at p": sum(rung["evaluations"].values()),
            "right": rung["passes"],
        }
        for rung in ladder["rungs"]
    }
).T
display(rows)

# %% [markdown]
# The corrected draws are an ArviZ posterior like any other, with both labellings in it.

# %%
points = geyser["corrected/posterior"]["mu"].values[0]
share = (points[:, 0] < points[:, 1]).mean()
print(f"the ladder ended at {ladder['ends']}; {share:.0%} of its draws have mu[a] < mu[b]")

# %% [markdown]
# ## Try it
#
# - Run `eight_schools`, the centred form of the same posterior. Which check fails first, and what
#   does the reference say of itself?
# - Ask for `quantity="mu"` of the geyser. Which statistics are right in spite of the missing half?
# - Run your own model with `correct=True`. Which rung was needed?
