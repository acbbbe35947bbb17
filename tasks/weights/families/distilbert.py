"""DistilBERT (Sanh et al., 2019): six of BERT's layers, no pooler, no token types."""

from tasks.weights.families.family import (
    ANSWERS,
    MASKED,
    MEAN,
    MEANS,
    SEQUENCES,
    TOKENS,
    Encoder,
    Head,
    P,
    same,
)

DISTILBERT = Encoder(
    name="distilbert",
    base="distilbert.",
    embedding="distilbert.embeddings.word_embeddings.weight",
    encoder=same(
        "embeddings.{e:word|position}_embeddings.weight",
        f"embeddings.LayerNorm.{P}",
        f"transformer.layer.{{n}}.attention.{{m:q|k|v|out}}_lin.{P}",
        f"transformer.layer.{{n}}.ffn.{{m:lin1|lin2}}.{P}",
        f"transformer.layer.{{n}}.{{m:sa|output}}_layer_norm.{P}",
    ),
    buffers=("embeddings.position_ids",),
    heads={
        SEQUENCES: Head((f"pre_classifier.{P}", f"classifier.{P}")),
        MEANS: MEAN,
        TOKENS: Head((f"classifier.{P}",)),
        ANSWERS: Head((f"qa_outputs.{P}",)),
        MASKED: Head(
            (f"vocab_transform.{P}",), norms=("vocab_layer_norm",), tokens=(f"vocab_projector.{P}",)
        ),
    },
)
