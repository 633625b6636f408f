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
# # A tour of divergences
#
# After this notebook you can
#
# - say what each of the usual divergences does where one distribution has mass and the other has
#   little or none, and read it off one curve;
# - compute them exactly, without an epsilon, and say when an estimate from draws is to be
#   believed;
# - foresee what a Gaussian fitted to two modes, or a student too small for its teacher, will
#   keep and what it will drop.
#
# p is the target or teacher, q the guide or student, and r = log p − log q. Everything is in nats
# unless a cell says bits, and every number below is computed here.

# %%
# %matplotlib inline
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
import pandas as pd
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm
from matplotlib.lines import Line2D
from scipy.optimize import minimize

from vi_demo.divergences import applied, described, estimators, exact, generators
from vi_demo.divergences.generators import F_DIVERGENCES, forward_kl, named, reverse_kl
from vi_demo.pictures.drawing import COLOURS

jax.config.update("jax_enable_x64", True)
pd.options.display.max_colwidth = None
plt.rcParams["axes.spines.top"] = plt.rcParams["axes.spines.right"] = False
plt.rcParams["legend.frameon"] = False

NAMES = [f.__name__ for f in F_DIVERGENCES]


def shown(number, digits=3):
    """As people write it: ∞ for infinity, powers of ten only where they help."""
    if not np.isfinite(number):
        return "∞" if number > 0 else "−∞"
    return f"{number:.2e}" if abs(number) >= 1e5 else f"{number:,.{digits}f}"


def colour_of(name):
    """The two directions of KL have a colour of their own here as in every picture."""
    return COLOURS.get(name, "black")


