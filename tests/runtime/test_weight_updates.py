"""The order of an engine's weight updates when trainers come and go."""

import asyncio
from typing import Any

from charactertrain.runtime.weight_sync.updates import WeightUpdates


class RecordingEngine:
    """Notes every call; a buffer takes until `arrived` is set."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.arrived = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **_: Any) -> bool:
            self.calls.append(arguments[0] if name == "collective_rpc" else name)
            if name == "update_weights":
                await self.arrived.wait()
                self.calls.append("loaded")
            return True

        return call


def test_a_reload_waits_for_the_buffer_of_a_trainer_that_died() -> None:
    async def reload_while_a_buffer_comes() -> list[str]:
        engine = RecordingEngine()
        updates = WeightUpdates(engine)
        await updates.start()
        receiving = asyncio.create_task(updates.receive("buffer"))
        await asyncio.sleep(0)
        reloading = asyncio.create_task(updates.reload("weights", "9"))
        await asyncio.sleep(0.01)
        assert "reload_weights" not in engine.calls
        engine.arrived.set()
        await asyncio.gather(receiving, reloading)
        return engine.calls

    calls = asyncio.run(reload_while_a_buffer_comes())
    # The update is still open, so it is finished and not begun again.
    assert calls.count("start_weight_update") == 1
    assert calls.index("loaded") < calls.index("finish_weight_update")
    assert calls.index("finish_weight_update") < calls.index("reload_weights")
    assert calls[-1] == "resume_generation"
