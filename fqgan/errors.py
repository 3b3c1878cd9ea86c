"""The exceptions that stand for a user's mistake."""


class UserError(ValueError):
    """Bad input from outside: the command line prints it as one line and exits with status 2."""


class UnreadableError(UserError):
    """One picture is broken. Loaders go on without it; elsewhere it is an error as any other."""
