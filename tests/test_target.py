"""Targets: densities with their Jacobians, the way back to sites, and what is refused."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from scipy import stats
from xarray import DataTree

from vi_demo import Target, check, climbs, starts
from vi_demo.batching import in_slices, widest
from vi_demo.errors import InputError, MixedPrecision
from vi_demo.frames import Frame, seen_from

KEY = jax.random.key(0)

SUPPORTS = {
    "real": dist.Normal(0, 1),
    "positive": dist.Gamma(2.0, 1.0),
    "unit_interval": dist.Beta(2.0, 3.0),
    "interval": dist.Uniform(-2.0, 5.0),
    "greater_than": dist.Pareto(2.0, 3.0),
    "less_than": dist.TruncatedNormal(0.0, 1.0, high=1.5),
    "simplex": dist.Dirichlet(jnp.array([2.0, 3.0, 4.0])),
    "ordered": dist.TransformedDistribution(
        dist.Normal(jnp.zeros(3), 1.0).to_event(1), dist.transforms.OrderedTransform()
    ),
    "correlation_cholesky": dist.LKJCholesky(3, 2.0),
    "correlation": dist.LKJ(3, 2.0),
    "positive_definite": dist.Wishart(5.0, scale_matrix=jnp.eye(2)),
    "circular": dist.VonMises(0.5, 2.0),
    "real_vector": dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
}


@pytest.mark.parametrize("support", SUPPORTS)
def test_every_support(support):
    """Points of R^d come back inside the support, with the density times the Jacobian."""
    prior = SUPPORTS[support]
    target = Target.from_numpyro(lambda: numpyro.sample("x", prior))
    z = 0.3 * jnp.arange(1.0, target.dim + 1) - 0.5
    x = target.constrain(z)["x"]
    assert bool(jnp.all(prior.support(x)))
    assert x.shape == target.sites["x"] == prior.event_shape
    transform = dist.transforms.biject_to(prior.support)
    shape = transform.inverse_shape(prior.event_shape)
    jacobian = transform.log_abs_det_jacobian(z.reshape(shape), x)
    expected = prior.log_prob(x) + jnp.sum(jacobian)
    assert float(target.log_density(z)) == pytest.approx(float(expected), rel=1e-9, abs=1e-9)


def test_jacobian_integrates_to_the_evidence():
    """The unconstrained density of a conjugate model integrates to its marginal likelihood."""

    def model(k):
        rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0))
        numpyro.sample("k", dist.Poisson(rate), obs=k)

    target = Target.from_numpyro(model, {"k": 4})
    z = np.linspace(-12, 6, 20_001)
    density = np.exp(target.log_densities(jnp.asarray(z)[:, None]))
    exact = stats.nbinom(3, 2 / 3).pmf(4)
    assert np.trapezoid(density, z) == pytest.approx(exact, rel=1e-8)


def test_sites_keep_their_order_and_names():
    def model(y):
        b = numpyro.sample("b", dist.Normal(0, 1).expand([2]).to_event(1))
        a = numpyro.sample("a", dist.HalfNormal(1.0))
        numpyro.deterministic("product", a * b)
        numpyro.sample("y", dist.Normal(b.sum(), a), obs=y)

    target = Target.from_numpyro(model, {"y": 1.0})
    assert target.sites == {"b": (2,), "a": ()}
    values = target.constrain(jnp.array([1.0, 2.0, 0.0]))
    np.testing.assert_allclose(values["b"], [1, 2])
    np.testing.assert_allclose(values["product"], [1, 2])
    assert float(values["a"]) == pytest.approx(1.0)


def test_prior_and_likelihood_add_up():
    def model(y):
        x = numpyro.sample("x", dist.Normal(1.0, 2.0))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)

    target = Target.from_numpyro(model, {"y": np.array([0.3, 0.4])})
    z = jnp.array([0.7])
    prior = float(target.prior.log_density(z))
    assert prior == pytest.approx(stats.norm(1, 2).logpdf(0.7))
    likelihood = np.sum(target.log_likelihood(z)["y"])
    assert likelihood == pytest.approx(stats.norm(0.7, 0.5).logpdf([0.3, 0.4]).sum())
    assert float(target.log_density(z)) == pytest.approx(prior + likelihood)
    draws = jax.vmap(target.prior.draw)(jax.random.split(jax.random.key(0), 4000))
    assert float(draws.mean()) == pytest.approx(1.0, abs=0.15)


def test_an_improper_prior_is_not_drawn_from():
    def model():
        numpyro.sample("x", dist.ImproperUniform(constraints.positive, (), ()))
        numpyro.factor("f", 0.0)

    assert Target.from_numpyro(model).prior is None


def test_from_log_density():
    target = Target.from_log_density(lambda z: -0.5 * z @ z, 3)
    z = jnp.array([1.0, 2.0, 3.0])
    assert float(target.log_density(z)) == pytest.approx(-7.0)
    assert target.sites == {"x": (3,)}


def test_from_draws_of_an_array_and_of_a_tree():
    draws = np.random.default_rng(0).normal(size=(4, 50, 2))
    assert Target.from_draws(draws).draws.shape == (200, 2)
    tree = DataTree.from_dict(
        {
            "posterior": DataTree.from_dict({})
            .to_dataset()
            .assign(
                a=(("chain", "draw"), np.exp(draws[..., 0])),
                b=(("chain", "draw", "k"), np.roll(draws, 1, 1)),
            )
        }
    )
    target = Target.from_draws(tree)
    assert target.sites == {"a": (), "b": (2,)}
    assert target.coordinates == ["log a", "b[0]", "b[1]"]
    np.testing.assert_allclose(target.draws[:, 0], draws[..., 0].ravel(), atol=1e-12)
    np.testing.assert_allclose(
        target.constrain(target.draws[7])["a"], np.exp(draws[..., 0]).flat[7]
    )


def test_arviz_may_be_imported_before_numpyro():
    """Its lazy stand-in for NumPyro must not break numpyro.factor."""
    code = """
