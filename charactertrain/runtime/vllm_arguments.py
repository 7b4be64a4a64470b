"""From our spec to vLLM's engine arguments. Imported in the engine's actor alone."""

from typing import Any

from charactertrain.runtime.engine_spec import EngineSpec
from charactertrain.runtime.hardware import has_accelerator, resolve_precision
from charactertrain.runtime.weight_sync import IPC_BACKEND, NCCL_BACKEND, SHARED_MEMORY_BACKEND
from charactertrain.runtime.weight_sync.worker_extension import WorkerExtension


def engine_arguments(spec: EngineSpec, weights: str) -> dict[str, Any]:
    """Keyword arguments of `vllm.AsyncEngineArgs`, and of `vllm.LLM`, on this machine."""
    device = "cuda" if has_accelerator() else "cpu"
    arguments: dict[str, Any] = {
        "model": weights,
        "dtype": str(resolve_precision(spec.precision)).removeprefix("torch."),
        "max_model_len": spec.context_tokens,
        "max_num_seqs": spec.max_num_seqs,
        "tensor_parallel_size": spec.tensor_parallel_size,
        # A worker process of its own would spin beside the engine's threads.
        "distributed_executor_backend": "uni" if spec.tensor_parallel_size == 1 else "ray",
        "enforce_eager": spec.eager,
        "gpu_memory_utilization": spec.memory_fraction,
        "enable_prefix_caching": True,
        "trust_remote_code": False,
        "worker_extension_cls": f"{WorkerExtension.__module__}.{WorkerExtension.__name__}",
        "seed": 0,
    }
    if device == "cpu":
        if spec.tensor_parallel_size > 1:
            # vLLM's Ray executor knows accelerators alone.
            arguments["distributed_executor_backend"] = "mp"
        # Blocks of 128, the default on CPU, are longer than most prompts: nothing would ever
        # be found in the prefix cache.
        arguments["block_size"] = 32
        # A seeded request whose prefill is split kills a CPU engine (vLLM 0.32 rewinds the
        # request's generator, and a CPU generator has no offset).
        arguments["enable_chunked_prefill"] = False
        arguments["max_num_batched_tokens"] = max(4096, spec.context_tokens)
        # A reward engine keeps a sequence for one pass only.
        share = 0.25 if spec.kind == "reward" else 1.0
        arguments["kv_cache_memory_bytes"] = int(share * spec.kv_cache_gib * 2**30)
    if spec.kind == "reward":
        return arguments | {"runner": "pooling", "convert": "classify"}
    return arguments | {
        "logprobs_mode": "processed_logprobs",
        # The letters of a judge of lists, or the digits of a rating.
        "max_logprobs": 32,
        "enable_sleep_mode": spec.sleeps and device == "cuda",
        "weight_transfer_config": {"backend": _transport(spec, device)},
    }


def _transport(spec: EngineSpec, device: str) -> str:
    if device == "cpu":
        return SHARED_MEMORY_BACKEND
    # NCCL refuses two processes on one device.
    return NCCL_BACKEND if spec.beside is None else IPC_BACKEND
