"""How many members are combined, by their counts on the evaluation volume."""

import numpy as np
import pytest

from densejax.segmentation.report import choose_size


def tables(*errors):
    """Counts of 100 voxels a class in each of eight blocks; ``errors`` [k][n] of them are wrong."""
    return np.array(
        [[[[100 - wrong, wrong], [wrong, 100 - wrong]] for wrong in row] for row in errors]
    )


def test_the_best_size_is_the_first_of_the_highest_scores():
    assert choose_size(tables([9] * 8, [5] * 8, [5] * 8, [7] * 8), "best") == 2


def test_the_largest_size_gives_way_only_where_most_blocks_say_so():
    uneven = [9, 9, 9, 9, 9, 9, 9, 40]  # one block alone makes it worse than its smaller sister
    assert choose_size(tables([10] * 8, uneven), "best") == 1
    assert choose_size(tables([10] * 8, uneven), "largest") == 2
    assert choose_size(tables([10] * 8, [11] * 8), "largest") == 1
    assert choose_size(tables([10] * 8, [11] * 8, uneven, [12] * 8), "largest") == 3


def test_a_class_in_one_block_decides_no_size():
    # The second ensemble misses the one object of the rare class, in one of eight blocks, and is a
    # little better elsewhere: a third of the draws do not hold that block, (7 / 8) ** 8.
    first, second = np.zeros((2, 8, 3, 3), int)
    first[:, 0, 0], first[:, 0, 1] = 96, 4
    second[:, 0, 0], second[:, 0, 1] = 97, 3
    first[:, 1, 1] = second[:, 1, 1] = 100
    first[3, 2, 2], second[3, 2, 1] = 20, 20
    both = np.stack([first, second])
    assert choose_size(both, "best") == 1
    assert choose_size(both, "largest") == 2


def test_sizes_are_chosen_among_square_tables():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\): expected \(k, n, c, c\)"):
        choose_size(np.ones((2, 3, 4), int), "best")
