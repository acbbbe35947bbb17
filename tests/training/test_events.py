"""What was told comes back as it was, in its order, also where there is a great deal of it."""

from tasks.training import events
from tasks.training.events import Change, Finished, Measure
from tasks.training.loop import Step

TOLD = [
    Step("head", 1, 1 / 3, 1e-3, 0.1, 32, 1),
    Change("head", 1, {"embeddings": 0.0, "head": 2 / 3}),
    Step("head", 2, 0.25, 5e-4, 1e-12, 31, 2),
    Measure("head", 2, {"accuracy": 0.7, "loss": 1 / 7}),
    Finished("head", ("head",), 99, 2, 2, {"loss": 1 / 7}),
    Step("upper", 1, 3.0, 1e-4, 7.5, 32, 1),
]


def test_what_was_told_comes_back_as_it_was():
    assert list(events.unpack(*events.pack(TOLD))) == TOLD
    assert events.unpack(*events.pack([])) == ()


def test_steps_take_a_few_bytes_each_and_none_of_the_header():
    steps = [Step("head", number, 1 / 3, 1e-3, 0.1, 32, 1) for number in range(1, 20_001)]
    numbers, header = events.pack(steps)
    assert numbers.numel() * numbers.element_size() == 20_000 * 9 * 8
    assert len(header) < 100
    assert list(events.unpack(numbers, header))[-1] == steps[-1]
