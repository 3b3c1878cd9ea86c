"""The one exception that stands for a user's mistake."""


class UserError(ValueError):
    """Bad input from outside: the command line prints it as one line and exits with status 2."""
