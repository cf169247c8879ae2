"""Checks that every prompt and answer keeps to the ids and positions that the base model has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spin_components.errors import ModelError
from spin_components.memory.work import longest_of
from spin_components.prepare.spool import RecordSpool
from spin_components.settings.settings import Settings

if TYPE_CHECKING:
    from spin_components.model.architecture import Architecture


def check_limits(
    spool: RecordSpool,
    numbers: NDArray[np.int64],
    tokenizer: Any,
    model: Architecture,
    settings: Settings,
    warn: Callable[[str], None],
) -> None:
    """Check token ids against the embedding, and lengths against a table of learned positions.

    Args:
        spool: the rendered records.
        numbers: of those that the run uses; not empty.
        tokenizer: of the base model.
        model: its limits.
        settings: of the run.
        warn: called where the tokenizer has entries without an embedding that no prompt or answer uses.

    Raises:
        ModelError: a prompt or an answer has an id or a position that the model does not have.
    """
    rows = model.num_embeddings
    too_high = numbers[spool.highest(numbers) >= rows]
    if len(too_high):
        record = spool.record(int(too_high[0]))
        token_id = next(each for each in (*record.prompt_ids, *record.actual_ids) if each >= rows)
        raise ModelError(
            f"model.base: the token {tokenizer.convert_ids_to_tokens(token_id)!r} has the id {token_id}, but the "
            f"embedding has {rows} rows, for ids up to {rows - 1}; it stands in {len(too_high)} of {len(numbers)} "
            "records as rendered. Enlarge the embedding (resize_token_embeddings, then train) or name the tokenizer "
            "that the model was trained with"
        )
    if (highest := max(tokenizer.get_vocab().values(), default=0)) >= rows:
        warn(f"the tokenizer has ids up to {highest}, the embedding {rows} rows; no record uses an id without a row")
    if model.num_positions is None:
        return
    longest = max(longest_of(settings, [lengths]).longest for lengths in spool.lengths(numbers))
    if longest > model.num_positions:
        raise ModelError(
            f"model.base has {model.num_positions} learned positions, but a prompt with its answer can have {longest} "
            f"tokens; set data.max_length = {model.num_positions} or less"
        )
