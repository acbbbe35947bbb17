"""RoBERTa (Liu et al., 2019): BERT's encoder, a head of its own in place of the pooler."""

from tasks.weights.families.bert import ENCODER, POOLER
from tasks.weights.families.family import ANSWERS, MASKED, MEAN, MEANS, SEQUENCES, TOKENS, Encoder, Head, P

ROBERTA = Encoder(
    name="roberta",
    base="roberta.",
    embedding="roberta.embeddings.word_embeddings.weight",
    encoder=ENCODER,
    buffers=("embeddings.position_ids", "embeddings.token_type_ids"),
    pooler=POOLER,
    heads={
        SEQUENCES: Head((f"classifier.dense.{P}", f"classifier.out_proj.{P}")),
        MEANS: MEAN,
        TOKENS: Head((f"classifier.{P}",)),
        ANSWERS: Head((f"qa_outputs.{P}",)),
        MASKED: Head(
            (f"lm_head.dense.{P}",),
            norms=("lm_head.layer_norm",),
            tokens=("lm_head.bias", f"lm_head.decoder.{P}"),
        ),
    },
    behind_pad=True,
)
