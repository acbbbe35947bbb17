"""Laws of every op: it makes the shapes that it promises, is undone bit for bit, and its runs of bytes are what
it makes."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.weights import values
from tasks.weights.arithmetic import Add, Biased, Cast, Embed, Mean, Redraw, Replicate, Scale, Unbiased
from tasks.weights.groups import Order, Parts
from tasks.weights.ops import (
    Chain,
    Concatenate,
    Op,
    Pad,
    Permute,
    Range,
    Reshape,
    Rotary,
    Split,
    Stack,
    Take,
    Transpose,
    Unstack,
)

LAWFUL = [  # an op and shapes that it takes, no two sizes equal
    (Op(), [(3, 5)]),
    (Transpose(), [(3, 5), (7,)]),
    (Transpose(), [(130, 259)]),  # more than a tile each way
    (Permute((3, 2, 0, 1)), [(3, 2, 64, 128)]),  # a convolution's HWIO to OIHW
    (Reshape((6, 5), (2, 3, 5)), [(6, 5)]),
    (Rotary(3), [(12, 5)]),
    (Rotary(3), [(12,)]),
    (Split((2, 3, 5)), [(10, 7)]),
    (Split((2, 3), axis=1), [(7, 5)]),
    (Concatenate((2, 3, 5)), [(2, 7), (3, 7), (5, 7)]),
    (Concatenate((2, 3), axis=1), [(7, 2), (7, 3)]),
    (Stack(3), [(2, 5)] * 3),
    (Unstack(3), [(3, 2, 5)]),
    (Order((2, 0, 1)), [(2, 7), (3, 7), (5, 7)]),
    (Parts((Rotary(3), Op()), (1, 2)), [(12, 5), (3, 5), (7,)]),
    (Parts((Op(), Reshape((6, 5), (2, 15))), (1, 1)), [(3, 5), (6, 5)]),
    (Chain((Order((0, 2, 1, 3)), Stack(4), Reshape((4, 2, 5), (2, 4, 5)))), [(2, 5)] * 4),
    (Take((4, 0, 1, 2)), [(5, 3)]),
    (Take((4, 0), axis=1), [(3, 5)]),
    (Pad(5, 2), [(5, 3)]),
    (Pad(5, 2, axis=1), [(3, 5)]),
    (Chain((Transpose(), Split((2, 3, 5)))), [(7, 10)]),
    (Chain((Concatenate((2, 4)), Reshape((6, 5), (3, 10)))), [(2, 5), (4, 5)]),
    (Chain((Split((4, 6)), Concatenate((4, 6)))), [(10, 3)]),
    (Scale(-0.25), [(3, 5)]),
    (Scale(3.0), [(3, 5)]),
    (Add(1.0), [(3,)]),
    (Mean((1.0, 3.0)), [(3, 5), (3, 5)]),
    (Replicate(3), [(3, 5)]),
    (Cast("BF16"), [(3, 5)]),
    (Biased(axis=-1), [(3, 5)]),
    (Chain((Transpose(), Biased())), [(3, 5)]),
    (Embed(((2,), (), (0, 1), (4,))), [(5, 3)]),
    (Redraw(("experts.0", "experts.1"), "w2.weight", 1, 0.5, seed=3), [(5, 4)]),
]
lawful = pytest.mark.parametrize(("op", "shapes"), LAWFUL, ids=[str(op) for op, _ in LAWFUL])


def arrays(shapes, dtype="F32"):
    generator = np.random.default_rng(7)
    return [values.items(generator.normal(size=shape), dtype) for shape in shapes]


@lawful
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_it_makes_the_shapes_and_the_dtype_that_it_promises(op, shapes, dtype):
    made = op.forward(arrays(shapes, dtype), dtype)
    assert [array.shape for array in made] == op.shapes(shapes)
    assert {array.dtype for array in made} == {np.dtype(values.raw_type(op.dtype(dtype)))}


@lawful
def test_it_is_undone_bit_for_bit_or_says_that_it_is_lossy(op, shapes):
    before = arrays(shapes)
    if op.lossy or op == Scale(3.0):
        with pytest.raises(ValueError, match="cannot be undone"):
            op.inverse()
        return
    back = op.inverse()
    after = back.forward(op.forward(before, "F32"), "F32")
    assert back.shapes(op.shapes(shapes)) == list(shapes)
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


@lawful
def test_its_runs_of_bytes_are_what_it_makes(op, shapes):
    before = arrays(shapes)
    file, given, start = Path("source"), [], 0
    for array in before:
        given.append((Range(file, start, start + array.nbytes),))
        start += array.nbytes
    found = op.ranges(given, shapes, "F32")
    if found is None:
        return
    data = b"".join(array.tobytes() for array in before)
    runs = [b"".join(data[run.start : run.stop] for run in runs) for runs in found]
    assert runs == [array.tobytes() for array in op.forward(before, "F32")]


def test_only_what_stays_in_runs_is_copied_as_bytes():
    moved = {str(op) for op, shapes in LAWFUL if op.ranges([()] * len(shapes), shapes, "F32") is not None}
    assert {"op", "split((2, 3, 5), 0)", "concatenate((2, 3, 5), 0)", "stack(3)", "replicate(3)"} <= moved
    assert not {"transpose", "rotary(3, True)", "split((2, 3), 1)", "cast(BF16)", "pad(5, 2, 0)"} & moved


@pytest.mark.parametrize(
    ("op", "shapes", "message"),
    [
        (Permute((1, 0)), [(3,)], r"\(3,\) has not the 2 axes"),
        (Reshape((6,), (2, 3)), [(2, 3)], r"\(2, 3\) is not the \(6,\)"),
        (Rotary(4), [(12, 5)], r"\(12, 5\) does not divide into 4 heads of pairs"),
        (Split((2, 3)), [(6, 2)], r"\(6, 2\) does not split into \(2, 3\) along axis 0"),
        (Concatenate((2, 3)), [(2, 7), (3, 6)], r"\(2, 7\) and \(3, 6\) are not of \(2, 3\) along axis 0"),
        (Concatenate((2, 3)), [(2, 7)], "takes 2 tensors, not 1"),
        (Stack(2), [(2,), (3,)], r"\(2,\) and \(3,\) are not of one shape"),
        (Unstack(2), [(3, 1)], r"\(3, 1\) does not hold 2 tensors"),
        (Take((3,)), [(3, 1)], r"\(3, 1\) has not all of 3 along axis 0"),
        (Pad(4, 1), [(3, 1)], r"\(3, 1\) does not hold 4 along axis 0"),
        (Mean((1.0, 1.0)), [(2,), (3,)], "are not of one shape"),
        (Embed(((7,),)), [(5, 2)], r"\(5, 2\) has no row 7"),
        (Biased(axis=1), [(5,)], r"\(5,\) has no axis 1"),
        (Unbiased(), [(5, 2), (2,)], r"\(2,\) is not the bias along axis 0 of \(5, 2\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(op, shapes, message):
    with pytest.raises(ValueError, match=message):
        op.shapes(shapes)


def test_a_reshape_that_loses_items_is_refused():
    with pytest.raises(ValueError, match="do not hold as many items"):
        Reshape((6,), (4,))


def test_a_cast_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="2 values do not fit into F16"):
        Cast("F16").forward([values.items(np.array([7e4, 1.0, -1e6, np.inf]), "F32")], "F32")


def test_a_bias_is_dropped_only_where_it_is_zero():
    weight, bias = arrays([(3, 5)])[0], values.items(np.array([0.0, 0.0, 0.5]), "F32")
    assert np.array_equal(Unbiased().forward([weight, bias * 0], "F32")[0], weight)
    with pytest.raises(ValueError, match="1 of 3 biases are not zero"):
        Unbiased().forward([weight, bias], "F32")


def test_rotary_rows_go_from_pairs_to_halves_within_each_head():
    rows = np.arange(12, dtype="<u4").reshape(12, 1)
    assert Rotary(3).forward([rows], "F32")[0].ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11]


def test_an_embedding_row_is_an_old_one_their_mean_or_that_of_all():
    table = np.array([[0.0, 2.0], [4.0, 6.0], [2.0, 1.0]])
    made = Embed(((1,), (0, 1), ())).forward([values.items(table, "F32")], "F32")[0]
    assert values.numbers(made, "F32").tolist() == [[4.0, 6.0], [2.0, 4.0], [2.0, 3.0]]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(1, 4), st.data())
def test_any_split_is_undone_in_bytes_too(sizes, width, data):
    op = Split(tuple(sizes))
    shape = (sum(sizes), width)
    cut = data.draw(st.integers(1, math.prod(shape) * 4)) if math.prod(shape) > 1 else 1
    whole = (Range(Path("a"), 0, cut), Range(Path("b"), 3, 3 + math.prod(shape) * 4 - cut))
    parts = op.ranges([whole], [shape], "F32")
    (back,) = op.inverse().ranges(parts, op.shapes([shape]), "F32")
    lengths = [run.stop - run.start for run in back]
    assert sum(lengths) == math.prod(shape) * 4
    assert [run.file.name for run in back] == sorted(run.file.name for run in back)


def test_what_is_not_a_number_stays_none_in_bfloat16():
    wild = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F800000], "<u4")
    found = values.numbers(values.items(values.numbers(wild, "F32"), "BF16"), "BF16")
    assert np.isnan(found).tolist() == [True, True, True, False]
    assert np.isinf(found[3])
