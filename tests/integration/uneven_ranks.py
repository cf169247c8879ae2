"""Two ranks under ZeRO-3 whose answers differ in length, so that one has more chunks of logits than the other.

`torchrun --nproc-per-node 2 uneven_ranks.py FOLDER` writes each rank's log-probabilities before and after one update.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from spin_components.algorithm.head import answer_head
from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.packing import Prompted

OF_RANK = [Prompted([5, 6, 7], ([8, 9, 10, 11, 12, 13, 14, 15, 2],)), Prompted([20, 21], ([22, 2],))]
LR = 1e-3


def make_model() -> Any:
    """A model with fixed weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)


def main(folder: Path) -> None:
    """Run one rank."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    torch.set_num_threads(1)
    deepspeed.init_distributed(dist_backend="gloo")
    rank = int(os.environ["RANK"])
    model = make_model()
    answer_head(model).chunk = 3
    config = {
        "train_batch_size": 2,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": 3},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=LR), config=config)
    before = answer_logprobs(engine, [OF_RANK[rank]])
    engine.backward(-before.sum())
    engine.step()
    with torch.no_grad():
        after = answer_logprobs(engine, [OF_RANK[rank]])
    (folder / f"{rank}.json").write_text(json.dumps([before.item(), after.item()]), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