import arviz
import numpyro.distributions as dist
import numpyro, vi_demo
target = vi_demo.Target.from_log_density(lambda z: -z @ z, 1)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_masked_prior_is_not_drawn_from():
    def model():
        with numpyro.handlers.mask(mask=False):
            x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.factor("f", -((x - 3.0) ** 2))

    assert Target.from_numpyro(model).prior is None


def test_draws_of_one_variable():
    assert Target.from_draws(np.arange(10.0)).sites == {"x": ()}
    with pytest.raises(InputError, match="too few"):
        Target.from_draws(np.zeros((1, 3)))


def nothing_latent(y=1.0):
    numpyro.sample("y", dist.Normal(0, 1), obs=y)


def only_discrete():
    numpyro.sample("k", dist.Categorical(logits=jnp.zeros(3)))


def endless_discrete():
    rate = numpyro.sample("rate", dist.Gamma(1.0, 1.0))
    numpyro.sample("k", dist.Poisson(rate))


def discrete_from_two():
    x = numpyro.sample("x", dist.Normal(0, 1))
    k = numpyro.sample("k", dist.DiscreteUniform(2, 5))
    numpyro.factor("f", x * k)


def loose_batch():
    numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("k", dist.Categorical(logits=jnp.zeros((4, 3))))


def a_delta():
    numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("fixed", dist.Delta(1.0))


def nothing_inside():
    numpyro.sample("x", dist.Normal(jnp.zeros(0), 1).to_event(1))


def flat():
    x = numpyro.sample("x", dist.ImproperUniform(constraints.real, (), ()))
    numpyro.sample("y", dist.ImproperUniform(constraints.real, (), ()))
    numpyro.factor("f", -(x**2))


def nan_everywhere():
    numpyro.sample("fine", dist.Normal(0, 1))
    x = numpyro.sample("bad", dist.Normal(0, 1))
    numpyro.factor("broken", jnp.log(-1.0 - x**2))


def with_an_if():
    if numpyro.sample("x", dist.Normal(0, 1)) > 0:
        numpyro.factor("f", 1.0)


