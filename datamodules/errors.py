"""The one exception for input a user can mend."""


class InputError(ValueError):
    """Says what in the user's input cannot be used, and what to do about it, in one line.

    The command line prints the message alone and leaves with status 2; in Python it is a `ValueError`.
    """


class DatasetNotFoundError(InputError, FileNotFoundError):
    """Names the data that is missing, the place that was searched and the argument to change."""
