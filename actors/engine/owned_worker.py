"""For vLLM's worker processes that have no extension of ours: vLLM loads this module there (`worker_extension_cls`)."""

from __future__ import annotations

from actors.engine.owner import end_with_owner

end_with_owner()


class OwnedWorker:
    """Mixed into vLLM's worker, to which it adds nothing."""
