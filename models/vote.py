"""Clinton or Dole: a posterior that is nearly Gaussian.

The easy case: a logistic regression of 944 answers from the 1996 American National Election Study,
which leave little room for skewness, so a full-rank Gaussian fitted in either direction should be
right.

Data: American National Election Studies, 1996.
"""

from pathlib import Path

import numpy as np
import numpyro
import numpyro.distributions as dist

coords = {"predictor": ["log_popul", "TVnews", "selfLR", "age", "educ", "income"]}
dims = {"beta": ["predictor"], "vote": ["respondent"]}


def data():
    """Return the standardised predictors and the votes: 0 for Clinton, 1 for Dole."""
    file = Path(__file__).parent / "data" / "vote.csv"
    table = np.genfromtxt(file, delimiter=",", names=True)
    # The smallest places are recorded as 0 thousand people; the 0.1 keeps their log finite.
    log_popul = np.log(table["popul"] + 0.1)
    x = np.column_stack([log_popul, *(table[name] for name in coords["predictor"][1:])])
    # On one scale, one prior suits every coefficient.
    return {"predictors": (x - x.mean(axis=0)) / x.std(axis=0), "vote": table["vote"].astype(int)}


def model(predictors, vote=None):
    """Regress the log odds of a vote for Dole on the predictors."""
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 2.5))
    with numpyro.plate("predictor", predictors.shape[1]):
        beta = numpyro.sample("beta", dist.Normal(0.0, 2.5))
    with numpyro.plate("respondent", len(predictors)):
        numpyro.sample("vote", dist.Bernoulli(logits=alpha + predictors @ beta), obs=vote)