def panels():
    """A figure with one panel for each divergence, and the panels."""
    rows = -(-len(NAMES) // 4)
    figure, axes = plt.subplots(
        rows, 4, figsize=(10, 2.3 * rows), sharex=True, sharey=True, layout="constrained"
    )
    for ax, name in zip(axes.flat, NAMES, strict=False):
        ax.set_title(name)
    for ax in axes.flat[len(NAMES) :]:
        ax.set_visible(False)
    return figure, axes.flat[: len(NAMES)]


# %% [markdown]
# ## One function of r
#
# What have all these divergences in common? Each is an average over the midpoint m = ½(p + q) of
# one function h of r, and where p and q change places, r only changes its sign. So one curve
# holds all there is to know of a divergence. To the right p has more mass than q, to the left q
# has more than p; thin lines are the same divergence of q from p.

# %%
r = jnp.linspace(-4, 4, 401)
figure, axes = panels()
for ax, f in zip(axes, F_DIVERGENCES, strict=True):
    ax.plot(r, f(-r), color="grey", linewidth=0.8)
    ax.plot(r, f(r), color=colour_of(f.__name__), linewidth=2)
    ax.set(ylim=(0, 4), xlim=(-4, 4))
figure.supxlabel("r = log p − log q")
figure.supylabel("h(r)")
plt.show()

# %% [markdown]
# All are 0 at r = 0, where p and q agree, and none is negative. They part at the ends. Curves
# that level off take no more notice of an outcome once p and q differ by much; straight ones
# count nats; those of the two χ² grow with the ratio p/q or q/p itself, not with its logarithm.
# A divergence is symmetric where its thin line is hidden behind the thick one.
#
# On two distributions of three outcomes, both ways:

# %%
p = jnp.array([0.6, 0.3, 0.1])
q = jnp.array([0.25, 0.25, 0.5])
rows = {
    name: {
        "D(p, q)": float(exact.discrete(named(name), p, q)),
        "D(q, p)": float(exact.discrete(named(name), q, p)),
        "what it is": described().get(name, "log(1 + Pearson's χ²)"),
    }
    for name in [*NAMES, "renyi:2"]
}
two_ways = pd.DataFrame.from_dict(rows, orient="index")
two_ways.round(3)

# %% [markdown]
# Jeffreys, Jensen–Shannon, total variation and Hellinger are the same both ways. The others come
# in pairs: D(q, p) of one is D(p, q) of its mirror image, forward KL of reverse, Neyman's χ² of
# Pearson's. Rényi's divergence of order 2 is the logarithm of one plus Pearson's χ², and so not
# symmetric either. The values are on different scales: Pearson's 0.820 is twice the 0.419 of
# forward KL, which does not mean that it finds p and q farther apart.
#
# ## Zeros
#
# What if q gives nothing to an outcome that p has? Then r = ∞ there, and the answer stands in the
# curve's right end.

# %%
p = jnp.array([0.5, 0.3, 0.2])
q = jnp.array([0.7, 0.3, 0.0])
rows = {
    f.__name__: {
        "h(∞)": float(f(jnp.inf)),
        "D(p, q)": float(exact.discrete(f, p, q)),
        "h(−∞)": float(f(-jnp.inf)),
        "D(q, p)": float(exact.discrete(f, q, p)),
    }
    for f in F_DIVERGENCES
}
zeros = pd.DataFrame.from_dict(rows, orient="index")
zeros.map(shown)

# %% [markdown]
# Where the curve rises for ever, the divergence is infinite: forward KL, Jeffreys and Pearson's χ²
# are so, for a single outcome out of three. Reverse KL is finite and small. That is why
# maximum likelihood never gives an observed outcome the probability zero, and why SVI gladly does
# so with a whole mode. The other way round, reverse KL and Neyman's χ² are the infinite ones.
#
# ∞ is a correct answer, and the library gives it: nothing is added to p or q behind your back.
# Where a finite number is wanted, it is asked for by name. Three ways to do so, here with q as
# the shares of ten counts:

# %%
counts = jnp.array([7, 3, 0])
smoothed = {
    "as it is": q,
    "additive, one count each": exact.additive_smoothing(counts, 1.0),
    "label smoothing, 10 %": exact.label_smoothing(q, 0.1),
    "label smoothing, 0.1 %": exact.label_smoothing(q, 0.001),
    "mixed with (¼, ¼, ½), 10 %": exact.mixing(q, jnp.array([0.25, 0.25, 0.5]), 0.1),
}
remedies = pd.DataFrame(
    {
        "smallest q": {name: float(s.min()) for name, s in smoothed.items()},
        "KL(p‖q)": {n: float(exact.discrete(forward_kl, p, s)) for n, s in smoothed.items()},
        "cost: KL(q‖smoothed q)": {
            n: float(exact.discrete(forward_kl, q, s)) for n, s in smoothed.items()
        },
    }
)
remedies.map(partial(shown, digits=4))

# %% [markdown]
# Each way buys a finite number and pays twice. The smoothed q is no longer q: the last column
# says by how much. And the finite number is as much a statement about the smoothing as about p
# and q. From 10 % to 0.1 % of the same smoothing KL(p‖q) rises from 0.21 to 1.11, and there is
# no end to it: every further factor of ten adds 0.2 log 10 = 0.46, 0.2 being p's mass on the
# outcome that q lacks.

# %%
amounts = {"10⁻¹": 1e-1, "10⁻³": 1e-3, "10⁻⁶": 1e-6, "10⁻⁹": 1e-9, "10⁻¹²": 1e-12}
rising = pd.Series(
    {
        name: float(exact.discrete(forward_kl, p, exact.label_smoothing(q, amount)))
        for name, amount in amounts.items()
    },
    name="KL(p‖q)",
)
rising.to_frame().rename_axis("label smoothing").round(3)

# %% [markdown]
# A divergence reported with an epsilon in it is a report of the epsilon. Where zeros are to be
# expected, one that is bounded, such as Jensen–Shannon, asks the better question.
#
# ## What a nat is: coding
#
# Why a logarithm? Because it counts what it costs to write things down. A code that is best for q
# gives an outcome about −log₂ q bits. Used on outcomes of p it needs KL(p‖q) bits more than the
# code that is best for p. With probabilities that are powers of ½ this holds to the last bit:

# %%
p = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 8])
q = np.array([1 / 8, 1 / 8, 1 / 4, 1 / 2])
words = {name: applied.code_words(applied.huffman_lengths(x)) for name, x in (("p", p), ("q", q))}
pd.DataFrame({"p": p, "word for p": words["p"], "q": q, "word for q": words["q"]}).rename_axis(
    "outcome"
)

# %%
message = np.random.default_rng(0).choice(4, 20_000, p=p)
written = {name: applied.encode(message, w) for name, w in words.items()}
read_back = applied.decode(written["q"], words["q"]) == message.tolist()
print("read back as it was written:", read_back)
cost = applied.coding_cost(p, q)
bits = pd.Series(
    {
        "H(p)": cost.entropy,
        "H(p) + KL(p‖q)": cost.entropy + cost.kl,
        "a message of p in the code for p": len(written["p"]) / len(message),
        "a message of p in the code for q": len(written["q"]) / len(message),
        "wasted": (len(written["q"]) - len(written["p"])) / len(message),
        "KL(p‖q)": cost.kl,
    },
    name="bits per outcome",
)
bits.to_frame().round(3)

