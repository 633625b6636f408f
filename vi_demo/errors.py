"""The one error that is meant for people: the input cannot be used as it is."""


class InputError(ValueError):
    """What is wrong, where, and the remedy, in one line; the command line exits with 2 on it."""
