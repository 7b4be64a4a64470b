"""What the machine that a process runs on can do. Called inside actors and workers, not drivers."""

import os

import torch


def has_accelerator() -> bool:
    """Whether a CUDA device is visible to this process."""
    return torch.cuda.is_available()


def computes_in_bf16() -> bool:
    """Whether bf16 matrix products run in hardware here, and not by emulation.

    Emulated bf16 is far slower than fp32: on a Zen 3 core 9 against 71 GFLOP/s (2026-11).
    """
    if has_accelerator():
        on_device: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return on_device
    return torch.cpu._is_avx512_bf16_supported()


def resolve_precision(precision: str) -> torch.dtype:
    """The dtype that a model computes in here for the setting `auto`, `bf16` or `fp32`."""
    if precision == "auto":
        return torch.bfloat16 if computes_in_bf16() else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def peak_gpu_memory() -> dict[str, float]:
    """For a line of metrics: the most that this process's tensors held; nothing on a CPU."""
    if not has_accelerator():
        return {}
    return {"gpu_memory_gib": torch.cuda.max_memory_allocated() / 2**30}


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
