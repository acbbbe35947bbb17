from pathlib import Path

import pytest

from tasks.errors import PlanError
from tasks.weights.formats import TensorEntry
from tasks.weights.plan import Target, plan
from tasks.weights.rules import DROP, KEEP, NORMAL, TRANSPOSE, ZEROS, Rule, examples, fill, inverse, matches

FILE = Path("model.safetensors")


def entries(**shapes):
    """Tensors by name, `__` for a dot; a shape, or (dtype, shape)."""
    found = {}
    for name, shape in shapes.items():
        dtype, shape = shape if isinstance(shape[0] if shape else None, str) else ("F32", shape)
        name = name.replace("__", ".")
        found[name] = TensorEntry(name, dtype, shape, FILE, 0, 0)
    return found


def explain(source, rules, **targets):
    expected = {name.replace("__", "."): Target(shape, "F32") for name, shape in targets.items()}
    return plan(source, rules, expected, seed=17, deviation=0.5)


@pytest.mark.parametrize(
    ("template", "name", "bound"),
    [
        ("layer.{n}.{p:weight|bias}", "layer.10.bias", {"n": "10", "p": "bias"}),
        ("layer.{n}.x", "layer.01.x", None),
        ("layer.{n}.x", "layer.a.x", None),
        ("layer.{n}.x", "my.layer.1.x", None),
        ("layer.{n}.x", "layer.1.x.y", None),
        ("layer.{n}.x", "layer.1.x\n", None),
        ("a.b", "aXb", None),
        ("{p:query|key}", "value", None),
    ],
)
def test_a_template_matches_whole_names_only(template, name, bound):
    assert matches(template, name) == bound


@pytest.mark.parametrize("template", ["a", "a.{n}.b", "{e:x|y}.{n}.{p:weight|bias}"])
def test_matching_and_filling_undo_each_other(template):
    names = list(examples(template))
    assert len(set(names)) == len(names)
    for name in names:
        assert fill(template, matches(template, name)) == name


def test_every_source_and_every_target_gets_one_row():
    rules = [
        Rule("same.{p:weight|bias}", "same.{p:weight|bias}"),
        Rule("old.{n}.weight", "new.{n}.weight", TRANSPOSE),
        Rule("gone", None, DROP, "not needed"),
        Rule(None, "head.weight", NORMAL, "new head, 3 labels", "head"),
        Rule(None, "head.bias", ZEROS, "new head, 3 labels", "head"),
    ]
    source = entries(same__weight=(2, 3), same__bias=(3,), old__7__weight=(5, 4), gone=(6,))
    found = explain(
        source,
        rules,
        same__weight=(2, 3),
        same__bias=(3,),
        new__7__weight=(4, 5),
        head__weight=(3, 2),
        head__bias=(3,),
    )
    assert [(row["action"], row["target"], row["source"], row["reason"]) for row in found.rows()] == [
        ("copied", "same.weight", "same.weight", ""),
        ("copied", "same.bias", "same.bias", ""),
        ("transposed", "new.7.weight", "old.7.weight", ""),
        ("initialised", "head.weight", None, "normal(0, 0.5) seed 17: new head, 3 labels"),
        ("initialised", "head.bias", None, "zeros: new head, 3 labels"),
        ("dropped", None, "gone", "not needed"),
    ]
    assert found.parameters() == {
        "copied": 9, "renamed": 0, "transposed": 20, "initialised": 9, "dropped": 6
    }  # fmt: skip
    assert found.fresh() == ("head.weight", "head.bias")


def test_all_faults_of_a_plan_come_at_once_with_names_and_numbers():
    rules = [
        Rule("a", "a"),
        Rule("b.{n}", "b.{n}"),
        Rule("one", "same"),
        Rule("two", "same"),
        Rule("far", "away"),
        Rule("whole", "whole"),
        Rule(None, "head.weight", NORMAL, "new head", "head"),
        Rule("head.bias", "head.bias"),
        Rule(None, "head.bias", ZEROS, "new head", "head"),
    ]
    source = entries(
        a=(2, 3),
        b__0=(1,),
        one=(1,),
        two=(1,),
        far=(1,),
        stray=(1,),
        head__bias=(3,),
        whole=("I64", (1,)),
    )
    with pytest.raises(PlanError) as caught:
        explain(
            source,
            rules,
            a=(3, 2),
            b__0=(1,),
            b__1=(1,),
            same=(1,),
            head__weight=(3, 2),
            head__bias=(3,),
            whole=(1,),
        )
    message = str(caught.value)
    for sentence in (
        "1 of its 8 tensors match no rule: stray",
        "the checkpoint has a part of the head and lacks head.weight",
        "1 of the model's 7 tensors have no source: b.1",
        "1 tensors would become names that the model does not have: away",
        "'same' would be made 2 times, from one, two",
        "a is (2, 3) in the checkpoint, a is (3, 2)",
        "whole holds I64, whole needs floating-point numbers",
    ):
        assert f"- {sentence}" in message
    assert "7 faults" in message


