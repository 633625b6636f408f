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
# # Your own model, from a blank file to a verdict
#
# After this notebook you can
#
# - write a model file and a data file that `vi-demo run` takes;
# - read the line that it stops with when something in them is wrong, and mend it;
# - see before a fit whether a posterior can be evaluated and normalised at all;
# - act on the verdict: weight the draws, widen the guide, predict.
#
# All that is done here from Python can be done at the command line, with the same words:
# `vi-demo check bakery.py --data rain.csv`, then `vi-demo run bakery.py --data rain.csv`.

# %%
# vi_demo draws without pyplot; the next line has Jupyter show such figures too.
# %matplotlib inline
from pathlib import Path

import vi_demo  # before JAX, which it sets up for large data

# isort: split
import numpy as np
import pandas as pd
from IPython.display import display

from vi_demo.pictures.figures import fit_figure

# In double precision, and with compiled programs kept for the next time.
vi_demo.prepare()


def write(file, text):
    """Put a text into a file of the working folder."""
    Path(file).write_text(text)


def attempt(function, *arguments, **settings):
    """Call a function; show the line it stops with, as the command line would."""
    try:
        return function(*arguments, **settings)
    except vi_demo.InputError as error:
        print(f"vi-demo: {error}")


# %% [markdown]
# ## A question and a table
#
# A baker notes for twelve days how much rain fell, in millimetres, and whether all bread was sold
# by evening. Does rain keep customers away, and how sure can one be?

# %%
write(
    "rain.csv",
    """\
Rain,sold_out
0,1
0.4,1
0,1
1.2,1
2.5,1
0.2,
3.1,1
4.8,0
7.5,0
6.1,0
12,0
9.4,0
""",
)

# %% [markdown]
# A model file needs a function that states the model and takes the data as arguments; what is
# observed is `None` unless given. Nothing in it comes from vi_demo. This first version makes the
# chance of selling out a straight line in the rain.

# %%
write(
    "bakery.py",
    '''\
"""Does rain keep customers away from a bakery?"""
import numpyro
import numpyro.distributions as dist


def bakery(rain, sold_out=None):
    base = numpyro.sample("base", dist.Normal(0.0, 5.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.5))
    if slope > 0:
        slope = 0.0
    numpyro.sample("sold_out", dist.Bernoulli(base + slope * rain), obs=sold_out)
''',
)

# %% [markdown]
# ## The errors one meets on the way
#
# `check` looks at a model without fitting it. Each complaint is a line: what is wrong, where, and
# what to do about it. The first is that a file may hold many functions, and the model is the one
# named `model` unless you say which.

# %%
attempt(vi_demo.check, "bakery.py", "rain.csv")

# %% [markdown]
# Columns go to the arguments of the same name, and none may be left over.

# %%
attempt(vi_demo.check, "bakery.py:bakery", "rain.csv")

# %%
table = Path("rain.csv").read_text()
write("rain.csv", table.replace("Rain", "rain"))
attempt(vi_demo.check, "bakery.py:bakery", "rain.csv")

# %% [markdown]
# One evening was not noted. That row has to go, or be imputed: left in, it would turn every
# density into NaN. It is the baker's 0.2 mm day, and the cell was a 1 with a coffee stain.

# %%
table = Path("rain.csv").read_text()
write("rain.csv", table.replace("0.2,\n", "0.2,1\n"))
attempt(vi_demo.check, "bakery.py:bakery", "rain.csv")

# %% [markdown]
# The data are in order; now the model runs, and stops. `if slope > 0` asks for the value of
# something that is unknown. JAX compiles a model once for all values, so a choice has to be
# written as arithmetic. Here it should not be made at all: whether rain attracts or repels is what
# the data are to say.


# %%
write(
    "bakery.py",
    '''\
"""Does rain keep customers away from a bakery?"""
import numpyro
import numpyro.distributions as dist


def model(rain, sold_out=None):
    base = numpyro.sample("base", dist.Normal(0.0, 5.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.5))
    numpyro.sample("sold_out", dist.Bernoulli(base + slope * rain), obs=sold_out)
''',
)

# %%
attempt(vi_demo.check, "bakery.py", "rain.csv")

# %% [markdown]
# NumPyro itself objects, and the line says where: on a rainy day base + slope × rain is no chance
# between 0 and 1. The log odds may be any number, so the straight line belongs there:
# `Bernoulli(logits=...)`. Where the first look is lucky and only some values are impossible,
# `check` counts at how many points the density is finite, and names the site and the values.
#
# While at it, suppose that nothing is known about slope and base, and say so by flat priors.