# %% [markdown]
# What the wrong code wastes on 20,000 outcomes is KL(p‖q), but for the luck of one message:
# 0.875 bits, or 0.607 nats.
#
# Other probabilities have to be rounded to whole bits. For Shannon's code, which rounds each
# −log₂ q up, the theorem is H(p) + KL(p‖q) ≤ mean length < H(p) + KL(p‖q) + 1. Is it seen on
# random pairs? And does Huffman's code, the shortest for q, keep to it?

# %%
rng = np.random.default_rng(1)
costs = [
    applied.coding_cost(*rng.dirichlet(np.full(8, concentration), 2))
    for concentration in rng.uniform(0.3, 3, 200)
]
kl_bits = np.array([c.kl for c in costs])
over = {
    "Shannon's code": np.array([c.shannon_wrong - c.entropy for c in costs]),
    "Huffman's code": np.array([c.huffman_wrong - c.entropy for c in costs]),
}
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharex=True, sharey=True)
line = np.array([0, kl_bits.max()])
for ax, (name, values) in zip(axes, over.items(), strict=True):
    ax.fill_between(line, line, line + 1, color=COLOURS["target"], alpha=0.15, linewidth=0)
    ax.plot(kl_bits, values, ".", color=COLOURS["target"], markersize=5)
    ax.set(title=f"{name} for q, used on p", xlabel="KL(p‖q), bits")
axes[0].set(ylabel="mean length − H(p), bits")
axes[0].text(0.5, 0.15, "shaded: from KL to KL + 1", transform=axes[0].transAxes)
plt.show()

# %% [markdown]
# Shannon's code keeps to the band, every time. Huffman's does not: most of these pairs lie below
# the band, and where KL is above 4 bits all of them do, one by over 4 bits. Huffman's words for
# rare outcomes of q are only as long as it takes to tell eight outcomes apart, and those outcomes
# are what p is made of where KL is large. So KL(p‖q) is the waste of a code that takes q at its
# word.
#
# ## Two Gaussians, and a target that needs logs
#
# Densities have r too, and the sum becomes an integral. For Gaussians it has a closed form;
# `exact.quadrature` does it for any densities on the line; draws do it in any dimension, with an
# error. Do they agree?

# %%
p, q = (dist.Normal(jnp.array([m]), s).to_event(1) for m, s in ((0.0, 1.0), (1.0, 2.0)))


def log_ratios(p, q, key, number):
    """The log ratio of p to q at draws of p."""
    x = p.sample(jax.random.key(key), (number,))
    return np.asarray(p.log_prob(x) - q.log_prob(x))


rows = {}
for name, a, b in (("KL(p‖q)", p, q), ("KL(q‖p)", q, p)):
    integral = exact.quadrature(
        forward_kl, lambda x, a=a: a.log_prob(x[None]), lambda x, b=b: b.log_prob(x[None])
    )
    draws = estimators.k1(-log_ratios(a, b, 0, 10_000))
    rows[name] = {
        "closed form": float(exact.gaussian_kl(a, b)),
        "quadrature": integral.value,
        "Monte Carlo": draws.value,
        "its error": draws.mcse,
    }
gaussians = pd.DataFrame.from_dict(rows, orient="index")
gaussians.round(4)

# %% [markdown]
# They do, and the two directions differ by a factor of three: a q that is wider than p costs
# little where p draws, and much where q draws.
#
# Now a target with three narrow modes, and guides that miss most of it. The same integral is done
# in three ways: in log space; as formulas are often typed in, with densities on a fine grid from
# −10 to 10; and so with 10⁻¹² added to both.


# %%
def three_modes(x):
    weights = 0.55 ** jnp.arange(3)
    return logsumexp(norm.logpdf(x, jnp.array([-3.0, 0.0, 3.0]), 0.35), b=weights / weights.sum())


