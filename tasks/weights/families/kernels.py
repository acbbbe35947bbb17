"""BERT and GPT-2 as transformers' models in Flax and TensorFlow were saved: kernels (in, out) for weights.

Names: modeling_flax_bert.py, modeling_flax_gpt2.py and modeling_tf_bert.py of transformers 4; TensorFlow's as
Keras wrote them into .h5, where the model's own name stands between. A kernel of three axes, as BERT had
for some months of 2021, does not fit the table.
"""

from collections.abc import Iterator
from dataclasses import replace

from tasks.weights.families.encoders import BERT_ENCODER
from tasks.weights.families.family import tie
from tasks.weights.families.gpt2 import BASE, GPT2, HEAD, LAYER, tied
from tasks.weights.families.naming import Config
from tasks.weights.rules import DROP, TRANSPOSE, Rule

PRETRAINING = "a head on top of the encoder: only the encoder is converted"
DENSE = (
    "encoder.layer.{n}.attention.self.{m:query|key|value}",
    "encoder.layer.{n}.attention.output.dense",
    "encoder.layer.{n}.intermediate.dense",
    "encoder.layer.{n}.output.dense",
    "pooler.dense",
)
NORMS = (
    "embeddings.LayerNorm",
    "encoder.layer.{n}.attention.output.LayerNorm",
    "encoder.layer.{n}.output.LayerNorm",
)


def _dense(module: str) -> Iterator[Rule]:
    yield Rule(f"{module}.kernel", f"{module}.weight", TRANSPOSE)
    yield Rule(f"{module}.bias", f"{module}.bias")


def _norm(module: str, scale: str, bias: str) -> Iterator[Rule]:
    yield Rule(f"{module}.{scale}", f"{module}.weight")
    yield Rule(f"{module}.{bias}", f"{module}.bias")


def _bert(config: Config) -> tuple[Rule, ...]:
    tables = "embeddings.{e:word|position|token_type}_embeddings"
    return (
        Rule(f"{tables}.embedding", f"{tables}.weight"),
        *(rule for module in NORMS for rule in _norm(module, "scale", "bias")),
        *(rule for module in DENSE for rule in _dense(module)),
    )


def _bert_below(config: Config) -> tuple[Rule, ...]:
    """The encoder below the prefix that a model with a head gives it, and the heads."""
    return tuple(
        replace(rule, source=f"bert.{rule.source}", reason="prefix") for rule in _bert(config)
    ) + _left(
        "cls.predictions.bias",
        "cls.predictions.{m:decoder|transform.dense}.{p:kernel|bias}",
        "cls.predictions.transform.LayerNorm.{p:scale|bias}",
        "cls.seq_relationship.{p:kernel|bias}",
        "{m:classifier|qa_outputs}.{p:kernel|bias}",
    )


def _left(*templates: str) -> tuple[Rule, ...]:
    return tuple(Rule(template, None, DROP, PRETRAINING) for template in templates)


FLAX_BERT = replace(BERT_ENCODER, name="flax-bert", rules=_bert, drops=_bert_below)


# --- GPT-2 in Flax ---------------------------------------------------------------------------------


def _gpt2(config: Config) -> tuple[Rule, ...]:
    """Its Conv1D keeps (out, in), so that every kernel is turned."""
    modules = [f"{LAYER}{module}" for module in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    norms = [f"{BASE}ln_f", f"{LAYER}{{m:ln_1|ln_2}}"]
    head = () if tied(config) else (Rule("lm_head.kernel", HEAD, TRANSPOSE),)
    return (
        Rule(f"{BASE}{{e:wte|wpe}}.embedding", f"{BASE}{{e:wte|wpe}}.weight"),
        *(rule for module in norms for rule in _norm(module, "scale", "bias")),
        *(rule for module in modules for rule in _dense(module)),
        *head,
    )


FLAX_GPT2 = replace(GPT2, name="flax-gpt2", rules=_gpt2, drops=lambda config: ())


# --- BERT in TensorFlow ----------------------------------------------------------------------------

MODEL = "tf_bert_model"
TABLES = ("word_embeddings.weight", "{e:position|token_type}_embeddings.embeddings")
MASKED, NEXT = "mlm___cls", "nsp___cls"  # "___" stands for the "/" of a layer's name
HEADS = {  # the name of another model -> its layers besides the encoder, and their tensors
    "tf_bert_for_pre_training": (MASKED, NEXT),
    "tf_bert_for_masked_lm": (MASKED,),
    "tf_bert_for_sequence_classification": ("classifier",),
}
TENSORS = {
    MASKED: (
        "predictions.bias",
        "predictions.transform.dense.{p:kernel|bias}",
        "predictions.transform.LayerNorm.{p:gamma|beta}",
    ),
    NEXT: ("seq_relationship.{p:kernel|bias}",),
    "classifier": ("{p:kernel|bias}",),
}
SHARED = (  # the head that predicts words holds the embeddings a second time
    "word_embeddings.weight",
    "position_embeddings.embeddings",
    "token_type_embeddings.embeddings",
    "LayerNorm.gamma",
    "LayerNorm.beta",
)


def _keras(model: str) -> tuple[Rule, ...]:
    """The encoder inside a Keras model of this name."""
    rules = (
        *(Rule(f"embeddings.{table}", f"embeddings.{table.split('.')[0]}.weight") for table in TABLES),
        *(rule for module in NORMS for rule in _norm(module, "gamma", "beta")),
        *(rule for module in DENSE for rule in _dense(module)),
    )
    return tuple(replace(rule, source=_inside(model, rule.sources[0])) for rule in rules)


def _inside(model: str, name: str, layer: str = "bert") -> str:
    return f"{layer}.{model}.bert.{name.replace('layer.{n}', 'layer_._{n}')}:0"


def _keras_others(config: Config) -> tuple[Rule, ...]:
    """The encoder below another model's name, the heads, and what a head shares with the embeddings."""
    return (
        *(replace(rule, reason=model) for model in HEADS for rule in _keras(model)),
        *(rule for model, layers in HEADS.items() if MASKED in layers for rule in _shared(model)),
        *(rule for model, layers in HEADS.items() for layer in layers for rule in _head(model, layer)),
    )


def _shared(model: str) -> Iterator[Rule]:
    for name in SHARED:
        table = f"embeddings.{name}"
        yield tie(_inside(model, table, MASKED), _inside(model, table))


def _head(model: str, layer: str) -> tuple[Rule, ...]:
    return _left(*(f"{layer}.{model}.{layer}.{name}:0" for name in TENSORS[layer]))


TF_BERT = replace(BERT_ENCODER, name="tf-bert", rules=lambda config: _keras(MODEL), drops=_keras_others)
