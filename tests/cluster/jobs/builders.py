"""Jobs as Ray's client tells of them."""

from types import SimpleNamespace
from typing import Any

from ray.job_submission import JobStatus


def make_details(status: JobStatus = JobStatus.RUNNING, **fields: Any) -> SimpleNamespace:
    """As Ray's `JobDetails`, which cannot be built without a dozen other fields."""
    defaults = {
        "submission_id": "tiny-1",
        "driver_exit_code": None,
        "message": None,
        "metadata": {},
        "entrypoint": "sleep 1",
        "start_time": 1_700_000_000_000,
        "end_time": None,
    }
    return SimpleNamespace(status=status, **{**defaults, **fields})
