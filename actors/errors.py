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

from actors.causes import gist as gist


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
