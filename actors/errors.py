"""The errors of a run, named for the component that failed.

    VisionThinkError
    ├── DataError          a data set cannot be read, or too many rows are unusable
    │   └── ImageError     one image cannot or must not be decoded: the row is skipped
    ├── RolloutError       an engine or a worker failed, with every group on it
    │   └── SampleError    one group failed while its engine keeps running: the group is lost
    ├── JudgeError         no verdicts could be obtained
    ├── WeightSyncError    a version of the weights did not arrive intact
    ├── LearnerError       a rank failed, or too many updates were non-finite
    │   ├── RankLostError       the process of a rank is gone
    │   └── InterruptedCallError  a rank lives, but a call to it was cut off: other ranks are gone, or the way to it
    ├── CheckpointError    a checkpoint cannot be written, or fails verification
    └── RunError           the run cannot continue: too many groups lost, folder in use

All take one message: exceptions with other required arguments cannot be unpickled by Ray.
An invalid setting is a plain ValueError from `configs`; a broken invariant is an AssertionError.
"""

from actors.causes import root_cause as root_cause


class VisionThinkError(Exception):
    """Base of all errors of a run."""


class DataError(VisionThinkError):
    """A dataset cannot be read, or too many of its rows are unusable."""


class ImageError(DataError):
    """One image cannot or must not be decoded."""


class RolloutError(VisionThinkError):
    """An engine or a worker failed and cannot run further groups."""


class SampleError(RolloutError):
    """The rollout of one group failed, which by itself is not attributed to the worker."""


class JudgeError(VisionThinkError):
    """No verdicts could be obtained. Never treated as a verdict."""


class WeightSyncError(VisionThinkError):
    """A version of the weights did not arrive intact and in time."""


class LearnerError(VisionThinkError):
    """A learner rank failed, or updates stayed non-finite."""


class RankLostError(LearnerError):
    """The process of a rank, or its node, is gone."""


class InterruptedCallError(LearnerError):
    """A call failed on a rank that may be sound: another one is gone, or one of them could not be reached."""


class CheckpointError(VisionThinkError):
    """A checkpoint cannot be written, or fails verification."""


class RunError(VisionThinkError):
    """The run cannot continue."""


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception of a group, however deeply it is nested."""
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
