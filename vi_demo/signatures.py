"""What a model can be called with, and the model as something that is called by names alone."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from inspect import BoundArguments, Parameter, Signature
from typing import NamedTuple

VARIABLE = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
ANYTHING = inspect.signature(lambda **anything: None)


class Takes(NamedTuple):
    """What a model takes: how a call is written, its parameters, and whether any name will do.

    `rest` is the name of `*args`, where there is one: an argument that is a tuple. Those that are
    `optional` the model does without, where they are None.
    """

    call: str
    parameters: dict[str, Parameter]
    any_name: bool
    rest: str | None
    optional: frozenset[str]

    def accepts(self, name) -> bool:
        """Whether an argument can be given by this name."""
        return name in self.parameters or (self.any_name and isinstance(name, str))

    @property
    def by_position(self) -> list[str]:
        """The arguments that can be given without their names, in order."""
        return [k for k, p in self.parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]


def takes_of(model: Callable, name: str) -> Takes:
    """What `model`, which people call `name`, takes."""
    signature = signature_of(model)
    parameters = {p.name: p for p in _named(signature).parameters.values()}
    others = [k for k, p in parameters.items() if p.kind is p.VAR_KEYWORD]
    named = {k: p for k, p in parameters.items() if k not in others}
    rest = next(
        (p.name for p in signature.parameters.values() if p.kind is p.VAR_POSITIONAL), None
    )
    shown = [f"*{k}" if k == rest else k for k in named] + ["..."] * len(others)
    nothing = [k for k, p in named.items() if p.default is None]
    optional = frozenset(k for k in nothing if may_be_left_out(model, k))
    return Takes(f"{name}({', '.join(shown)})", named, bool(others), rest, optional)


def by_name(model: Callable) -> Callable:
    """`model`, with a name for each argument also where it takes them by position alone.

    `*args` becomes an argument `args`, a tuple. A model that can be called so is left as it is.
    """
    signature = signature_of(model)
    named = _named(signature)
    if named == signature:
        return model

    @functools.wraps(model, updated=())
    def call(**arguments):
        bound = named.bind(**arguments)
        bound.apply_defaults()
        placed = BoundArguments(signature, bound.arguments)
        return model(*placed.args, **placed.kwargs)

    call.__signature__ = named
    return call


def _named(signature: Signature) -> Signature:
    """A signature without arguments that have no name to be given by."""

    def named(p):
        if p.kind is p.VAR_POSITIONAL:
            return Parameter(p.name, p.KEYWORD_ONLY, default=())
        return p.replace(kind=p.POSITIONAL_OR_KEYWORD) if p.kind is p.POSITIONAL_ONLY else p

    return signature.replace(parameters=[named(p) for p in signature.parameters.values()])


def signature_of(model: Callable) -> Signature:
    """The signature of a model, seen through NumPyro's handlers."""
    try:
        signature = inspect.signature(model)
    except (TypeError, ValueError):  # some compiled callables do not say
        return ANYTHING
    # A handler that decorates a model says (*args, **kwargs) in its stead.
    hides = all(p.kind in VARIABLE for p in signature.parameters.values())
    return signature_of(model.fn) if hides and _handled(model) else signature


def function_of(model: Callable) -> Callable:
    """The function inside handlers, partial and decorators."""
    if isinstance(model, functools.partial):
        return function_of(model.func)
    return function_of(model.fn) if _handled(model) else inspect.unwrap(model)


def _handled(model: Callable) -> bool:
    return callable(getattr(model, "__dict__", {}).get("fn"))


def states_a_model(function: Callable) -> bool:
    """Whether a function speaks of NumPyro's sample or factor, or of another `model`."""
    function = function_of(function)
    code = getattr(function, "__code__", None) or getattr(
        type(function).__call__, "__code__", None
    )
    return bool(code) and not {"sample", "factor", "model"}.isdisjoint(code.co_names)


def may_be_left_out(model: Callable, name: str) -> bool:
    """Whether a model's source asks if an argument is None, and observes nothing made from it.

    Of others that default to None it must be feared that an observed site would be drawn.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function_of(model))))
    except (OSError, TypeError, SyntaxError):
        return False
    nodes = list(ast.walk(tree))
    asks = (n for n in nodes if isinstance(n, ast.Compare) and isinstance(n.ops[0], _IDENTITY))
    if not any(_names(n.left) == {name} for n in asks):
        return False
    made, before = {name}, set()
    while made != before:  # what is made from it, and what is made from that
        before = set(made)
        for node in nodes:
            if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.NamedExpr):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if node.value is not None and _names(node.value) & made:
                    made |= set().union(*map(_names, targets))
    return not any(
        isinstance(n, ast.keyword) and n.arg == "obs" and _names(n.value) & made for n in nodes
    )


_IDENTITY = (ast.Is, ast.IsNot)


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
