"""Where a run's actors are."""

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from charactertrain.runtime.engine_spec import Device

GROUP_LABEL = "charactertrain.dev/group"
"""Ray label of a node: `ray start --labels`, or a group's `labels` in a RayCluster."""


def on_group(group: str | None) -> dict[str, str] | None:
    """The label selector of a node group; None for any node."""
    return None if group is None else {GROUP_LABEL: group}


def beside_the_driver() -> NodeAffinitySchedulingStrategy:
    """On the caller's node: the run ends with it in any case, and with no other."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def own_device() -> Device:
    """The accelerator that Ray gave to this worker."""
    context = ray.get_runtime_context()
    # Not CUDA_VISIBLE_DEVICES: Ray Train shows every worker of a node the devices of all.
    (visible,) = context.get_accelerator_ids()["GPU"]
    return Device(context.get_node_id(), visible)
