"""Tile by tile or at once: the same items in the same order, and no difference goes unnoticed."""

import numpy as np
import pytest

from tasks.weights import tiles

SHAPES = [
    (),
    (0,),
    (0, 5),
    (5, 0),
    (1, 1),
    (7,),
    (3, 5, 2),
    (128, 128),
    (130, 259),
    (259, 1),
]  # a tile is 128


def _counted(shape):
    return np.arange(np.prod(shape, dtype=int), dtype="<u4").reshape(shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_pieces_of_a_transposed_array_are_its_items_in_order(shape):
    array = _counted(shape).T
    assert b"".join(piece.tobytes() for piece in tiles.pieces(array)) == array.tobytes()
    assert all(piece.flags.c_contiguous for piece in tiles.pieces(array))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_transposed_array_equals_its_copy(shape):
    array = _counted(shape).T
    assert tiles.equal(array, array.copy(order="C"))


@pytest.mark.parametrize("place", [(0, 0), (127, 128), (128, 127), (258, 129)])
def test_one_changed_item_is_noticed(place):
    array = _counted((130, 259)).T
    changed = array.copy(order="C")
    changed[place] += 1
    assert not tiles.equal(array, changed)


def test_another_shape_is_noticed():
    assert not tiles.equal(_counted((3, 4)), _counted((4, 3)))
    assert not tiles.equal(_counted((3, 4)).T, _counted((3, 4)))