def broken_code():
    x = numpyro.sample("x", dist.Normal(0, 1))
    return x.no_such_thing


@pytest.mark.parametrize(
    ("model", "pieces"),
    [
        (nothing_latent, ["no continuous latent site", "without obs"]),
        (only_discrete, ["no continuous latent site", "without obs"]),
        (endless_discrete, ["'k'", "endlessly many values (Poisson)", "cut it off"]),
        (discrete_from_two, ["'k'", "begin at 2", "from 0 up"]),
        (loose_batch, ["'k'", "batch of shape (4,)", "numpyro.plate"]),
        (a_delta, ["'fixed'", "Delta", "numpyro.deterministic"]),
        (nothing_inside, ["'x'", "shape (0,)", "are the data empty"]),
        (flat, ["nothing depends on site 'y'", "proper prior"]),
        (with_an_if, ["traced by JAX", "test_target.py", "jnp.where"]),
        (broken_code, ["AttributeError", "test_target.py", "no_such_thing"]),
    ],
)
def test_unusable_models_are_refused_in_one_line(model, pieces):
    with pytest.raises(InputError) as caught:
        Target.from_numpyro(model)
    text = str(caught.value)
    assert "\n" not in text
    for piece in (model.__name__, *pieces):
        assert piece in text


def test_a_density_that_is_finite_nowhere():
    target = Target.from_numpyro(nan_everywhere)
    with pytest.raises(InputError, match=r"finite at none of \d+ .*'broken'.*a factor of nan"):
        starts.points(target, jax.random.key(0), 4)


def test_discrete_sites_are_summed_out_and_drawn_again():
    """A mixture of two Gaussians, whose component is a site of its own."""
    shares, means = np.array([0.3, 0.7]), np.array([-1.0, 2.0])

    def model(y):
        sd = numpyro.sample("sd", dist.LogNormal(0.0, 1.0))
        with numpyro.plate("row", len(y)):
            k = numpyro.sample("k", dist.Categorical(jnp.asarray(shares)))
            mean = numpyro.deterministic("mean", jnp.asarray(means)[k])
            numpyro.sample("y", dist.Normal(mean, sd), obs=y)

    y = np.array([-1.2, 0.4, 2.5])
    target = Target.from_numpyro(model, {"y": y})
    assert target.sites == {"sd": ()} and target.log_likelihood is None
    each = shares * stats.norm(means, np.exp(0.3)).pdf(y[:, None])
    prior = stats.lognorm(1.0).logpdf(np.exp(0.3)) + 0.3
    assert float(target.log_density(jnp.array([0.3]))) == pytest.approx(
        np.log(each.sum(1)).sum() + prior
    )
    drawn = target.discrete_draws(jax.random.key(0), jnp.full((20_000, 1), 0.3))
    expected = each[:, 1] / each.sum(1)
    np.testing.assert_allclose(drawn["k"].mean(0), expected, atol=0.015)
    np.testing.assert_array_equal(drawn["mean"], means[drawn["k"]])
    assert float(target.prior.log_density(jnp.array([0.3]))) == pytest.approx(prior)


def regression(x, y, rows=None):
    b = numpyro.sample("b", dist.Normal(0, 2).expand([2]).to_event(1))
    with numpyro.plate("row", len(x), subsample_size=rows) as i:
        numpyro.sample("y", dist.Normal(b[0] + b[1] * x[i], 1.0), obs=y[i])


@pytest.fixture(scope="module")
def many_rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=20_001)
    return {"x": x, "y": 1.0 - 0.5 * x + rng.normal(size=x.size)}