x = np.linspace(-10, 10, 20_001)
rows = {}
for direction, mean, sd in (
    ("KL(p‖q)", -3.0, 0.35),
    ("KL(p‖q)", 0.0, 0.15),
    ("KL(q‖p)", 5.0, 3.0),
):
    guide = partial(norm.logpdf, loc=mean, scale=sd)
    log_a, log_b = (three_modes, guide) if direction == "KL(p‖q)" else (guide, three_modes)
    a, b = (np.exp(jax.vmap(log)(x)) for log in (log_a, log_b))
    with np.errstate(divide="ignore"):
        typed_in = np.where(a > 0, a * (np.log(a) - np.log(b)), 0.0).sum() * (x[1] - x[0])
    padded = ((a + 1e-12) * np.log((a + 1e-12) / (b + 1e-12))).sum() * (x[1] - x[0])
    rows[f"{direction}, q = N({mean:g}, {sd:g}²)"] = {
        "in log space": exact.quadrature(forward_kl, log_a, log_b).value,
        "with densities": typed_in,
        "with 10⁻¹² added": padded,
    }
readouts = pd.DataFrame.from_dict(rows, orient="index")
readouts.map(partial(shown, digits=1))

# %% [markdown]
# Only the log space column is right all three times. A density of e⁻⁸⁰⁰ is zero to a computer,
# its logarithm −∞: with densities the second answer is infinite. With 10⁻¹² added all three are
# finite, and all three are wrong, the second by a factor of over seven: no point may now cost
# more than about log 10¹² = 27.6. And a grid that ends at 10 cuts off what q has beyond, which in
# the third row is enough to be wrong without any warning. `exact.quadrature` never leaves log
# space, looks for the modes of both, and says how far off it may be.
#
# ## How they bound each other
#
# If one divergence is small, must the others be? Below are 1,500 random pairs of distributions,
# from nearly equal to nearly disjoint, and the curves that theorems say none of them crosses:
# Pinsker's, TV ≤ √(KL/2); Bretagnolle and Huber's, TV ≤ √(1 − e^−KL); and those of Le Cam,
# H² ≤ TV ≤ √(H²(2 − H²)), where H² is squared Hellinger.

# %%
rng = np.random.default_rng(2)
pairs = [
    rng.dirichlet(np.full(outcomes, concentration), (250, 2))
    for outcomes in (2, 5)
    for concentration in (0.3, 1.0, 5.0)
]
value = {
    name: np.concatenate([exact.discrete(named(name), c[:, 0], c[:, 1]) for c in pairs])
    for name in ("forward_kl", "total_variation", "squared_hellinger")
}
kl, tv, hellinger = value.values()
orders = np.arange(1, 13) / 4
p, q = np.array([0.6, 0.3, 0.1]), np.array([0.25, 0.25, 0.5])
renyi = {
    "of p from q": [float(exact.discrete(generators.renyi(a), p, q)) for a in orders],
    "of q from p": [float(exact.discrete(generators.renyi(a), q, p)) for a in orders],
}

figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
for ax, across, up in ((axes[0], kl, tv), (axes[1], tv, hellinger)):
    ax.plot(across, up, ".", color=COLOURS["target"], markersize=2.5, alpha=0.5)
fine = np.linspace(0, 3, 300)
axes[0].plot(fine, np.sqrt(fine / 2), color="black", label="Pinsker")
axes[0].plot(fine, np.sqrt(-np.expm1(-fine)), "--", color="black", label="Bretagnolle–Huber")
axes[0].set(xlabel="KL(p‖q)", title="total variation", xlim=(0, 3), ylim=(0, 1.1))
axes[0].legend(loc="lower right")
fine = np.linspace(0, 1, 200)
axes[1].plot(fine, fine, color="black", label="H² = TV")
axes[1].plot(fine, 1 - np.sqrt(1 - fine**2), "--", color="black", label="TV = √(H²(2 − H²))")
axes[1].set(xlabel="total variation", title="squared Hellinger")
axes[1].legend(loc="upper left")
for (name, values), colour in zip(renyi.items(), ("forward_kl", "reverse_kl"), strict=True):
    axes[2].plot(orders, values, color=COLOURS[colour], label=name)
at_one = [float(exact.discrete(f, p, q)) for f in (forward_kl, reverse_kl)]
axes[2].plot([1, 1], at_one, "o", color="black", label="KL(p‖q), KL(q‖p)")
axes[2].set(xlabel="order", title="Rényi divergence")
axes[2].legend(loc="lower right")
plt.show()

