"""An engine's end of weight updates: the phases in order, and the end of one left half done."""

import asyncio
from typing import Any

from charactertrain.exceptions import SamplingError

_UNKNOWN = "unknown"
"""Weights of an update that was left half done: nothing is to be drawn from them."""


class WeightUpdates:
    """The updates of one vLLM engine; one at a time."""

    def __init__(self, engine: Any) -> None:
        """`engine` is the `AsyncLLM`."""
        self._engine = engine
        self._has_begun = False
        self._is_open = False
        # The phase of a trainer that died may still run when the next one's first call comes.
        self._phase = asyncio.Lock()

    async def meet(self, request: Any) -> None:
        """Rendezvous with a trainer, which may take the place of one that died in an update."""
        async with self._phase:
            await self._abandon()
            # Or that with the trainer before stays open: a communicator on a GPU.
            await self._engine.shutdown_weight_transfer_engine()
            await self._engine.init_weight_transfer_engine(request)

    async def start(self) -> None:
        """Begin; layers give up their weights. Requests wait, and go on with the new ones."""
        async with self._phase:
            await self._start()

    async def receive(self, request: Any) -> None:
        """Load one buffer."""
        async with self._phase:
            # vLLM closes an update whose buffer is refused, and leaves its layers half loaded.
            self._is_open = False
            await self._engine.update_weights(request)
            self._is_open = True

    async def finish(self, version: str) -> None:
        """Make the new weights count; what was cached under the old ones is forgotten."""
        async with self._phase:
            await self._finish(version)

    async def reload(self, weights: str, version: str) -> None:
        """Take the weights of a directory with the engine's architecture."""
        async with self._phase:
            await self._abandon()
            await self._engine.pause_generation(mode="abort")
            await self._engine.collective_rpc("reload_weights", kwargs={"weights_path": weights})
            await self._engine.collective_rpc("repack_tied_head")
            await self._resume(version)

    async def _start(self) -> None:
        # Its answers so far are kept, and what it cached of them is computed anew when it goes on.
        await self._engine.pause_generation(mode="keep", clear_cache=True)
        await self._engine.start_weight_update()
        self._has_begun = self._is_open = True

    async def _finish(self, version: str) -> None:
        await self._engine.finish_weight_update()
        self._has_begun = self._is_open = False
        await self._resume(version)

    async def _resume(self, version: str) -> None:
        # Before a token is drawn from them.
        await self._engine.update_weight_version(version)
        if not await self._engine.reset_prefix_cache():
            raise SamplingError("the engine's prefix cache still holds answers of the old weights")
        # The old weights' memory; a CPU engine would keep it beside the new ones'.
        await self._engine.collective_rpc("trim_heap")
        await self._engine.resume_generation()

    async def _abandon(self) -> None:
        """End an update that was left half done: whole layers again, of whatever weights.

        And with it whatever the trainer that began it had asked for.
        """
        if self._has_begun:
            if not self._is_open:
                await self._start()
            await self._engine.pause_generation(mode="abort")
            await self._finish(_UNKNOWN)
