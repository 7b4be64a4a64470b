"""What vLLM leaves undone when it reloads a model whose output layer shares the embeddings.

Its CPU layers compute on a repacked copy of their weights. A reload repacks the layers that it
loads; a tied output layer is not among them, and would go on with the weights that the engine
started with. Needed up to vLLM 0.32. Light on imports: whoever describes an engine imports this.
"""

from typing import Any


def repack_tied_head(model: Any) -> None:
    """Repack the weights of a module's tied output layers; nothing to do on GPUs."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)


class TiedHeadWorker:
    """Extends vLLM's worker by a call; its engine names this class as `worker_extension_cls`."""

    def repack_tied_head(self) -> None:
        """Repack after a reload from disk."""
        repack_tied_head(self.model_runner.get_model())  # type: ignore[attr-defined]
