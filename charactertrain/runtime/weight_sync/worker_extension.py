"""Calls that our engines add to vLLM's worker. Light on imports: an engine's actor names them."""

from typing import Any

from charactertrain.runtime.heap import trim_heap


def repack_tied_head(model: Any) -> None:
    """Repack the weights of a module's tied output layers; nothing to do on GPUs.

    vLLM's CPU layers compute on a repacked copy of their weights. A reload repacks the layers that
    it loads; an output layer that shares the embeddings is not among them, and would go on with the
    weights that the engine started with. Needed up to vLLM 0.32.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)


class WorkerExtension:
    """What an engine names as its `worker_extension_cls`: a mixin of vLLM's worker."""

    def repack_tied_head(self) -> None:
        """Finish a reload from disk."""
        repack_tied_head(self.model_runner.get_model())  # type: ignore[attr-defined]

    def received_sums(self) -> dict[str, tuple[int, int, int]]:
        """Checksums of the weights that a transport between GPUs has brought in this update."""
        sums: dict[str, tuple[int, int, int]] = self.weight_transfer_engine.received_sums()  # type: ignore[attr-defined]
        return sums

    def trim_heap(self) -> None:
        """Give back what the last requests took."""
        trim_heap()