# %% [markdown]
# No pair crosses a line. A small KL forces a small total variation, so every probability that one
# asks of q is nearly right. There is no way back: q may differ from p by as little as one likes in
# total variation, and KL be infinite, where that little is a zero. Hellinger and total variation
# bound each other from both sides and are small together. Pinsker's line is of no use above
# KL = 2, where it allows more than 1; the dashed one is of use everywhere.
#
# Rényi's divergences rise with their order and pass through KL at order 1. An order above 1 asks
# for more than KL does: the χ² at order 2 decides whether importance weights have a variance.
#
# ## Estimates from draws
#
# A sampler gives draws of q and r at each. Three averages are in use for KL(q‖p), mostly where
# language models are tuned by reinforcement learning: k1 averages −r, k2 ½r², k3 eʳ − 1 − r
# ([Schulman 2020](http://joschu.net/blog/kl-approx.html)).
# Here they get the same 4,000 draws, of two Gaussians of one variance, close to each other and
# then not.

# %%
rows = {}
for shift in (0.1, 1.0, 2.0):
    q, p = (dist.Normal(jnp.array([m]), 1.0).to_event(1) for m in (0.0, shift))
    r = -log_ratios(q, p, 1, 4000)
    for estimate in (estimators.k1, estimators.k2, estimators.k3):
        found = estimate(r)
        rows[shift, estimate.__name__] = {
            "exact": float(exact.gaussian_kl(q, p)),
            "estimate": found.value,
            "its error": found.mcse,
        }
ks = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["shift", "estimator"])
ks.round(4)

# %% [markdown]
# **Near each other** k1 is a poor estimate: its error is a third of the value. k2 and k3, which
# are never negative, are more than ten times as precise. **Farther apart** k2 is wrong, and no
# number of draws would help: what it estimates is something else, here KL + ½KL². k3 is right on
# average everywhere, but its eʳ are importance weights: at a shift of 2 its error is twice that
# of k1. So k3 serves while p and q are near, as a policy and its reference in fine-tuning, and k1
# where they are not.
#
# What becomes of estimates in more dimensions? Now p is a standard Gaussian and q one with sd 0.75
# in every coordinate, in 2, 10 and 50 dimensions. Each estimator gets 1,000 draws of each, three
# times over.


# %%
def estimates(d, seed):
    p, q = (dist.Normal(jnp.zeros(d), s).to_event(1) for s in (1.0, 0.75))
    of_p, of_q = (g.sample(jax.random.key(seed + i), (1000,)) for i, g in enumerate((p, q)))
    r_p, r_q = (np.asarray(p.log_prob(x) - q.log_prob(x)) for x in (of_p, of_q))
    chi_square = named("pearson_chi_square")
    exact_kl, exact_renyi = exact.gaussian_kl(p, q), exact.gaussian_renyi(p, q, 2)
    return {
        "KL(p‖q) by k1, draws of p": (float(exact_kl), estimators.k1(-r_p)),
        "KL(p‖q) by nearest neighbours": (
            float(exact_kl),
            estimators.nearest_neighbour(np.asarray(of_p), np.asarray(of_q)),
        ),
        "χ²(p‖q), draws of q": (
            float(jnp.expm1(exact_renyi)),
            estimators.from_guide(chi_square, r_q),
        ),
    }


rows = {}
for d in (2, 10, 50):
    repeats = [estimates(d, seed) for seed in (10, 20, 30)]
    for name, (truth, _) in repeats[0].items():
        found = [repeat[name][1] for repeat in repeats]
        rows[name, d] = {"exact": truth}
        rows[name, d] |= {f"estimate {i}": e.value for i, e in enumerate(found, start=1)}
        rows[name, d]["stated error"] = max(e.mcse for e in found)
many = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["estimator", "dimensions"])
many.map(shown)

# %% [markdown]
# The average of r over draws of p stays right: its error grows, and says so. The other two are
# too low from the start, and their errors do not tell.
#
# - **Nearest neighbours** need no densities and pay for it. In 10 dimensions the estimate of a
#   divergence of 1 is negative; in 50 it is off by more than the divergence itself, with a
#   stated error of about a tenth.
# - **Plain Monte Carlo of χ²** sees only where q draws, and χ² lives in p's tails, where q hardly
#   does. In 50 dimensions it is too small by a factor of more than ten million. Its error belongs
#   to the draws that it has seen, not to those that it has not.
#
# Which of the library's estimators holds where, measured over many repeats, is tabled in
# `docs/estimators.md`.
#
# ## One Gaussian for two modes
#
# Which Gaussian is the best for a target with two modes, 0.55 of the mass around −3 and 0.45
# around 3, each with sd 0.8? It depends on who asks. In one dimension a sum over a fine grid is as
# good as exact, and the whole plane of means and sds can be searched, so what follows are true
# optima, not what some optimiser happened to find.

