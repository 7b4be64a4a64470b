"""Engines that tests change what they are about of."""

import os

from charactertrain.runtime.engine_spec import EngineSpec

FAKE = EngineSpec(
    kind="fake",
    architecture="none",
    precision="fp32",
    context_tokens=64,
    tensor_parallel_size=1,
    max_num_seqs=8,
    memory_fraction=0.5,
    kv_cache_gib=1.0,
    eager=True,
    num_cpus=0.0,
    num_gpus=0.0,
    node_group=None,
    threads=1,
    latency=None,
    run="tests",
)


def real(architecture: str, *, context_tokens: int, max_num_seqs: int) -> EngineSpec:
    """vLLM's on a CPU, for a small model."""
    return EngineSpec(
        kind="generate",
        architecture=architecture,
        precision="fp32",
        context_tokens=context_tokens,
        tensor_parallel_size=1,
        max_num_seqs=max_num_seqs,
        memory_fraction=0.2,
        kv_cache_gib=1.0,
        eager=True,
        num_cpus=1.0,
        num_gpus=0.0,
        node_group=None,
        threads=os.cpu_count() or 1,
        latency=None,
        run="tests",
    )
