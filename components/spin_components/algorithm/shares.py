"""Division of work among processes by its cost."""

from __future__ import annotations

from collections.abc import Sequence


def shares(costs: Sequence[int], num: int) -> list[list[int]]:
    """Divide items into `num` shares of similar total cost, a pure function of its arguments.

    The costliest item goes first, each to the share with the least so far (Graham's longest processing time rule), so
    that no share costs more than 4/3 - 1/(3 num) times the least possible maximum.

    Args:
        costs: of each item.
        num: of shares.

    Returns: indices of the items of each share, ascending; a share may be empty.
    """
    totals, found = [0] * num, [list[int]() for _ in range(num)]
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        least = min(range(num), key=lambda share: (totals[share], len(found[share]), share))
        totals[least] += costs[index]
        found[least].append(index)
    return [sorted(share) for share in found]