# %%
x = jnp.linspace(-24, 24, 601)
log_width = jnp.log(x[1] - x[0])
log_target = jnp.logaddexp(
    jnp.log(0.55) + norm.logpdf(x, -3, 0.8), jnp.log(0.45) + norm.logpdf(x, 3, 0.8)
)


def divergence_of(f, guide):
    """D(target, guide), the guide being its mean and the log of its sd."""
    log_q = norm.logpdf(x, guide[0], jnp.exp(guide[1]))
    log_m = jnp.logaddexp(log_target, log_q) - jnp.log(2)
    return generators.mean(f, log_m + log_width, log_target - log_q)


@partial(jax.jit, static_argnums=0)
def best_within(f, centre, reach):
    """The best of a grid of guides around one."""
    steps = jnp.linspace(-1, 1, 33)
    guides = centre + reach * jnp.stack(jnp.meshgrid(steps, steps), -1).reshape(-1, 2)
    values = jax.lax.map(partial(divergence_of, f), guides, batch_size=99)
    return guides[values.argmin()], values.min()


def best_gaussian(f):
    guide, reach = jnp.array([0.0, 0.4]), jnp.array([4.5, 1.3])
    while reach[0] > 1e-4:
        guide, value = best_within(f, guide, reach)
        reach = 0.3 * reach
    return {"mean": float(guide[0]), "sd": float(jnp.exp(guide[1])), "divergence": float(value)}


optima = pd.DataFrame.from_dict({f.__name__: best_gaussian(f) for f in F_DIVERGENCES}, "index")

figure, axes = panels()
for ax, (name, fit) in zip(axes, optima.iterrows(), strict=True):
    ax.fill_between(x, np.exp(log_target), color=COLOURS["target"], alpha=0.25, linewidth=0)
    ax.plot(x, norm.pdf(x, fit["mean"], fit["sd"]), color=colour_of(name), linewidth=2)
    ax.set(xlim=(-9, 9), yticks=[])
plt.show()

# %%
optima.round(3)

# %% [markdown]
# - **On the heavier mode**: reverse KL and Neyman's χ², which are infinite where q has mass that p
#   lacks, and so keep q out of the gap. Their sd is that of one mode.
# - **Over both**: forward KL and Pearson's χ², which are infinite where q lacks mass of p; and
#   here Jeffreys, Jensen–Shannon and Hellinger too. Forward KL has the mean and the sd of the
#   target, −0.3 and 3.09, as it always does among Gaussians. Jeffreys is narrower, Pearson's χ²
#   wider.
# - **Between**: total variation stays by the heavier mode with nearly twice its sd. It counts how
#   much mass is in the wrong place, and not how wrong the place is.
#
# A divergence that is symmetric is no compromise in what it finds: Jensen–Shannon and Hellinger
# are all but as wide here as forward KL.
#
# ## The way from one to the other
#
# Amari's α-divergences run from KL(q‖p) at α = 0 to KL(p‖q) at 1, with four times squared
# Hellinger half way. Does the best Gaussian change gradually? Follow the optimum of α = 0 by small
# steps of α up, and that of α = 1 by small steps down.


# %%
@jax.jit
def slope(guide, a):
    return jax.value_and_grad(lambda g: divergence_of(generators.Alpha(a), g))(guide)


def follow(start, alphas):
    """Local optima along the way, each the start of the next."""
    found = []
    for a in alphas:
        best = minimize(slope, start, args=(a,), jac=True, method="BFGS", options={"gtol": 1e-6})
        start = best.x
        found.append((best.fun, best.x[0], np.exp(best.x[1])))
    return np.array(found).T