def test_a_long_subsampled_plate_is_walked_through_in_chunks(many_rows):
    """All rows count once and the prior once, in value and gradient; some rows estimate it."""
    whole = Target.from_numpyro(regression, {k: jnp.asarray(v) for k, v in many_rows.items()})
    parts = Target.from_numpyro(regression, many_rows | {"rows": 100})
    assert parts.chunked and not whole.chunked and whole.estimate is None
    z = jnp.array([0.7, -0.2])
    assert float(parts.log_density(z)) == pytest.approx(float(whole.log_density(z)), rel=1e-12)
    slopes = [jax.grad(t.log_density)(z) for t in (parts, whole)]
    np.testing.assert_allclose(*slopes, rtol=1e-9)
    guesses = jax.vmap(lambda key: parts.estimate(z, key))(
        jax.random.split(jax.random.key(0), 4000)
    )
    error = guesses.std() / len(guesses) ** 0.5
    assert abs(float(guesses.mean() - whole.log_density(z))) < 4 * error
    prior = stats.norm(0, 2).logpdf(z).sum()
    assert float(parts.prior.log_density(z)) == pytest.approx(prior)


def test_sites_inside_a_subsampled_plate_are_cut_to_its_rows():
    y = np.arange(6.0)

    def model(rows=None):
        with numpyro.plate("row", 6, subsample_size=rows) as i:
            a = numpyro.sample("a", dist.Normal(0, 1))
            numpyro.sample("y", dist.Normal(a, 1), obs=jnp.asarray(y)[i])

    target = Target.from_numpyro(model, {"rows": 2})
    z = jnp.linspace(-1, 1, 6)
    guesses = jax.vmap(lambda key: target.estimate(z, key))(jax.random.split(KEY, 4000))
    exact = stats.norm.logpdf(z).sum() + stats.norm.logpdf(y - z).sum()
    assert float(target.log_density(z)) == pytest.approx(exact)
    assert float(guesses.mean()) == pytest.approx(exact, abs=4 * float(guesses.std()) / 4000**0.5)


def test_parameters_are_found_and_can_be_held():
    def model(y):
        scale = numpyro.param("scale", 2.0, constraint=constraints.positive)
        x = numpyro.sample("x", dist.Normal(0, scale))
        numpyro.sample("y", dist.Normal(x, 1), obs=y)

    target = Target.from_numpyro(model, {"y": 3.0})
    assert float(target.parameters["scale"]) == pytest.approx(np.log(2.0))
    z = jnp.array([1.0])
    held = target.given({"scale": jnp.log(4.0)})
    expected = stats.norm(0, 4).logpdf(1.0) + stats.norm.logpdf(2.0)
    assert float(held.log_density(z)) == pytest.approx(expected) and not held.parameters
    assert float(target.joint(z, {"scale": jnp.log(4.0)})) == pytest.approx(expected)
    assert float(target.log_density(z)) != pytest.approx(expected)


def test_values_imputed_behind_a_mask_leave_no_flat_direction():
    """What obs_mask leaves over of its latents is given N(0, 1), which changes nothing else."""
    seen = np.array([True, False, True])

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("row", 3):
            numpyro.sample("y", dist.Normal(mu, 1), obs=y, obs_mask=seen)

    y = np.array([0.5, 0.0, -1.0])
    target = Target.from_numpyro(model, {"y": y})
    z = jnp.array([0.2, 0.1, 0.7, -0.4])
    exact = (
        stats.norm.logpdf([0.2, 0.1, -0.4]).sum() + stats.norm(0.2).logpdf([0.7, 0.5, -1]).sum()
    )
    assert float(target.log_density(z)) == pytest.approx(exact)