# %%
write(
    "bakery.py",
    '''\
"""Does rain keep customers away from a bakery?"""
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints


def model(rain, sold_out=None):
    flat = dist.ImproperUniform(constraints.real, (), ())
    base = numpyro.sample("base", flat)
    slope = numpyro.sample("slope", flat)
    logits = base + slope * rain
    numpyro.sample("sold_out", dist.Bernoulli(logits=logits), obs=sold_out)
''',
)

# %%
improper = vi_demo.check("bakery.py", "rain.csv")
print(improper)

# %% [markdown]
# Every number is finite now, but the second line from below is a warning worth its place: along
# some direction the density does not fall. The bread sold out on every day with less than 4 mm and
# on none with more, so the steeper the drop between, the better it fits, without end. **This
# posterior does not exist**: its integral is infinite. A fit would still return numbers.
#
# Something is known after all. That a millimetre of rain changes the odds by a factor of e⁵ would
# surprise anybody; a prior with an sd of 2.5 says so.


# %%
write(
    "bakery.py",
    '''\
"""Does rain keep customers away from a bakery?"""
import numpyro
import numpyro.distributions as dist


def model(rain, sold_out=None):
    base = numpyro.sample("base", dist.Normal(0.0, 5.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.5))
    logits = base + slope * rain
    numpyro.sample("sold_out", dist.Bernoulli(logits=logits), obs=sold_out)
''',
)

# %%
proper = vi_demo.check("bakery.py", "rain.csv")
print(proper)

# %% [markdown]
# ## Fits in both directions, and a verdict
#
# Two unknowns: the reference is an integral over a plane, with an error of next to nothing.

# %%
run = vi_demo.run("bakery.py", "rain.csv")
fit_figure(run)


# %%
def verdicts(run):
    """What is said of each fit, with its reasons."""
    return pd.DataFrame.from_dict(
        {
            name: {
                "verdict": fit["verdict"],
                "k-hat": fit["khat"],
                "sd of slope / true": round(fit["sites"]["slope"]["sd_ratio"], 2),
                "reasons": "; ".join(fit["reasons"]),
            }
            for name, fit in vi_demo.summary(run)["fits"].items()
        },
        orient="index",
    ).round(2)


with pd.option_context("display.max_colwidth", None):
    display(verdicts(run))

# %% [markdown]
# The posterior is a wedge: the steeper the slope, the larger the base it needs. No Gaussian is
# one. The reverse fit is *too narrow*: it stays inside the wedge. It can be mended by weights, as
# the draws still reach most of what they have to. The forward fit has the right widths, and for
# that puts draws outside, where the posterior's thin side is; its weights have a tail too heavy to
# be trusted.
#
# ## Acting on it
#
# **Weights.** `log_weights` are log p − log q of each draw. How probable is it that a millimetre
# of rain lowers the log odds by less than 1?


# %%
def share_above(tree, bound, log_weights=None):
    """The probability that slope is above a bound, of draws with weights or without."""
    above = tree["posterior"]["slope"].values.ravel() > bound
    weights = None if log_weights is None else np.exp(log_weights - log_weights.max())
    return np.average(above, weights=weights)


reverse = run["reverse_kl"]
log_weights = reverse["sample_stats"]["log_weights"].values.ravel()
chances = pd.Series(
    {
        "reverse KL, as it is": share_above(reverse, -1),
        "reverse KL, weighted": share_above(reverse, -1, log_weights),
        "reference": share_above(run["reference"], -1),
    },
    name="P(slope > −1)",
)
chances.round(3).to_frame()

# %% [markdown]
# **A wider family.** A mixture of two Gaussians can bend where one cannot.

# %%
bent = vi_demo.run("bakery.py", "rain.csv", guide="mixture:2", fits="reverse_kl")
display(fit_figure(bent))
with pd.option_context("display.max_colwidth", None):
    display(verdicts(bent))

# %% [markdown]
# ## Using it
#
# A saved run needs neither the model nor the data to be drawn from again; with the model it
# predicts. How likely is selling out on days to come, with 2, 4 and 6 mm of rain?

# %%
vi_demo.save(bent, "bakery_run")
again = vi_demo.load("bakery_run")
more = vi_demo.draw(again, "reverse_kl", 20_000)
days = np.array([2.0, 4.0, 6.0])
predicted = vi_demo.predict(again, "reverse_kl", "bakery.py", {"rain": days})
sold_out = predicted["posterior_predictive"]["sold_out"].mean(("chain", "draw"))
pd.Series(sold_out.values, index=pd.Index(days, name="mm of rain")).round(2).to_frame("sold out")

# %% [markdown]
# ## Try it
#
# - Put `dist.Normal(0.0, 10.0)` on the slope. Which verdict changes first, and why?
# - Add a second predictor to the table and to the model. Above two dimensions the reference is
#   tempered SMC, checked by NUTS: compare the seconds.
# - Give your own file: `vi-demo check yours.py`, then `vi-demo run yours.py`.
