"""BERT (Devlin et al., 2019) and what shares its encoder: MiniLM, TinyBERT, BGE, E5, GTE's first models."""

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
    layer_norms,
    same,
)

ENCODER = (
    *same(
        "embeddings.{e:word|position|token_type}_embeddings.weight",
        f"encoder.layer.{{n}}.attention.self.{{m:query|key|value}}.{P}",
        f"encoder.layer.{{n}}.attention.output.dense.{P}",
        f"encoder.layer.{{n}}.intermediate.dense.{P}",
        f"encoder.layer.{{n}}.output.dense.{P}",
    ),
    *layer_norms(
        [
            "embeddings.LayerNorm",
            "encoder.layer.{n}.attention.output.LayerNorm",
            "encoder.layer.{n}.output.LayerNorm",
        ]
    ),
)
POOLER = (f"pooler.dense.{P}",)

BERT = Encoder(
    name="bert",
    base="bert.",
    embedding="bert.embeddings.word_embeddings.weight",
    encoder=ENCODER,
    buffers=("embeddings.position_ids", "embeddings.token_type_ids"),
    pooler=POOLER,
    heads={
        SEQUENCES: Head((f"classifier.{P}",), pooled=True),
        MEANS: MEAN,
        TOKENS: Head((f"classifier.{P}",)),
        ANSWERS: Head((f"qa_outputs.{P}",)),
        MASKED: Head(
            (f"cls.predictions.transform.dense.{P}",),
            norms=("cls.predictions.transform.LayerNorm",),
            tokens=("cls.predictions.bias", f"cls.predictions.decoder.{P}"),
        ),
    },
    pretraining=(f"cls.seq_relationship.{P}",),
)
