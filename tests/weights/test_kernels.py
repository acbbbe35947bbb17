"""BERT and GPT-2 of Flax and TensorFlow, written out as their code names and lays out every tensor, compute the
same in transformers after the table, and come back byte for byte."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModel, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from tasks.weights import transcribe
from tasks.weights.families import find_naming
from tasks.weights.formats import open_checkpoint

IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35], [8, 9, 7, 9, 3, 2, 36]])
BERT = BertConfig(
    vocab_size=37, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=19, type_vocab_size=5,
)  # fmt: skip
GPT2 = {"vocab_size": 37, "n_positions": 19, "n_embd": 24, "n_layer": 2, "n_head": 4}


def randomised(model):
    """Norms and biases random too, so that none can be mistaken for another."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


# --- as their code names and lays out the parameters of a torch module -------------------------------


def parameters(module, words):
    """A layer's tensors in Flax's or Keras' `words`: embedding, scale, shift. Every kernel is a weight turned."""
    table, scale, shift = words
    if isinstance(module, torch.nn.Embedding):
        return {table: module.weight}
    if isinstance(module, torch.nn.LayerNorm):
        return {scale: module.weight, shift: module.bias}
    bias = {} if module.bias is None else {"bias": module.bias}
    return {"kernel": module.weight.T, **bias}


def layers(model):
    """Name -> module, of all that have parameters of their own; a head that is tied is none."""
    tied = set(model.all_tied_weights_keys)
    return {
        name: module
        for name, module in model.named_modules()
        if list(module.parameters(recurse=False)) and f"{name}.weight" not in tied
    }


def array(tensor):
    return np.ascontiguousarray(tensor.detach().numpy())


def flax_tensors(model, prefix=""):
    """Name -> array as FlaxPreTrainedModel.save_pretrained writes them."""
    return {
        f"{prefix}{name}.{word}": array(tensor)
        for name, module in layers(model).items()
        for word, tensor in parameters(module, ("embedding", "scale", "bias")).items()
    }


def keras_tensors(model, outer="tf_bert_model"):
    """Path -> array as TFBertModel.save_weights writes them."""
    found = {}
    for name, module in layers(model).items():
        table = "weight" if name.endswith("word_embeddings") else "embeddings"
        path = name.replace(".", "/").replace("layer/", "layer_._")
        for word, tensor in parameters(module, (table, "gamma", "beta")).items():
            found[f"bert/{outer}/bert/{path}/{word}:0"] = array(tensor)
    return found


def write_flax(directory, tensors, config):
    msgpack = pytest.importorskip("msgpack")
    tree = {}
    for name, tensor in tensors.items():
        *maps, last = name.split(".")
        place = tree
        for part in maps:
            place = place.setdefault(part, {})
        packed = msgpack.packb((tensor.shape, tensor.dtype.name, tensor.tobytes()))
        place[last] = msgpack.ExtType(1, packed)
    (directory / "flax_model.msgpack").write_bytes(msgpack.packb(tree))
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    return directory / "flax_model.msgpack"


def write_keras(directory, tensors, config):
    h5py = pytest.importorskip("h5py")
    with h5py.File(directory / "tf_model.h5", "w") as file:
        for path, tensor in tensors.items():
            file.create_dataset(path, data=tensor)
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    return directory / "tf_model.h5"


# --- parity ----------------------------------------------------------------------------------------


def convert(path, family, target, **how):
    transcribe.transcribe(transcribe.planned(open_checkpoint(path), find_naming(family), **how), target)
    return target


def there_and_back(path, family, tmp_path, kind):
    model = kind.from_pretrained(convert(path, family, tmp_path / "there")).eval()
    back = convert(tmp_path / "there", family, tmp_path / "back", reverse=True)
    return model, load_file(back / "model.safetensors")


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def equal(model, other, read=lambda output: output.last_hidden_state):
    with torch.no_grad():
        return torch.equal(read(model(IDS)), read(other(IDS)))


def test_a_bert_of_flax(tmp_path):
    theirs = randomised(BertModel(BERT))
    tensors = flax_tensors(theirs)
    model, back = there_and_back(write_flax(tmp_path, tensors, BERT), "flax-bert", tmp_path, AutoModel)
    assert equal(model, theirs)
    assert same(back, tensors)


def test_a_bert_of_flax_below_a_head(tmp_path):
    theirs = randomised(BertModel(BERT))
    head = {
        "cls.predictions.bias": np.ones(37, np.float32),
        "classifier.kernel": np.ones((24, 3), np.float32),
    }
    path = write_flax(tmp_path, flax_tensors(theirs, "bert.") | head, BERT)
    made = transcribe.planned(open_checkpoint(path), find_naming("flax-bert")).plan
    assert {unused.source.name for unused in made.unused} == set(head)
    assert equal(AutoModel.from_pretrained(convert(path, "flax-bert", tmp_path / "there")).eval(), theirs)


@pytest.mark.parametrize("tied", [True, False])
def test_a_gpt2_of_flax(tmp_path, tied):
    config = GPT2Config(**GPT2, tie_word_embeddings=tied)
    theirs = randomised(GPT2LMHeadModel(config))
    tensors = flax_tensors(theirs)
    path = write_flax(tmp_path, tensors, config)
    model, back = there_and_back(path, "flax-gpt2", tmp_path, GPT2LMHeadModel)
    assert equal(model, theirs, lambda output: output.logits)
    assert same(back, tensors)


def test_a_bert_of_tensorflow(tmp_path):
    theirs = randomised(BertModel(BERT))
    tensors = keras_tensors(theirs)
    assert "bert/tf_bert_model/bert/encoder/layer_._1/attention/self/query/kernel:0" in tensors
    model, back = there_and_back(write_keras(tmp_path, tensors, BERT), "tf-bert", tmp_path, AutoModel)
    assert equal(model, theirs)
    assert same(back, {path.replace("/", "."): tensor for path, tensor in tensors.items()})


def test_a_bert_of_tensorflow_below_the_heads_of_pretraining(tmp_path):
    outer, theirs = "tf_bert_for_pre_training", randomised(BertModel(BERT))
    tensors = keras_tensors(theirs, outer)
    table = f"{outer}/bert/embeddings/word_embeddings/weight:0"
    heads = {
        f"mlm___cls/{outer}/mlm___cls/predictions/bias:0": np.ones(37, np.float32),
        f"nsp___cls/{outer}/nsp___cls/seq_relationship/kernel:0": np.ones((24, 2), np.float32),
        f"mlm___cls/{table}": tensors[f"bert/{table}"],
    }
    path = write_keras(tmp_path, tensors | heads, BERT)
    made = transcribe.planned(open_checkpoint(path), find_naming("tf-bert")).plan
    assert {unused.source.name for unused in made.unused} == {name.replace("/", ".") for name in heads}
    assert equal(AutoModel.from_pretrained(convert(path, "tf-bert", tmp_path / "there")).eval(), theirs)
