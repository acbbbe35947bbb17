"""BERT (Devlin et al., 2019) and what shares its encoder: MiniLM, TinyBERT, BGE, E5, GTE's first models."""

from tasks.weights.families.family import Family, P, layer_norms, pretraining, same

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

BERT = Family(
    name="bert",
    base="bert.",
    encoder=(*ENCODER, *same(f"pooler.dense.{P}")),
    buffers=("embeddings.position_ids", "embeddings.token_type_ids"),
    dropped=pretraining(
        "cls.predictions.bias",
        f"cls.predictions.decoder.{P}",
        f"cls.predictions.transform.dense.{P}",
        "cls.predictions.transform.LayerNorm.{p:weight|bias|gamma|beta}",
        f"cls.seq_relationship.{P}",
    ),
    head=("classifier",),
    invented=(("pooler.dense", "the checkpoint has no pooler"),),  # as masked-language models have none
)
