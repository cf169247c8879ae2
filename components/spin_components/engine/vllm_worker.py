"""What vLLM's workers, the processes that hold the model, get in addition to their own methods."""

from __future__ import annotations


class SeededWorker:
    """Methods of a worker, for `worker_extension_cls`."""

    def reseed(self, seed: int) -> None:
        """Seed the generators that sampling draws from, as vLLM does when it starts.

        Args:
            seed: of Python, NumPy and torch on every device.
        """
        from vllm.utils.torch_utils import set_random_seed

        set_random_seed(seed)
