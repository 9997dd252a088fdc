"""A rollout worker with ways into its engine, and vLLM's view of a policy's parameters."""

import asyncio
import hashlib
import os
from dataclasses import replace

import torch

from actors.episode import VersionSpan
from actors.fleet.worker import RolloutWorker
from actors.play import Completion, PlayRequest, Sampling, ShownImage
from actors.prompts import TURN_END
from configs.tools import ToolsConfig


class OpenWorker(RolloutWorker):
    """The worker, with a way to its engine and its processes for tests."""

    _forced: tuple[str, ...] = ()

    async def play_forced(self, request: PlayRequest, tools: ToolsConfig, replies: tuple[str, ...]):
        """Play with these tools; the first turns say `replies`, the one after them is sampled."""
        self._rollout, self._forced = replace(self._rollout, tools=tools), replies
        try:
            return await self.play(request)
        finally:
            self._rollout, self._forced = replace(self._rollout, tools=ToolsConfig()), ()

    async def _generate(self, prompt_ids, images, sampling):
        if len(images) > len(self._forced):
            return await super()._generate(prompt_ids, images, sampling)
        said = tuple(self._renderer._encode(self._forced[len(images) - 1] + TURN_END))
        spans = (VersionSpan(version=self._engine.version, num_tokens=len(said)),)
        return Completion(token_ids=said, logprobs=(0.0,) * len(said), finish_reason="stop", version_spans=spans)

    async def generate(self, prompt_ids: tuple[int, ...]) -> int:
        sampling = Sampling(temperature=0.0, max_tokens=1)
        completion = await self._engine(prompt_ids, (), sampling)
        return len(completion.token_ids)

    async def leave_and_ask_again(self, prompt_ids: tuple[int, ...], pictures: list[ShownImage]) -> list[int]:
        """Cancel a turn about each picture a little later than the one before, then ask for it again; its tokens."""
        sampling, counts = Sampling(temperature=0.0, max_tokens=1), []
        for patience, picture in enumerate(pictures):
            turn = asyncio.create_task(self._engine(prompt_ids, (picture,), sampling))
            for _ in range(patience):
                await asyncio.sleep(0)
            turn.cancel()
            await asyncio.gather(turn, return_exceptions=True)
            counts.append(len((await self._engine(prompt_ids, (picture,), sampling)).token_ids))
        return counts

    async def engine_digests(self) -> dict[str, str]:
        """By parameter, without the rank that vLLM puts in front."""
        (digests,) = await self._engine._engine.collective_rpc("compute_weight_checksums")
        return {
            name[name.index("language_model." if "language_model." in name else "visual.") :]: value
            for name, value in digests.items()
        }

    async def pid(self) -> int:
        return os.getpid()

    async def num_turns(self) -> int:
        return self._engine._engine.output_processor.get_num_unfinished_requests()

    async def limits(self) -> tuple[int, int, int]:
        scheduler = self._engine._engine.vllm_config.scheduler_config
        return scheduler.max_num_batched_tokens, scheduler.encoder_cache_size, scheduler.max_num_seqs


def vllm_name(name: str) -> str:
    """Of a parameter that vLLM does not stack."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "language_model.model.")


def by_vllm_name(policy, wanted: str) -> torch.Tensor:
    return next(parameter for name, parameter in policy.named_parameters() if vllm_name(name) == wanted)


def padded(name: str, parameter: torch.Tensor) -> torch.Tensor:
    """vLLM pads a vocabulary with rows of zeros to a multiple of 64."""
    missing = -len(parameter) % 64 if name.endswith("embed_tokens.weight") else 0
    return torch.cat([parameter.detach(), parameter.new_zeros(missing, *parameter.shape[1:])])


def digest(tensor: torch.Tensor) -> str:
    """As vLLM computes it."""
    return hashlib.sha256(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