def test_names_of_coordinates_keep_the_order_of_the_sites():
    def model():
        numpyro.sample("b", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("a", dist.Normal(0, 1))

    assert Target.from_numpyro(model).coordinate_names == ["b[0]", "b[1]", "a"]


def test_what_is_told_of_a_model():
    def model(y):
        a = numpyro.sample("a", dist.HalfNormal(1.0))
        numpyro.sample("k", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(0, a).expand([2]).to_event(1), obs=y)

    said = check(model, {"y": np.ones(2)}, name="told").splitlines()
    assert said[:4] == [
        "told: 1 dimension",
        "  a: latent, positive, prior HalfNormal",
        "  k: discrete, summed out, boolean, prior Bernoulli",
        "  y of shape [2]: observed, is argument y, Normal",
    ]


def test_a_direction_without_an_end_is_told():
    def model():
        free = dist.ImproperUniform(constraints.real, (), ())
        a, b = numpyro.sample("a", free), numpyro.sample("b", free)
        numpyro.factor("f", -((a + b) ** 2))

    said = check(model).splitlines()
    assert any("may be too: the density does not fall along a with b" in line for line in said)


@pytest.mark.parametrize("number", [1, 5, 10, 11, 23])
def test_slices_leave_nothing_out(number):
    points, keys = jnp.arange(number * 2.0).reshape(number, 2), jnp.arange(number)
    found = in_slices(lambda at: (at[0].sum(), at[0] + at[1]), (points, keys), 5)
    np.testing.assert_array_equal(found[0], points.sum(1))
    np.testing.assert_array_equal(found[1], points + keys[:, None])


def test_fewer_points_at_once_where_each_makes_large_arrays():
    """Whatever the model holds besides, as rows of data, is not made anew by each point."""
    table = jnp.ones((500, 20))

    def some(z):
        return jnp.sum(table @ jnp.outer(z, z)[:, 0])

    def many(z):
        return jax.lax.scan(lambda c, x: (c + jnp.sum(jnp.outer(z, x) ** 2), None), 0.0, table)[0]

    assert (widest(some, 20), widest(many, 20), widest(jnp.sum, 3)) == (500, 400, 1)
    points = [
        Target.from_log_density(lambda z: -jnp.sum(jnp.outer(z, z) ** 2), d, "p").batch
        for d in (2, 100, 4000)
    ]
    assert points[0] > points[1] > points[2] == 1


def test_sites_that_are_not_finite_are_named():
    def model():
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.factor("cut", jnp.where(x > 1.5, jnp.nan, 0.0))

    target = Target.from_numpyro(model)
    points = jnp.linspace(-3, 3, 101)[:, None]
    assert target.not_finite_at(points) == "'cut' (24.8% of draws): a factor of nan"
    assert target.not_finite_at(points[:50]) is None


@pytest.mark.parametrize("draws", [np.ones((50, 2)), np.random.default_rng(0).normal(size=(3, 5))])
def test_draws_without_spread_are_refused(draws):
    with pytest.raises(InputError, match="leave some direction without any spread; give more"):
        Target.from_draws(draws)


def test_missing_values_that_the_model_sees_to(capsys):
    """Two values imputed: the density is that of four normals and of a line through them."""

    def model(x, y=None):
        guess = numpyro.sample("guess", dist.Normal(0, 1).expand([2]).to_event(1))
        x = jnp.where(jnp.isnan(x), jnp.zeros(4).at[jnp.array([1, 3])].set(guess), x)
        numpyro.sample("x", dist.Normal(0, 1), obs=x)
        numpyro.sample("y", dist.Normal(x, 1), obs=y)

    data = {"x": np.array([0.5, np.nan, -1.0, np.nan]), "y": np.arange(4.0)}
    target = Target.from_numpyro(model, data)
    x = np.array([0.5, 0.2, -1.0, -0.3])
    exact = stats.norm.logpdf(x).sum() + stats.norm.logpdf(data["y"] - x).sum()
    exact += stats.norm.logpdf([0.2, -0.3]).sum()
    assert float(target.log_density(jnp.array([0.2, -0.3]))) == pytest.approx(exact)
    (said,) = target.remarks
    assert said == "model: x[1] is nan (and 1 more): the model is trusted to impute or mask it"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            np.array([1.0, np.nan, np.nan]),
            r"y\[1\] is nan \(and 1 more\); drop or impute that row",
        ),
        (np.full((3, 2), np.nan), r"y\[0, 0\] is nan \(and 5 more\)"),
        (jnp.array([[1.0, 2.0], [3.0, jnp.inf]]), r"y\[1, 1\] is inf; .* mask it in the model"),
        (float("nan"), r"y is nan;"),
    ],
)
def test_missing_values_that_it_does_not(value, words):
    def model(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 1)), 1), obs=y)

    with pytest.raises(InputError, match=f"^model: {words}"):
        Target.from_numpyro(model, {"y": value})


