"""Errors that are written for people.

Everything a user can cause is a :class:`BridgeError`: the command line prints its text (what is wrong, where, how to
mend it) without a traceback and ends with its exit code.
"""

from __future__ import annotations


class BridgeError(Exception):
    """Something a user can mend. ``str(error)`` is the whole message."""

    exit_code = 1
    #: another rank of the run prints the same message
    said = False


class ConfigError(BridgeError):
    """A configuration or command line that cannot be run; found before anything heavy is loaded."""

    exit_code = 2


class DataError(BridgeError):
    """Input data that is missing, malformed or empty."""

    exit_code = 2


class CheckpointError(BridgeError):
    """A checkpoint or model directory that is corrupt, incomplete or does not fit."""

    exit_code = 2


class TrainingError(BridgeError):
    """A run that had to stop: NaN, zero tokens, weights that did not arrive, a full disk."""

    exit_code = 3


class RunStopped(TrainingError):
    """A step that cannot be taken, found on every rank alike and before it has changed anything.

    Whoever drives the run saves it as it was before the step, so that it can go on once the cause is mended.
    """
