"""Errors that a user can mend: one line each, shown without a stack trace."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that says what was given, what is allowed, and how to mend it.
    Command lines print it and exit with code 2.
    """
