import pytest

from tasks.weights import picture


def area(table, state):
    return sum(band.width * band.height for band in table.bands if band.state == state)


def test_two_new_rows_are_seen_below_thirty_thousand(align):
    found = picture.draw(align([*range(30_522), None, None], before=30_522))
    before, after = found.tables
    assert [(table.name, table.rows, table.columns) for table in found.tables] == [
        ("before", 30_522, 24),
        ("after", 30_524, 24),
    ]
    assert [band.state for band in before.bands] == ["kept"]
    assert [(band.state, band.height >= picture.LEAST) for band in after.bands] == [
        ("kept", True),
        ("new", True),
    ]
    assert found.legend == {"kept": 30_522, "moved": 0, "new": 2, "unused": 0}
    assert "30,522 rows of 24, and after, 30,524 rows" in found.sentence


def test_a_new_vocabulary_is_drawn_by_shares(align):
    sources = [None if i % 3 == 0 else i if i % 3 == 1 else 999 - i for i in range(600)]
    before, after = picture.draw(align(sources, before=1000, extends=False)).tables
    whole = sum(band.width * band.height for band in after.bands)
    assert len({band.top for band in after.bands}) == picture.BANDS
    for state in ("kept", "moved", "new"):
        assert area(after, state) / whole == pytest.approx(1 / 3, abs=0.01)
    assert {band.state for band in before.bands} == {"kept", "moved", "unused"}


def test_at_most_twenty_new_tokens_are_listed_with_their_pieces_by_name(align):
    found = picture.draw(align([*range(30), *[None] * 25]))
    assert (len(found.words), found.more) == (20, 5)
    assert found.words[0] == picture.Made("t30", 30, ("t4", "t7"))
    moved = picture.draw(align([4, None], extends=False))
    assert moved.words == (picture.Made("t1", 1, ("t0", "row 7")),)
