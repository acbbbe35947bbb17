"""Every kind of row gets its head, whatever the family: explained whole, loaded whole, computing the same."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tasks.errors import CheckpointError, PlanError
from tasks.params import TextSource
from tasks.weights import alignment, loading, proof, purposes, similarity, skeleton
from tasks.weights.families import FAMILIES, find
from tasks.weights.families.family import CAUSAL, CONDITIONAL, MASKED, MEANS
from tasks.weights.purposes import PURPOSES

LABELS = ("negative", "neutral", "positive")
ENCODERS, DECODERS = ("bert", "distilbert", "roberta"), ("gpt2", "llama", "mixtral")
CASES = sorted(
    (family, kind)
    for family in FAMILIES
    for kind, purpose in PURPOSES.items()
    if {*purpose.heads} & FAMILIES[family].heads.keys()
)
every_case = pytest.mark.parametrize(("family", "kind"), CASES)
PRETRAINED = {
    **dict.fromkeys(ENCODERS, "masked"), **dict.fromkeys(DECODERS, "writer"), "t5": "translator",
}  # fmt: skip
SAME = "max |difference| 0 (tolerance 0)"
LEVELS = ("content", "load", "parity", "similarity")


def config_of(directory):
    return json.loads((directory / "config.json").read_text())


def prove(plan, source, target, **options):
    return proof.verify(plan, source, target, tolerance=0.0, levels=LEVELS, **options)


def test_every_kind_of_row_has_a_purpose_or_is_refused():
    known = set(TextSource.model_fields["kind"].annotation.__args__)
    assert known - PURPOSES.keys() == {"preference", "rating"}
    assert PURPOSES.keys() <= known
    with pytest.raises(CheckpointError, match="rows of kind 'rating' yet; for these it can: label"):
        purposes.find("rating")


@pytest.mark.parametrize(
    ("family", "kind", "message"),
    [
        (
            "bert",
            "chat",
            r"need a model for causal .* of type 'bert' .* one of type gpt2 or llama or mixtral, or .* text",
        ),
        ("t5", "label", "need a model for sequence classification, .* rows of kind translation, prefix-rem"),
        ("llama", "tags", "need a model for token classification, .* one of type bert or distilbert or rob"),
        ("t5", "text", "need a model for masked language modelling or causal language modelling"),
    ],
)
def test_a_kind_that_does_not_fit_the_checkpoint_is_told_with_what_does(family, kind, message):
    with pytest.raises(CheckpointError, match=f"rows of kind '{kind}' {message}"):
        purposes.choose(kind, find(family))


@every_case
def test_every_tensor_is_explained_and_the_model_computes_the_same(save, convert, tmp_path, family, kind):
    plan, source = convert(
        save(tmp_path / "source", family, PRETRAINED[family]), tmp_path / "model", kind=kind
    )
    used = {entry.name for move in plan.moves for entry in move.step.sources}
    dropped = {unused.source.name for unused in plan.unused}
    assert used | dropped == source.entries.keys()
    assert not used & dropped
    found = prove(plan, source, tmp_path / "model")
    assert found["load"].endswith("no tensor missing, unexpected or of another shape")
    assert found["parity"].startswith(SAME)
    assert "layer 0, " in found["parity"]
    model = transformers.AutoModel.from_pretrained(tmp_path / "model")
    assert config_of(tmp_path / "model")["architectures"] == [found["load"].split(":")[0]]
    assert model.config.vocab_size == 37


@every_case
def test_the_config_says_what_the_rows_ask_for(save, convert, tmp_path, family, kind):
    convert(save(tmp_path / "source", family), tmp_path / "model", kind=kind)
    config, purpose = config_of(tmp_path / "model"), PURPOSES[kind]
    assert config.get("problem_type") == purpose.problem
    names = LABELS if purpose.named else purpose.outputs
    assert tuple(config.get("id2label", {}).values()) == names
    suffix = {
        "label": "ForSequenceClassification", "tags": "ForTokenClassification", "answer": "ForQuestionAnswering",
        "translation": "ForConditionalGeneration", "chat": ("ForCausalLM", "LMHeadModel"),
        "text": ("ForMaskedLM", "ForCausalLM", "LMHeadModel"),
    }  # fmt: skip
    alike = {"pair": "label", "labels": "label", "score": "label", "completion": "chat"}
    ends = suffix[alike.get(kind, kind if kind in suffix else "translation")]
    assert config["architectures"][0].endswith(ends)


@every_case
def test_a_head_for_the_same_rows_is_kept_with_its_logits(save, convert, tmp_path, family, kind):
    first, _ = convert(save(tmp_path / "source", family), tmp_path / "first", kind=kind)
    plan, source = convert(tmp_path / "first", tmp_path / "again", kind=kind)
    assert plan.fresh() == ()
    assert plan.preserves == "exact"
    assert prove(plan, source, tmp_path / "again")["parity"].endswith("logits")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == {move.target for move in first.moves}


@pytest.mark.parametrize("family", sorted(PRETRAINED))
def test_the_head_of_pretraining_is_copied_for_more_pretraining(save, convert, tmp_path, family):
    kind = "translation" if family == "t5" else "text"
    path = save(tmp_path / "source", family, PRETRAINED[family])
    plan, source = convert(path, tmp_path / "model", kind=kind)
    assert (plan.fresh(), plan.unused) == ((), ())
    assert prove(plan, source, tmp_path / "model")["parity"].endswith("logits")


@pytest.mark.parametrize("family", sorted(PRETRAINED))
def test_a_second_name_of_the_embeddings_is_said_to_be_tied_and_must_be(save, convert, tmp_path, family):
    kind = "translation" if family == "t5" else "text"
    path = save(tmp_path / "source", family, PRETRAINED[family]) / "model.safetensors"
    tied = loading.named(path.parent).from_pretrained(path.parent).all_tied_weights_keys
    tensors = load_file(path)
    save_file({**tensors, **{second: tensors[first].clone() for second, first in tied.items()}}, path)
    plan, _ = convert(path.parent, tmp_path / "model", kind=kind)
    reasons = {unused.source.name: unused.rule.reason for unused in plan.unused}
    assert reasons == {second: f"tied: {first} under a second name" for second, first in tied.items()}
    save_file({**tensors, **{second: tensors[first] + 1 for second, first in tied.items()}}, path)
    with pytest.raises(CheckpointError, match=r"under a second name, and their bytes differ"):
        convert(path.parent, tmp_path / "other", kind=kind)


@pytest.mark.parametrize("family", sorted(ENCODERS))
def test_an_encoder_without_a_head_gets_one_that_predicts_tokens(save, convert, tmp_path, family):
    plan, source = convert(save(tmp_path / "source", family), tmp_path / "model", kind="text")
    reasons = {move.reason for move in plan.moves if move.action == "initialised"}
    assert {reason.split(": ", 1)[1] for reason in reasons} == {purposes.WORDS}
    assert "ones" in {reason.split(":")[0] for reason in reasons}
    assert not [name for name in plan.fresh() if "decoder" in name or name == "vocab_projector.weight"]
    assert prove(plan, source, tmp_path / "model")["parity"].startswith(SAME)


@pytest.mark.parametrize("family", sorted(ENCODERS))
def test_half_a_head_is_not_made_whole(save, convert, tmp_path, family):
    path = save(tmp_path / "source", family, "masked") / "model.safetensors"
    tensors = load_file(path)
    (name,) = [
        name for name in tensors if name.endswith(("transform.dense.bias", "vocab_transform.bias"))
    ] or ["lm_head.dense.bias"]
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, path)
    with pytest.raises(PlanError, match=f"the checkpoint has a part of the head and lacks {name}"):
        convert(path.parent, tmp_path / "model", kind="text")


@pytest.mark.parametrize("family", sorted(ENCODERS))
@pytest.mark.parametrize(("kind", "source"), [("answer", "reader"), ("tags", "tagger")])
def test_only_a_head_that_reads_it_has_a_pooler(save, convert, tmp_path, family, kind, source):
    plan, _ = convert(save(tmp_path / "base", family), tmp_path / "model", kind=kind)
    assert not [move.target for move in plan.moves if "pooler" in move.target]
    if family != "distilbert":
        reasons = {unused.rule.reason for unused in plan.unused if "pooler" in unused.source.name}
        assert reasons == {"the head reads tokens, not the pooler"}
    back, _ = convert(save(tmp_path / "headed", family, source), tmp_path / "back", kind="label")
    poolers = {move.target: move.action for move in back.moves if "pooler" in move.target}
    assert set(poolers.values()) == ({"initialised"} if family == "bert" else set())
    heads = {name for name in source_names(tmp_path / "headed") if "classifier" in name or "qa_" in name}
    assert {unused.source.name for unused in back.unused} == heads


def source_names(directory):
    return load_file(directory / "model.safetensors").keys()


def labelled(**more):
    return {
        "id2label": dict(enumerate(LABELS)),
        "label2id": {label: i for i, label in enumerate(LABELS)},
        **more,
    }


@pytest.mark.parametrize("family", sorted((*ENCODERS, *DECODERS)))
@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        ("label", {"problem_type": "multi_label_classification"}, "the checkpoint's is for multi_label"),
        ("labels", {}, "the checkpoint's is for single_label_classification"),
        ("labels", {"architectures": ["BertForTokenClassification"]}, "that of BertForTokenClassification"),
        ("score", {}, "the checkpoint's is for single_label_classification"),
    ],
)
def test_a_head_that_learned_something_else_is_new(save, convert, tmp_path, family, kind, fields, reason):
    path = save(tmp_path / "source", family, "classifier", **labelled()) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    plan, _ = convert(path.parent, tmp_path / "model", kind=kind)
    assert {unused.source.name for unused in plan.unused} == {*plan.fresh()}
    assert all(reason in unused.rule.reason for unused in plan.unused)


@pytest.mark.parametrize("family", sorted((*ENCODERS, *DECODERS)))
def test_a_score_that_was_learned_before_is_kept(save, convert, tmp_path, family):
    fields = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}, "pad_token_id": 1}
    plan, source = convert(
        save(tmp_path / "source", family, "classifier", **fields), tmp_path / "model", kind="score"
    )
    assert plan.fresh() == ()
    assert config_of(tmp_path / "model")["id2label"] == {"0": "score"}
    assert prove(plan, source, tmp_path / "model")["parity"].endswith("logits")


# --- decoders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(DECODERS))
@pytest.mark.parametrize("tied", [False, True])
def test_a_classifier_of_a_decoder_leaves_the_output_table_out(save, convert, tmp_path, family, tied):
    path = save(tmp_path / "source", family, "writer", tie_word_embeddings=tied)
    plan, source = convert(path, tmp_path / "model")
    assert plan.fresh() == ("score.weight",)
    reasons = {unused.source.name: unused.rule.reason for unused in plan.unused}
    gone = {"lm_head.weight": "head for causal language modelling: not this model's"}
    assert reasons == ({} if tied else gone)
    found = prove(plan, source, tmp_path / "model")
    assert found["similarity"] == "not judged: the model is no encoder"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    rows = torch.tensor([[5, 6, 7, 8], [5, 6, 1, 1]])  # 1 is padding, or the end of text in its place
    logits = model.eval()(input_ids=rows, attention_mask=(rows != 1).long()).logits
    alone = model(input_ids=rows[1:, :2]).logits
    assert torch.allclose(logits[1:], alone, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "special", "found"),
    [
        ({"pad_token_id": 3}, {"pad": 4, "eos": 5}, 3),
        ({"pad_token_id": None}, {"pad": 4, "eos": 5}, 4),
        ({"pad_token_id": None}, {"eos": 5}, 5),
        ({"pad_token_id": None, "eos_token_id": [6, 7]}, {}, 6),
    ],
)
def test_padding_is_the_tokenizers_or_else_the_end_of_text(fields, special, found):
    assert alignment.padding(transformers.LlamaConfig(**fields), special) == found


def test_a_classifier_that_could_not_tell_padding_is_refused():
    nothing = transformers.LlamaConfig(pad_token_id=None, eos_token_id=None)
    with pytest.raises(CheckpointError, match=r"write pad_token_id into config\.json"):
        alignment.padding(nothing, {"unk": 0})


@pytest.mark.parametrize("family", sorted(DECODERS))
def test_an_output_table_that_is_not_there_is_not_made_up(save, convert, tmp_path, family):
    path = save(tmp_path / "source", family, "base", tie_word_embeddings=False)
    with pytest.raises(PlanError, match=r"1 of the model's .* have no source: lm_head\.weight"):
        convert(path, tmp_path / "model", kind="chat")


# --- the vocabulary --------------------------------------------------------------------------------

EMBEDDINGS = {name: family.embedding for name, family in FAMILIES.items()}
BIASES = {"bert": "cls.predictions.bias", "roberta": "lm_head.bias", "distilbert": "vocab_projector.bias"}
TABLES = {"bert": "cls.predictions.decoder.weight", "roberta": "lm_head.decoder.weight"}
UNTIED = {
    **TABLES,
    "distilbert": "vocab_projector.weight",
    **dict.fromkeys((*DECODERS, "t5"), "lm_head.weight"),
}
GROWN = [*range(37), None, None]  # <|user|> and one more, each the mean of rows 4 and 7
MOVED = [1, 0, *range(36, 1, -1), None]


def separate(directory, **fields):
    """As T5 of version 1.1 is; transformers before its version 5 said so by `tie_word_embeddings`."""
    config = config_of(directory) | (fields or {"tie_word_embeddings": False})
    if "scale_decoder_outputs" not in fields:
        config.pop("scale_decoder_outputs", None)
    (directory / "config.json").write_text(json.dumps(config))
    tensors = load_file(directory / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["shared.weight"] + 1}, directory / "model.safetensors")


@pytest.mark.parametrize("field", ["scale_decoder_outputs", "tie_word_embeddings"])
def test_a_t5_whose_output_is_not_its_embeddings_stays_so(save, convert, tmp_path, field):
    path = save(tmp_path / "source", "t5", "translator")
    separate(path, **{field: False})
    plan, source = convert(path, tmp_path / "model", kind="translation")
    assert "lm_head.weight" in {move.target for move in plan.moves}
    assert prove(plan, source, tmp_path / "model")["parity"].endswith("logits")
    model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert not model.config.scale_decoder_outputs
    assert torch.equal(model.lm_head.weight, load_file(path / "model.safetensors")["lm_head.weight"])


@pytest.mark.parametrize("family", sorted(PRETRAINED))
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sources", [GROWN, MOVED], ids=["grown", "moved"])
def test_the_vocabulary_reaches_all_that_has_a_row_for_each_token(
    save, convert, align, tmp_path, family, tied, sources
):
    if family == "roberta" and sources is MOVED:
        sources = [*range(2), *range(36, 1, -1), None]  # its padding cannot move
    words = align(sources, extends=sources is GROWN)
    kind = "translation" if family == "t5" else "text"
    path = save(tmp_path / "source", family, PRETRAINED[family], tie_word_embeddings=tied)
    if family == "t5" and not tied:
        separate(path)
    plan, source = convert(path, tmp_path / "model", kind=kind, words=words)
    padded = {move.target for move in plan.moves if move.action == "padded"}
    more = {BIASES[family]} if family in BIASES else set()
    more |= {"cls.predictions.decoder.bias", "lm_head.decoder.bias"} & {move.target for move in plan.moves}
    assert padded == {EMBEDDINGS[family], *more} | (set() if tied else {UNTIED[family]})
    parity = prove(plan, source, tmp_path / "model", words=words.pairs)["parity"]
    assert parity.startswith(SAME)
    assert parity.endswith("logits")
    old, new = load_file(path / "model.safetensors"), load_file(tmp_path / "model" / "model.safetensors")
    for name in padded:
        theirs = old[name]
        assert torch.equal(new[name][-1], theirs[[4, 7]].double().mean(dim=0).float())
        assert torch.equal(
            new[name][[ours for _, ours in words.pairs]], theirs[[row for row, _ in words.pairs]]
        )
    model = transformers.AutoModel.from_pretrained(tmp_path / "model")
    assert model.config.vocab_size == len(sources)


def test_what_each_class_is_to_the_proofs():
    heads = {MASKED: True, CAUSAL: False, CONDITIONAL: False, MEANS: True}
    for family in FAMILIES.values():
        for head in heads.keys() & family.heads.keys():
            assert similarity.fits(skeleton.CLASSES[head][family.name]) == heads[head]
    assert not similarity.fits("GPT2ForSequenceClassification")
