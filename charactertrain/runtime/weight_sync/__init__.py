"""From the trainer's weights to the engines', by vLLM's four-phase weight-transfer protocol.

On GPUs the transport is vLLM's own NCCL backend; on CPU it is the shared-memory backend here,
registered with vLLM, so that the same protocol is exercised without a GPU. This file is what
vLLM's plugin loader imports in every engine process: it must stay light.
"""

SHARED_MEMORY_BACKEND = "charactertrain_shared_memory"
_ENGINE_MODULE = "charactertrain.runtime.weight_sync.shared_memory"


def register() -> None:
    """Make the shared-memory backend known to vLLM in this process (a `vllm.general_plugins`)."""
    from vllm.distributed.weight_transfer.factory import (
        WeightTransferEngineFactory,
        WeightTransferTrainerFactory,
    )

    # Plugins may be loaded several times in a process, and vLLM refuses a name twice.
    if SHARED_MEMORY_BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            SHARED_MEMORY_BACKEND, _ENGINE_MODULE, "SharedMemoryEngine"
        )
    if SHARED_MEMORY_BACKEND not in WeightTransferTrainerFactory._registry:
        WeightTransferTrainerFactory.register_engine(
            SHARED_MEMORY_BACKEND, _ENGINE_MODULE, "SharedMemoryTrainerEngine"
        )