def test_data_that_are_one_batch_of_a_longer_plate():
    """Each of the batch's rows counts for size / subsample_size of the plate's."""

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("rows", 30, subsample_size=10):
            numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    y = np.linspace(-1, 2, 10)
    target = Target.from_numpyro(model, {"y": y})
    exact = stats.norm.logpdf(0.3) + 3 * stats.norm.logpdf(y - 0.3).sum()
    assert float(target.log_density(jnp.array([0.3]))) == pytest.approx(exact)
    assert "taken for one batch, each row counted 3 times" in target.remarks[0]
    assert target.estimate is None


def test_a_plate_that_the_model_cannot_fill():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("rows", 30, subsample_size=10) as rows:
            numpyro.sample("y", dist.Normal(mu + jnp.zeros(10), 1), obs=y[rows])

    words = r"plate 'rows' takes 10 of 30 rows, and given all .* with subsample_size=30\.$"
    with pytest.raises(InputError, match=words):
        Target.from_numpyro(model, {"y": np.linspace(0, 1, 30)})


@pytest.mark.parametrize("given", [{"taken": 2}, {}], ids=["given", "a default"])
def test_a_model_that_is_told_how_many_rows_it_takes(given):
    """The argument for it follows the rows: all of them, some, or as many as are asked for."""
    y = np.arange(6.0)

    def model(y, taken=2):
        shift = jnp.zeros(taken)
        with numpyro.plate("row", 6, subsample_size=taken) as i:
            a = numpyro.sample("a", dist.Normal(shift, 1))
            numpyro.sample("y", dist.Normal(a, 1), obs=y[i])

    target = Target.from_numpyro(model, {"y": y, **given})
    z = jnp.linspace(-1, 1, 6)
    exact = stats.norm.logpdf(z).sum() + stats.norm.logpdf(y - z).sum()
    assert float(target.log_density(z)) == pytest.approx(exact)
    guesses = jax.vmap(lambda key: target.estimate(z, key))(jax.random.split(KEY, 4000))
    assert float(guesses.mean()) == pytest.approx(exact, abs=4 * float(guesses.std()) / 4000**0.5)


def test_the_padding_of_a_sequence_leaves_no_flat_direction():
    def model(steps, y):
        seen = jnp.arange(3) < steps
        z = numpyro.sample("z", dist.Normal(0, jnp.ones(3)).mask(False).to_event(1))
        numpyro.sample("again", dist.Normal(0, 1).expand([3]).mask(seen).to_event(1), obs=z)
        numpyro.sample("y", dist.Normal(z, 1).mask(seen).to_event(1), obs=y)

    target = Target.from_numpyro(model, {"steps": 2, "y": np.array([1.0, 2.0, 0.0])})
    z = np.array([0.3, -0.2, 0.7])
    exact = stats.norm.logpdf(z).sum() + stats.norm.logpdf([0.7, 2.2]).sum()
    assert float(target.log_density(jnp.asarray(z))) == pytest.approx(exact)


def test_mixed_precision_is_told_apart():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        steps, _ = scan(lambda c, _: (c + jnp.ones((), "i8"), None), jnp.zeros((), "i4"), y)
        numpyro.sample("y", dist.Normal(mu, 1), obs=y + steps)

    with pytest.raises(MixedPrecision, match=r"mixes 32-bit numbers .* at test_target\.py:\d+; "):
        Target.from_numpyro(model, {"y": np.zeros(3)})


def test_no_climb_ends_where_only_rounding_is_left():
    """Up a funnel of Beta(m κ, (1 − m) κ) the density rises until its terms cancel to noise."""

    def model(hits):
        m = numpyro.sample("m", dist.Uniform(0, 1))
        kappa = numpyro.sample("kappa", dist.Pareto(1, 1.5))
        with numpyro.plate("players", 6):
            phi = numpyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
            numpyro.sample("hits", dist.Binomial(45, probs=phi), obs=hits)

    target = Target.from_numpyro(model, {"hits": np.array([18, 17, 16, 15, 14, 14])})
    far = jnp.full(target.dim, -30.0).at[1].set(449.0)
    assert float(target.log_density(far)) > 1e100
    found = starts.climbs(target)
    assert (found.elbos < 0).all() and (found.centres[:, 1] < 20).all()


