"""What vLLM's own worker process runs for us: staging a version of the weights, swapping it in, reading it back.

vLLM loads this module inside its engine process (`worker_extension_cls`) and mixes `WeightExtension` into its worker;
`vllm_engine.py` calls the methods by name through `collective_rpc`. Together they are all that knows vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm.platforms import current_platform

from actors.engine.owner import end_with_owner
from actors.engine.weight_receiver import TensorSpec, WeightManifest, bytes_digest, manifest_from_json, verified_tensors
from actors.errors import WeightSyncError

if current_platform.is_cpu():
    # oneDNN packs every linear weight into a copy of its own and drops the original, so that new weights could neither
    # be loaded in place nor read back. The plain path multiplies with the parameter itself.
    from vllm import _custom_ops

    _custom_ops._supports_onednn = False


end_with_owner()


class WeightExtension:
    """Mixed into vLLM's worker, whose `model_runner` it uses."""

    model_runner: Any
    _staged: tuple[WeightManifest, list[np.ndarray]] | None = None

    def stage_weights(self, folder: str, plain_manifest: dict[str, Any]) -> None:
        """Map the buckets in `folder` and verify them. Nothing that generation reads changes."""
        manifest = manifest_from_json(plain_manifest)
        num_buckets = 1 + max(tensor.bucket for tensor in manifest.tensors)
        buckets = [np.memmap(Path(folder) / str(i), dtype=np.uint8, mode="r") for i in range(num_buckets)]
        for _ in verified_tensors(manifest, buckets):
            pass
        self._staged = (manifest, list(buckets))

    def commit_weights(self, version: int) -> dict[str, str]:
        """Load the staged version in place; returns the digest of every tensor as the model now holds it."""
        if self._staged is None or self._staged[0].version != version:
            raise WeightSyncError(f"commit of version {version}, which is not staged")
        manifest, buckets = self._staged
        self._staged = None
        model = self.model_runner.get_model()
        with torch.no_grad():
            model.load_weights(_tensors(manifest, buckets))
        return engine_digests(model, manifest)


def _tensors(manifest: WeightManifest, buckets: list[np.ndarray]) -> Iterator[tuple[str, torch.Tensor]]:
    for tensor in manifest.tensors:
        content = buckets[tensor.bucket][tensor.offset : tensor.offset + tensor.num_bytes]
        # A copy: PyTorch warns about read-only memory, and one tensor at a time costs little.
        yield tensor.name, _typed(torch.from_numpy(np.array(content)), tensor)


def _typed(content: torch.Tensor, tensor: TensorSpec) -> torch.Tensor:
    return content.view(getattr(torch, tensor.dtype)).reshape(tensor.shape)


def engine_digests(model: Any, manifest: WeightManifest) -> dict[str, str]:
    """Checksums of the manifest's tensors, cut out of the engine's own parameters.

    vLLM stacks some checkpoint tensors into one parameter (q, k, v; gate, up) row after row, and pads the vocabulary.
    So the rows of each parameter are handed out in the manifest's order of the stack. With tensor parallelism a
    parameter is a shard, and no digest of the whole exists on one worker: then only the staged bytes are verified.
    """
    packed = {
        part: (fused, index)
        for fused, parts in getattr(model, "packed_modules_mapping", {}).items()
        for index, part in enumerate(parts)
        if part != fused
    }
    parameters = dict(model.named_parameters())
    num_rows = {tensor.name: (tensor.shape[0] if tensor.shape else 1) for tensor in manifest.tensors}
    digests: dict[str, str] = {}
    for tensor in manifest.tensors:
        (mapped,) = model.hf_to_vllm_mapper.apply_list([tensor.name])
        module, _, leaf = mapped.rpartition(".")
        parent, _, last = module.rpartition(".")
        first_row = 0
        if last in packed:
            fused, index = packed[last]
            siblings = [part for part, (name, at) in packed.items() if name == fused and at < index]
            first_row = sum(num_rows[_sibling(tensor.name, last, part)] for part in siblings)
            mapped = f"{parent}.{fused}.{leaf}"
        rows = parameters[mapped].detach()
        rows = rows.reshape(1) if rows.ndim == 0 else rows[first_row : first_row + num_rows[tensor.name]]
        digests[tensor.name] = bytes_digest(rows.contiguous().cpu().view(-1).view(torch.uint8).numpy().data)
    return digests


def _sibling(name: str, last: str, part: str) -> str:
    head, _, tail = name.rpartition(f".{last}.")
    return f"{head}.{part}.{tail}"