alphas = np.linspace(0, 1, 41)
ends = {name: optima.loc[name, ["mean", "sd"]].to_numpy() for name in ("reverse_kl", "forward_kl")}
ends = {name: np.array([mean, np.log(sd)]) for name, (mean, sd) in ends.items()}
branches = {
    "reverse_kl": follow(ends["reverse_kl"], alphas),
    "forward_kl": follow(ends["forward_kl"], alphas[::-1])[:, ::-1],
}
better = branches["reverse_kl"][0] < branches["forward_kl"][0] - 1e-9
jump = alphas[better][-1], alphas[~better][0]

figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
for ax, i, title in zip(axes, range(3), ("divergence", "mean", "sd"), strict=True):
    for name, here in (("reverse_kl", better), ("forward_kl", ~better)):
        ax.plot(alphas, branches[name][i], color=COLOURS[name], linewidth=0.8)
        ax.plot(alphas[here], branches[name][i][here], color=COLOURS[name], linewidth=3)
    ax.axvspan(*jump, color="grey", alpha=0.3, linewidth=0)
    ax.set(xlabel="α", title=title)
axes[0].set_ylim(top=2.1)
axes[0].legend(
    loc="upper left",
    handles=[
        Line2D([], [], color=COLOURS["reverse_kl"], label="followed from KL(q‖p)"),
        Line2D([], [], color=COLOURS["forward_kl"], label="followed from KL(p‖q)"),
    ],
)
plt.show()
print(f"The best Gaussian jumps between α = {jump[0]:.3f} and {jump[1]:.3f}.")

# %% [markdown]
# It jumps. Both kinds of fit, on the mode and over both, are local optima at once for most α
# (thin lines); which of them is the better changes at one α (grey), where their divergences are
# equal. The mean and the sd change hardly at all before and after. The optimum followed from
# KL(q‖p) ceases to exist a little above α = 0.7, and what started there then falls to the other.
# So no α gives a bit of both here, and an optimiser that is started on one side stays there long
# after the other has become the better.
#
# For a model of your own, the same path is followed by
#
# ```
# vi-demo run MODEL --fit jensen_shannon --path 21
# ```
#
# ## Distillation
#
# A language model's teacher gives a distribution over the next token in each context. What does
# a student do that is too small to tell all contexts apart? Here are twelve contexts and sixteen
# tokens. In each context two tokens lead: one is that context's own favourite, the other, a
# little less likely, is shared by a group of four contexts. The rest is a tail. The student sees
# only the group, so it has one distribution where the teacher has four.
#
# Four students differ only in their loss: forward KL, as in the classic recipe
# ([arXiv 1503.02531](https://arxiv.org/abs/1503.02531)); reverse KL, as in MiniLLM
# ([arXiv 2306.08543](https://arxiv.org/abs/2306.08543)); Jensen–Shannon, as in GKD
# ([arXiv 2306.13649](https://arxiv.org/abs/2306.13649)); and the mix of both KLs that adapts to
# where the student misses, on the teacher's head or on its tail
# ([arXiv 2404.02657](https://arxiv.org/abs/2404.02657)).

