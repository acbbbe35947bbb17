"""DistilBERT (Sanh et al., 2019): six of BERT's layers, no pooler, no token types."""

from tasks.weights.families.family import Family, P, pretraining, same

DISTILBERT = Family(
    name="distilbert",
    base="distilbert.",
    encoder=same(
        "embeddings.{e:word|position}_embeddings.weight",
        f"embeddings.LayerNorm.{P}",
        f"transformer.layer.{{n}}.attention.{{m:q|k|v|out}}_lin.{P}",
        f"transformer.layer.{{n}}.ffn.{{m:lin1|lin2}}.{P}",
        f"transformer.layer.{{n}}.{{m:sa|output}}_layer_norm.{P}",
    ),
    buffers=("embeddings.position_ids",),
    dropped=pretraining(f"vocab_transform.{P}", f"vocab_layer_norm.{P}", f"vocab_projector.{P}"),
    head=("pre_classifier", "classifier"),
)
