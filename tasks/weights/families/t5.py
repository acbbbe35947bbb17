"""T5 (Raffel et al., 2020) as transformers writes it, without what older versions of it also wrote."""

from collections.abc import Iterable, Mapping

from tasks.weights.families.axes import Axes, completed, embedding, linear, norm, together
from tasks.weights.families.family import same, tie
from tasks.weights.families.naming import Config, Description, Naming, buffers
from tasks.weights.rules import Rule

BUCKETS = "relative_attention_num_buckets"
BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"  # the first block's serves all
THEIRS = Description(
    "t5",
    needed=("num_layers",),
    optional=("num_decoder_layers", "num_heads", "d_model", "d_kv", "d_ff", "vocab_size", BUCKETS),
)
UNREAD = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


DEFAULTS = {  # what transformers takes for a field that config.json leaves out
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_heads": 8,
    BUCKETS: 32,
}
ATTENTION = "{s:encoder|decoder}.block.{n}.layer.{l:0|1}.{a:Self|EncDec}Attention"
DENSE = "{s:encoder|decoder}.block.{n}.layer.{l:1|2}.DenseReluDense"
AXES = Axes(  # a head that is tied is scaled by the width, so that this cannot change
    layouts=together(
        (
            embedding("shared", "vocabulary"),
            embedding("{s:encoder|decoder}.embed_tokens", "vocabulary"),
            embedding(f"{{s:encoder|decoder}}.block.0.{BIAS.removesuffix('.weight')}", "buckets", "biases"),
            norm("{s:encoder|decoder}.final_layer_norm"),
            norm("{s:encoder|decoder}.block.{n}.layer.{l:0|1|2}.layer_norm"),
            linear(f"{ATTENTION}.{{m:q|k|v}}", "heads", "hidden"),
            linear(f"{ATTENTION}.o", "hidden", "heads"),
            linear(f"{DENSE}.{{w:wi|wi_0|wi_1}}", "inner", "hidden"),
            linear(f"{DENSE}.wo", "hidden", "inner"),
            linear("lm_head", "vocabulary", "hidden"),
        )
    ),
    fields={
        "vocabulary": ("vocab_size",),
        "hidden": ("d_model",),
        "heads": ("num_heads", "d_kv"),
        "inner": ("d_ff",),
        "buckets": (BUCKETS,),
        "biases": ("num_heads",),
    },
    full=lambda config: completed(config, DEFAULTS),
)


def _rules(config: Config) -> tuple[Rule, ...]:
    gated = str(config.get("feed_forward_proj", "relu")).startswith("gated")
    dense = f"DenseReluDense.{{w:{'wi_0|wi_1' if gated else 'wi'}|wo}}.weight"
    head = () if config.get("tie_word_embeddings", True) else same("lm_head.weight")
    return (
        *same("shared.weight", "{s:encoder|decoder}.final_layer_norm.weight"),
        *same(f"encoder.block.0.{BIAS}", f"decoder.block.0.{BIAS}"),
        *same("encoder.block.{n}.layer.0.SelfAttention.{m:q|k|v|o}.weight"),
        *same(f"encoder.block.{{n}}.layer.1.{dense}"),
        *same("encoder.block.{n}.layer.{l:0|1}.layer_norm.weight"),
        *same("decoder.block.{d}.layer.0.SelfAttention.{m:q|k|v|o}.weight"),
        *same("decoder.block.{d}.layer.1.EncDecAttention.{m:q|k|v|o}.weight"),
        *same(f"decoder.block.{{d}}.layer.2.{dense}"),
        *same("decoder.block.{d}.layer.{l:0|1|2}.layer_norm.weight"),
        *head,
    )


def _extras(config: Config) -> tuple[Rule, ...]:
    tables = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    tables += ["lm_head.weight"] * bool(config.get("tie_word_embeddings", True))
    return (*buffers(UNREAD), *(tie(name, "shared.weight") for name in tables))


def _numbers(config: Config) -> Mapping[str, Iterable[int]]:
    layers = config["num_layers"]
    return {"n": range(layers), "d": range(config.get("num_decoder_layers") or layers)}


T5 = Naming(
    name="t5",
    architecture="T5ForConditionalGeneration",
    theirs=THEIRS,
    rules=_rules,
    numbers=_numbers,
    config=THEIRS.checked,
    back=THEIRS.checked,
    drops=_extras,
    accepts=_extras,
)