# %%
CONTEXTS, GROUPS, TOKENS = 12, 3, 16
HEAD = 0.7  # of the teacher's mass
rng = np.random.default_rng(0)
group = np.repeat(np.arange(GROUPS), CONTEXTS // GROUPS)
teacher = rng.normal(0, 0.7, (CONTEXTS, TOKENS))
teacher[np.arange(CONTEXTS), np.arange(CONTEXTS)] = 5.0  # the favourite
teacher[np.arange(CONTEXTS), CONTEXTS + group] = 4.4  # shared by the group

losses = {
    "forward_kl": partial(applied.distillation_loss, divergence="forward_kl"),
    "reverse_kl": partial(applied.distillation_loss, divergence="reverse_kl"),
    "jensen_shannon": partial(applied.distillation_loss, divergence="jensen_shannon"),
    "adaptive_kl": partial(applied.adaptive_kl, head=HEAD),
}


def distil(loss, steps=3000):
    """Logits (contexts, tokens) of the student that Adam finds, equal within a group."""
    adam = optax.adam(optax.cosine_decay_schedule(0.05, steps))

    def average(student):
        return loss(teacher, student[group]).mean()

    def step(state, _):
        student, moments = state
        updates, moments = adam.update(jax.grad(average)(student), moments)
        return (optax.apply_updates(student, updates), moments), None

    start = jnp.zeros((GROUPS, TOKENS))
    (student, _), _ = jax.lax.scan(step, (start, adam.init(start)), length=steps)
    return student[group]


students = {name: np.asarray(jax.jit(partial(distil, loss))()) for name, loss in losses.items()}

# %%
p = np.asarray(jax.nn.softmax(teacher))
tokens = np.arange(TOKENS)
figure, axes = plt.subplots(1, 4, figsize=(10, 3.0), sharey=True, layout="constrained")
for context, ax in enumerate(axes):
    ax.bar(tokens, p[context], color=COLOURS["target"], alpha=0.35, label="teacher")
    for name, marker in (("forward_kl", "s"), ("reverse_kl", "o")):
        student = np.asarray(jax.nn.softmax(students[name][context]))
        ax.plot(tokens, student, marker, color=COLOURS[name], markersize=4, label=name)
    ax.set(title=f"context {context}", xlabel="token", xticks=[0, 4, 8, 12])
axes[0].set_ylabel("probability")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plt.show()

# %% [markdown]
# Four contexts of one group; the students are the same in all four. Both agree that the shared
# token is the best answer of those who do not know the context. They differ in the rest: forward
# KL spreads over the favourites of all four, reverse KL hardly gives them anything. For these
# students the optima are known: forward KL takes the arithmetic mean of the teacher's
# distributions in a group, reverse KL their geometric mean, normalised. A token that is rare in
# three contexts of four is an ordinary one in the former, and nearly ruled out in the latter.
#
# What is kept, averaged over contexts? The head is the fewest of the teacher's tokens that make up
# 70 % of its mass or more, here the favourite and the shared one, and the tail is all others.

# %%
order = np.argsort(-p, axis=1)
sorted_p = np.take_along_axis(p, order, 1)
head = np.zeros(p.shape, bool)
np.put_along_axis(head, order, np.cumsum(sorted_p, 1) - sorted_p < HEAD, 1)
own, shared = (np.arange(CONTEXTS), tokens[:CONTEXTS]), (np.arange(CONTEXTS), CONTEXTS + group)


def kept(logits):
    q = np.asarray(jax.nn.softmax(logits))
    return {
        "favourite": q[own].mean(),
        "shared": q[shared].mean(),
        "head": q[head].sum() / CONTEXTS,
        "tail": q[~head].sum() / CONTEXTS,
        "entropy": float(exact.entropy(logits, logits=True).mean()),
    }


keeps = pd.DataFrame.from_dict(
    {name: kept(logits) for name, logits in ({"teacher": teacher} | students).items()}, "index"
)
keeps.round(3)

# %% [markdown]
# - **Forward KL keeps how often each token comes overall.** The shared one has the teacher's 0.329
#   exactly, each favourite about a quarter of its 0.600. The price is paid in the single context:
#   over half of the student's mass lies on the teacher's tail, mostly on favourites of other
#   contexts, and its entropy is 0.77 nats above the teacher's.
# - **Reverse KL keeps to what is safe in every context.** Less than a quarter of its mass is on
#   the tail, and its entropy is near the teacher's. The price is variety: three quarters of its
#   mass are on the one shared token, which is nowhere the teacher's first choice, and the
#   favourites have all but gone, 0.037 being left of 0.600.
# - **Jensen–Shannon and the adaptive mix** lie between, and are nearly the same student here.
#
# That reverse KL has the teacher's entropy more nearly does not mean that it has learnt more: it
# is sure of another answer.
#
# And how does each student look to the other losses?

# %%
judges = losses | {
    "total_variation": partial(applied.distillation_loss, divergence="total_variation")
}
judged = pd.DataFrame(
    {
        by: {name: float(judge(teacher, logits).mean()) for name, logits in students.items()}
        for by, judge in judges.items()
    }
).rename_axis("trained under")
judged.round(3)

# %% [markdown]
# Each student is the best of the four by the loss that it was trained under, and none is the best
# by all. Judged by total variation, on which none was trained, forward KL does best here and
# reverse KL worst. So the choice of a loss is a choice of what to lose: forward KL where
# probabilities are used as such, for sampling with the right variety or as a start for further
# training; reverse KL where a student has to be plausible whenever it speaks. For a student that
# is large enough there is nothing to choose, for all of them are 0 where p = q and nowhere else.
#
# `vi_demo.divergences.applied` has more that a divergence is used for: a policy held near a
# reference, mutual information, tests between two hypotheses, the choice between models. The
# notebook on the two directions of KL (`two_directions.py`) has the same questions asked of fits
# to NumPyro models.