@jax.custom_vjp
def half_square(z):
    """½ z², which like an ODE solver has a slope but no forward mode."""
    return 0.5 * z @ z


half_square.defvjp(lambda z: (half_square(z), z), lambda z, g: (g * z,))


def by_cdf(z):
    """Of a gamma distribution's shape, whose cdf JAX derives but once."""
    return jnp.log(jax.scipy.special.gammainc(jnp.exp(z), 2.0)).sum() - 0.5 * z @ z


@pytest.mark.parametrize(
    ("log_density", "curvature"),
    [
        (lambda z: -half_square(z), 1.0),
        (lambda z: -0.25 * jnp.vdot(jnp.fft.fft(z), jnp.fft.fft(z)).real / z.size, 0.5),
        (by_cdf, 1.0 + 0.4924),
    ],
    ids=["reverse mode alone", "FFT", "no second derivative"],
)
def test_the_curvature_of_densities_that_resist(log_density, curvature):
    """The last is held against differences of SciPy's: d²/dz² log P(eᶻ, 2) = −0.4924 at 0."""
    target = Target.from_log_density(log_density, 3)
    scale, values, vectors, whole = jax.jit(climbs.curvature_of(target))(jnp.zeros(3))
    assert whole
    precision = vectors @ np.diag(values) @ vectors.T / scale / scale[:, None]
    np.testing.assert_allclose(precision, curvature * np.eye(3), atol=2e-4)


def test_no_climb_ends_where_a_probability_is_above_one(monkeypatch):
    """Far out, NumPyro's negative binomial loses a term to rounding: its mass there is e^1000s."""
    y = np.array([1, 3, 8, 27, 75, 221, 290])

    def model(y):
        rate = numpyro.sample("rate", dist.LogNormal(0, 1))
        spread = numpyro.sample("spread", dist.Exponential(5))
        mean = jnp.exp(rate * jnp.arange(7.0))
        numpyro.sample("y", dist.NegativeBinomial2(mean, 1 / spread).to_event(1), obs=y)

    target = Target.from_numpyro(model, {"y": y})
    near, far = jnp.array([0.0, -1.0]), jnp.array([1.5, -324.0])
    assert float(target.log_density(far)) > 0 > float(target.log_density(near))
    assert target.believable(near) and not target.believable(far)
    both = climbs.Climbs(
        centres=jnp.stack([near, far]),
        factors=jnp.stack([jnp.eye(2)] * 2),
        scales=jnp.ones((2, 2)),
        elbos=jnp.array([-30.0, 2e4]),
        whole=jnp.array([True, True]),
        steps=jnp.array([9, 9]),
    )
    monkeypatch.setattr(starts, "upward", lambda *_: (both, {"log_density": 1, "gradient": 1}))
    assert starts.climbs(target).elbos == -30


def test_a_scale_of_its_own_changes_no_value_that_is_told():
    """What a message says of a site is of the point z, on whatever scale a fit steps."""

    def model(y):
        rate = numpyro.sample("rate", dist.LogNormal(0, 1))
        numpyro.sample("y", dist.Poisson(rate), obs=y)

    target = Target.from_numpyro(model, {"y": np.array([2, 3])})
    here = seen_from(target, Frame(jnp.array([-3.0]), jnp.array([0.5])))
    u, z = jnp.array([2.0]), jnp.array([-2.0])
    assert here.inputs(u, "y") == target.inputs(z, "y") == "Poisson(rate=0.1353) at 2…3"
    assert here.log_density(u) == target.log_density(z) + np.log(0.5)
    assert here.believable(u)
    np.testing.assert_allclose(here.log_likelihood(u)["y"], target.log_likelihood(z)["y"])


def test_a_density_on_the_line_has_no_probability_to_doubt():
    def model(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 1)), 1e-9), obs=y)

    assert Target.from_numpyro(model, {"y": np.zeros(2)}).believable is None