def test_a_layer_of_another_shape_is_named_beside_its_like():
    source = entries(h__0__w=(2, 3), h__1__w=(2, 3), h__10__w=(3, 2), h__2__v1=(5,), h__2__v2=(7,))
    rules = [Rule("h.{n}.w", "h.{n}.w"), Rule("h.{n}.{m:v1|v2}", "h.{n}.{m:v1|v2}")]
    with pytest.raises(PlanError) as caught:
        plan(source, rules, dict.fromkeys(source, Target()))
    assert "1 fault" in str(caught.value)
    assert "- h.10.w (3, 2) has not the shape of its like, h.0.w (2, 3)" in str(caught.value)


def test_a_transposition_is_never_inferred():
    with pytest.raises(PlanError, match=r"a is \(2, 3\) in the checkpoint, a is \(3, 2\)"):
        explain(entries(a=(2, 3)), [Rule("a", "a")], a=(3, 2))
    with pytest.raises(
        PlanError, match=r"a is \(2, 3\) in the checkpoint, \(3, 2\) transposed, a is \(2, 3\)"
    ):
        explain(entries(a=(2, 3)), [Rule("a", "a", TRANSPOSE)], a=(2, 3))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule("a.{n}", "b"), "with the same placeholders"),
        (Rule("a.{p:x|y}", "b.{p:x|z}"), "with the same placeholders"),
        (Rule(None, "b", KEEP), "source and target must both stand there"),
        (Rule("a", "b", DROP, "why"), "has a source and no target"),
        (Rule("a", "b", NORMAL, "why"), "has a target and no source"),
        (Rule("a", None, DROP), "needs a reason"),
        (Rule("a.{n", "b.{n"), "is not a template"),
        (Rule("a.{n}.{n}", "b.{n}.{n}"), "is not a template"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(rule, message):
    with pytest.raises(PlanError, match=message):
        explain(entries(), [rule])


def test_two_rules_that_match_one_name_are_refused_before_any_tensor():
    rules = [
        Rule("{x:twice}", "{x:twice}"),
        Rule("twice", "thrice"),
        Rule("a.{n}", "b.{n}"),
        Rule("a.7", "c"),
    ]
    with pytest.raises(PlanError) as caught:
        explain(entries(), rules)
    assert "- {x:twice} -> {x:twice} [keep] and twice -> thrice [keep] match the same names" in str(
        caught.value
    )
    assert "- a.{n} -> b.{n} [keep] and a.7 -> c [keep] match the same names" in str(caught.value)


def test_only_lossless_rules_have_an_inverse():
    assert inverse([Rule("a.{n}", "b.{n}", TRANSPOSE)]) == (Rule("b.{n}", "a.{n}", TRANSPOSE),)
    for rule in (Rule("a", None, DROP, "why"), Rule(None, "a", ZEROS, "why")):
        assert rule.lossy
        with pytest.raises(PlanError, match="cannot be read backwards"):
            rule.inverse()


@pytest.mark.parametrize(
    ("dtypes", "expected"), [(("F16",), "F16"), (("F16", "F32"), "F32"), (("BF16", "F16"), "F32")]
)
def test_new_tensors_take_a_dtype_that_holds_the_others(dtypes, expected):
    source = entries(**{f"a__{i}": (dtype, (1,)) for i, dtype in enumerate(dtypes)})
    rules = [Rule("a.{n}", "a.{n}"), Rule(None, "b", ZEROS, "new")]
    found = explain(source, rules, **{f"a__{i}": (1,) for i in range(len(dtypes))}, b=(1,))
    assert (found.dtype, found.moves[-1].dtype) == (expected, expected)
