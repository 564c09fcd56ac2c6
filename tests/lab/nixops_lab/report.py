"""What the lab says to the person who called it: progress on stderr, and errors that name their remedy."""

import sys


class LabError(Exception):
    """Something a person must know: what happened, where, what next.

    Printed without a traceback; the exit status is 1.
    """


def say(message: str) -> None:
    """One line of progress, on stderr: stdout is for what a program may read."""
    sys.stderr.write(f"[lab] {message}\n")
    sys.stderr.flush()
