"""The errors of a run, named for the boundary that was crossed.

    VisionThinkError
    ├── DataError          a dataset that cannot be read, or too many unusable rows
    │   └── ImageError     one picture that must not or cannot be decoded: the row is skipped
    ├── RolloutError       an engine or a worker that failed, and every group on it
    │   └── SampleError    one group that failed while its engine goes on: it is lost, the worker stays
    ├── JudgeError         verdicts that could not be had
    ├── WeightSyncError    a version that did not arrive whole
    ├── LearnerError       a rank that failed, or too many non-finite updates
    ├── CheckpointError    a checkpoint that cannot be written, or does not verify
    └── RunError           the run cannot go on: too many groups lost, folder in use

All take one message: an exception with other required arguments does not survive pickling through Ray.
A bad setting is a plain ValueError from `configs`; a broken invariant is an AssertionError.
"""

import re

MAX_GIST_CHARS = 600
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""Ray paints the start of a traceback."""


def gist(error: BaseException | str) -> str:
    """The line of an error of Ray or Serve, or of its message, that says why.

    That is the first one, or the last where the traceback of another process comes before its error.
    """
    if isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    text = _COLOURS.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    is_traceback = "creation task" in lines[0] or any(line.startswith(("ray::", "Traceback (most")) for line in lines)
    return (lines[-1] if is_traceback else lines[0])[:MAX_GIST_CHARS]


class VisionThinkError(Exception):
    """Base of all errors of a run."""


class DataError(VisionThinkError):
    """A dataset cannot be read, or too many of its rows are unusable."""


class ImageError(DataError):
    """One picture must not or cannot be decoded."""


class RolloutError(VisionThinkError):
    """An engine or a worker failed; no group can be played there any more."""


class SampleError(RolloutError):
    """One group could not be played, and that alone says nothing against the worker."""


class JudgeError(VisionThinkError):
    """Verdicts could not be had. Never a verdict of its own."""


class WeightSyncError(VisionThinkError):
    """A version of the weights did not arrive whole and in time."""


class LearnerError(VisionThinkError):
    """A learner rank failed, or updates stayed non-finite."""


class CheckpointError(VisionThinkError):
    """A checkpoint cannot be written, or does not verify."""


class RunError(VisionThinkError):
    """The run cannot go on."""
