"""From the trainer's weights to the engines', by vLLM's four-phase weight-transfer protocol.

On GPUs the transports are vLLM's own, NCCL and CUDA IPC, with checksums of what arrives; on CPU it
is the shared-memory backend here, so that the same protocol is exercised without a GPU. This file
is what vLLM's plugin loader imports in every engine process: it must stay light.
"""

SHARED_MEMORY_BACKEND = "charactertrain_shared_memory"
NCCL_BACKEND = "charactertrain_nccl"
IPC_BACKEND = "charactertrain_ipc"
_SHARED_MEMORY = "charactertrain.runtime.weight_sync.shared_memory"
_DEVICES = "charactertrain.runtime.weight_sync.devices"
_ENGINES = {
    SHARED_MEMORY_BACKEND: (_SHARED_MEMORY, "SharedMemoryEngine"),
    NCCL_BACKEND: (_DEVICES, "SummingNcclEngine"),
    IPC_BACKEND: (_DEVICES, "SummingIpcEngine"),
}


def register() -> None:
    """Make the transports known to vLLM in this process (a `vllm.general_plugins`)."""
    from vllm.distributed.weight_transfer.factory import (
        WeightTransferEngineFactory,
        WeightTransferTrainerFactory,
    )

    # Plugins may be loaded several times in a process, and vLLM refuses a name twice.
    for name, (module, engine) in _ENGINES.items():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, module, engine)
    if SHARED_MEMORY_BACKEND not in WeightTransferTrainerFactory._registry:
        WeightTransferTrainerFactory.register_engine(
            SHARED_MEMORY_BACKEND, _SHARED_MEMORY, "SharedMemoryTrainerEngine"
        )
