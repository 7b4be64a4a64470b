"""Starting and ending the actor that an engine is, with the devices that it needs."""

from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from charactertrain.runtime.engine_spec import EngineSpec
from charactertrain.runtime.fake_engine import FakeEngine
from charactertrain.runtime.placement import on_group
from charactertrain.runtime.vllm_engine import VllmEngine


@dataclass(frozen=True)
class EngineActor:
    """A running engine and what it holds of the cluster."""

    handle: Any
    group: PlacementGroup | None
    """Devices of a tensor-parallel engine, which spreads over several."""

    def kill(self) -> None:
        """End the actor and give its devices back."""
        ray.kill(self.handle)
        if self.group is not None:
            remove_placement_group(self.group)


def start_engine(spec: EngineSpec, weights: str, name: str) -> EngineActor:
    """A new engine; the actor starts in the background, when there are devices for it."""
    selector = on_group(spec.node_group)
    options: dict[str, Any] = {
        "name": name,
        "num_cpus": spec.num_cpus,
        "num_gpus": spec.num_gpus,
        "label_selector": selector,
        "runtime_env": {"env_vars": spec.environment()},
        "max_concurrency": 1000,
    }
    group = None
    if spec.beside is not None:
        # The device is the training worker's, which Ray has given it whole; and the workers may
        # have the node's CPUs, where nothing but this engine will do.
        options |= {
            "num_cpus": 0,
            "num_gpus": 0,
            "label_selector": None,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(spec.beside.node_id, soft=False),
        }
    if spec.tensor_parallel_size > 1:
        # The actor drives; its ranks are vLLM's own Ray workers, one to a bundle. PACK: on one
        # node where one has the devices.
        ranks = spec.tensor_parallel_size
        bundle = {"CPU": spec.num_cpus / ranks, "GPU": spec.num_gpus / ranks}
        needed = {key: amount for key, amount in bundle.items() if amount > 0}
        group = placement_group(
            [needed] * ranks,
            strategy="PACK",
            bundle_label_selector=None if selector is None else [selector] * ranks,
        )
        options |= {
            "num_cpus": 0,
            "num_gpus": 0,
            # Its bundles have it.
            "label_selector": None,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_capture_child_tasks=True
            ),
        }
    engine: Any = FakeEngine if spec.kind == "fake" else VllmEngine
    return EngineActor(ray.remote(engine).options(**options).remote(spec, weights), group)
