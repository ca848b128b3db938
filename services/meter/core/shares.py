"""An amount shared out by weights, to the last unit: the largest remainder method. Pure."""

from collections.abc import Sequence


def share_out(amount: int, weights: Sequence[int]) -> list[int]:
    """Parts of `amount` in proportion to the weights; they add up to it exactly.

    Each part is its exact share rounded down, and the units that are left go to the largest remainders, of equal ones
    to the first.

    Args:
        amount: >= 0.
        weights: each >= 0, at least one above 0.
    """
    total = sum(weights)
    assert amount >= 0, amount
    assert total > 0, weights
    parts, remainders = [], []
    for weight in weights:
        part, remainder = divmod(amount * weight, total)
        parts.append(part)
        remainders.append(remainder)
    left = amount - sum(parts)
    if left:
        for place in sorted(range(len(weights)), key=lambda place: -remainders[place])[:left]:
            parts[place] += 1
    return parts
