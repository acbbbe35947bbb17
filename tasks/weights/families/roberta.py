"""RoBERTa (Liu et al., 2019): BERT's encoder, a head of its own in place of the pooler."""

from tasks.weights.families.bert import ENCODER
from tasks.weights.families.family import Family, P, pretraining
from tasks.weights.rules import DROP, Rule

ROBERTA = Family(
    name="roberta",
    base="roberta.",
    encoder=(
        *ENCODER,
        Rule(f"pooler.dense.{P}", None, DROP, "the classifier reads the first token, not the pooler"),
    ),
    buffers=("embeddings.position_ids", "embeddings.token_type_ids"),
    dropped=pretraining(
        "lm_head.bias", f"lm_head.dense.{P}", f"lm_head.layer_norm.{P}", f"lm_head.decoder.{P}"
    ),
    head=("classifier.dense", "classifier.out_proj"),
    behind_pad=True,
)
