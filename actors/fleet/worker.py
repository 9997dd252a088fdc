"""A rollout worker: sample references in, played groups out. `cluster/runtime/starting.py` makes it a Ray actor."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from actors.data.benchmarks.dataset import BenchmarkSet, open_samples
from actors.data.dataset import Dataset
from actors.engine.vllm_engine import VllmEngine
from actors.episode import Episode, PlayedGroup, Sample, SampleRef, SkippedSample
from actors.errors import DataError, RolloutError, SampleError
from actors.fleet.cutting import CutPicture, PictureCutter
from actors.hub import local_copy
from actors.images import ViewSpec
from actors.importing import no_collections
from actors.needs import needed_view
from actors.play import Completion, PlayRequest, Sampling, ShownImage, play_group, rules_for
from actors.prompts import ChatRenderer, load_prompt_style, load_tokenizer, vision_token_ids
from actors.weights.layout import WeightLink, WeightOffer
from actors.weights.receiver import WeightReceiver
from actors.weights.staging import file_identity, staging_root, write_version
from configs.learner import InFlight, Transport
from configs.schema import DataConfig, ModelConfig, RolloutConfig


class RolloutWorker:
    """Owns one engine. Generates only while its weights are a verified version."""

    def __init__(
        self,
        *,
        model: ModelConfig,
        rollout: RolloutConfig,
        data: DataConfig,
        transport: Transport,
        in_flight: InFlight,
        can_sleep: bool,
        seed: int,
    ) -> None:
        end_on_sigterm()
        self._rollout = rollout
        self._data = data
        self._datasets: dict[str, Dataset | BenchmarkSet] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-rows")  # data sets are read by one thread alone
        model = replace(model, path=local_copy(model.path))
        with no_collections():  # it imports much
            tokenizer = load_tokenizer(model.path)
        self._renderer = ChatRenderer(tokenizer, load_prompt_style(model.prompt))
        self._spec = spec = ViewSpec.from_model(model)
        self._cutter = PictureCutter(spec, data)
        self._engine = VllmEngine(
            model,
            rollout,
            spec,
            end_id=self._renderer.end_id,
            image_pad_id=self._renderer.image_pad_id,
            forbidden_ids=vision_token_ids(tokenizer),
            transport=transport,
            in_flight=in_flight,
            can_sleep=can_sleep,
            seed=seed,
        )
        self._receiver = WeightReceiver(self._engine)
        self._generated = asyncio.Event()
        """Set, and replaced, whenever a turn of a group is done."""

    async def play(self, request: PlayRequest) -> tuple[PlayedGroup | SkippedSample, np.ndarray]:
        """Play one group; returns it and its full view, uint8 [H, W, 3] (empty where the sample was skipped).

        Raises:
            SampleError: the group failed, the engine keeps running.
            RolloutError: the engine failed, or has no verified weights.
            DataError: the data set as a whole cannot be read here.
        """
        if not self._receiver.takes_groups:
            raise RolloutError("this worker has no verified weights")
        dataset = await self._dataset(request.ref.dataset)
        try:
            return await self._play(request, dataset)
        except DataError as error:
            return SkippedSample(ref=request.ref, reason=str(error)), np.empty((0, 0, 3), np.uint8)
        except MemoryError as error:
            raise SampleError("its image does not fit into memory") from error

    async def _play(self, request: PlayRequest, dataset: Dataset | BenchmarkSet) -> tuple[PlayedGroup, np.ndarray]:
        sample = await self._read(dataset, request.ref)
        cut = await self._cutter.cut(sample.image)
        try:
            episodes = await self._play_episodes(request, sample, cut)
        except ExceptionGroup as failures:
            raise most_severe(failures) from failures
        full_size = (cut.full.shape[0], cut.full.shape[1])
        group = PlayedGroup(
            ref=request.ref,
            question=sample.question,
            answer=sample.answer,
            needs_full=sample.needs_full,
            episodes=episodes,
            full_size=full_size,
            num_full_tokens=cut.views.full.num_visual_tokens,
            image_sha256=cut.sha256,
            needed_view=needed_view(sample.needs, sample.region, full_size, self._spec.token_side),
        )
        return group, cut.full

    async def _play_episodes(self, request: PlayRequest, sample: Sample, cut: CutPicture) -> tuple[Episode, ...]:
        rules = rules_for(request.kind, self._rollout, greedy=request.greedy)
        return await play_group(self._generate, self._renderer, cut.views, sample.question, rules, request.episode_ids)

    async def _generate(
        self, prompt_ids: tuple[int, ...], images: tuple[ShownImage, ...], sampling: Sampling
    ) -> Completion:
        completion = await self._engine(prompt_ids, images, sampling)
        self._generated.set()
        self._generated = asyncio.Event()
        return completion

    async def connect_weights(self, link: WeightLink) -> bool:
        """Join the learner; returns whether this machine reaches what it will deliver."""
        await self._receiver.connect(link)
        with contextlib.suppress(OSError):
            return "file" not in link.settings or file_identity(link.settings["file"]) == link.settings["identity"]
        return False

    async def receive_weights(self, offer: WeightOffer, *buckets: np.ndarray) -> None:
        """Receive a version; `buckets` are its bytes, where this machine does not reach what was delivered."""
        with contextlib.ExitStack() as cleanup:
            if buckets:
                copy = await asyncio.to_thread(write_version, buckets, staging_root())
                cleanup.callback(copy.unlink)  # it stays mapped
                offer = replace(offer, delivery={"file": str(copy)})
            await self._receiver.receive(offer)

    async def commit_weights(self, version: int, digests: Sequence[int]) -> float:
        """Serve the received version; returns the seconds for which nothing could be generated."""
        return await self._receiver.commit(version, digests)

    async def sleep(self) -> None:
        """Give the engine's GPU memory back until the next version is committed."""
        self._receiver.invalidate()
        await self._engine.sleep()

    async def disconnect_weights(self) -> None:
        """Leave the learner, whatever is under way."""
        await self._receiver.disconnect()

    async def serve_loaded_weights(self) -> None:
        """Accept the weights that the engine loaded from `model.path`, for runs without a learner."""
        await self._engine.accept_loaded_weights()
        self._receiver.accept_loaded_weights()

    async def check_health(self) -> int:
        """The version in use, after the engine has generated something: a token for this call, which may have to wait
        for turns in flight, or one of those turns. RolloutError if it is dead."""
        for_this_call = asyncio.ensure_future(self._engine.check_health())
        a_turn = asyncio.ensure_future(self._generated.wait())
        try:
            await asyncio.wait([for_this_call, a_turn], return_when=asyncio.FIRST_COMPLETED)
            if for_this_call.done():
                for_this_call.result()
            return self._receiver.version
        finally:
            for_this_call.cancel()
            a_turn.cancel()

    async def wait_for_ever(self) -> None:
        """Ends only with this process: how the driver learns of that at once."""
        await asyncio.Event().wait()

    def shutdown(self) -> None:
        self._cutter.shutdown()
        self._reader.shutdown(wait=False, cancel_futures=True)
        self._engine.shutdown()

    async def _dataset(self, path: str) -> Dataset | BenchmarkSet:
        def opened() -> Dataset | BenchmarkSet:
            if path not in self._datasets:
                self._datasets[path] = open_samples(path, self._data.columns_of(path))
            return self._datasets[path]

        return await asyncio.get_running_loop().run_in_executor(self._reader, opened)

    async def _read(self, dataset: Dataset | BenchmarkSet, ref: SampleRef) -> Sample:
        return await asyncio.get_running_loop().run_in_executor(self._reader, dataset.read, ref)


def end_on_sigterm() -> None:
    """Let SIGTERM end this process at once, so that its groups are played elsewhere without delay.

    Ray's own handler waits for the calls in flight, takes no new ones, and the worker looks wedged meanwhile. The
    engine's processes end with this one (`actors.engine.owner`).
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(
        signal.SIGTERM, None
    )  # SIG_DFL; Python's own function works in the main thread only, an actor elsewhere


def most_severe(failures: ExceptionGroup[Exception]) -> Exception:
    """The error to report for a failed group: a bug before a dead engine, a dead engine before a sample error."""

    def rank(error: Exception) -> int:
        return 2 if isinstance(error, SampleError) else 1 if isinstance(error, RolloutError) else 0

    return min(failures.exceptions, key=rank)
