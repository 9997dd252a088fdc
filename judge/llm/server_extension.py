"""What vLLM's worker process of an LLM judge runs for us: vLLM loads this module there (`worker_extension_cls`)."""

from __future__ import annotations

from actors.engine.owner import end_with_owner

end_with_owner()


class OwnedEngine:
    """Mixed into vLLM's worker, to which it adds nothing."""
