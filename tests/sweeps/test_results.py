from tasks.sweeps.results import Result, ranked


def _result(name, accuracy=None, loss=0.5):
    figures = {} if accuracy is None else {"accuracy": accuracy, "loss": loss}
    return Result(name, {"seed": name}, figures, 1.0, cached=False, failure="" if figures else "torn")


def test_the_best_comes_first_and_what_failed_last():
    results = [_result("a", 0.5), _result("b"), _result("c", 0.9), _result("d", 0.7)]
    assert [result.trial for result in ranked(results, "accuracy")] == ["c", "d", "a", "b"]


def test_less_loss_is_better():
    results = [_result("a", 0.9, 0.4), _result("b", 0.5, 0.3)]
    assert [result.trial for result in ranked(results, "loss")] == ["b", "a"]


def test_equals_are_told_apart_by_loss_and_then_stay_in_order():
    results = [_result("a", 0.9, 0.4), _result("b", 0.9, 0.3), _result("c", 0.9, 0.3)]
    assert [result.trial for result in ranked(results, "accuracy")] == ["b", "c", "a"]
