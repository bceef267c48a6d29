"""GGUF files, written by the gguf package for tiny models of every architecture that is read."""

import struct

import gguf
import pytest
from gguf_files import ARCHITECTURES, fields_of, tensors_of, write_gguf

from sim.problem import Model
from tests.sim.problem.test_hf_config import FAMILIES, TINY_MLA, real_model
from traces.errors import InputError

TINY = {name: {**options, "mlp_only_layers": []} for name, options in reversed(FAMILIES) if name in ARCHITECTURES}


def written(path, model_type, options, **changes):
    """A file of a tiny model, and the model as its configuration describes it."""
    model, config = real_model(model_type, options)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if "rotary" not in name}
    if config["tie_word_embeddings"]:
        shapes.pop("lm_head.weight", None)
    tensors = list(tensors_of(model_type, shapes, config["num_hidden_layers"]))
    write_gguf(path, ARCHITECTURES[model_type], {**fields_of(config), **changes}, tensors)
    return Model.of_config(config, path.stem, "config")


@pytest.mark.parametrize("model_type", TINY)
def test_a_file_has_the_layers_that_its_configuration_describes(tmp_path, model_type):
    path = tmp_path / "tiny.gguf"
    described = written(path, model_type, TINY[model_type])
    found = Model.load(path)
    assert found.total_params == described.total_params
    assert (found.vocab_size, found.tie_embeddings) == (described.vocab_size, described.tie_embeddings)
    assert found.layers == described.layers
    assert found.widths.experts == 16


def test_older_files_of_latent_attention_have_the_heads_of_the_model(tmp_path):
    """Before the latent cache was kept, keys and values of all heads stood in one tensor and in the usual fields."""
    path = tmp_path / "old.gguf"
    old = {"attention.head_count_kv": 6, "attention.key_length": 20, "attention.value_length": 10}
    described = written(path, "deepseek_v2", {**TINY_MLA, "q_lora_rank": None, "first_k_dense_replace": 1}, **old)
    fields = Model.load(path)
    assert fields.layers == described.layers


FIELDS = {
    "block_count": 2,
    "embedding_length": 256,
    "feed_forward_length": 512,
    "expert_feed_forward_length": 256,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.key_length": 64,
    "attention.value_length": 64,
    "expert_count": 4,
    "expert_used_count": 2,
}


def qwen(num_layers=2, first=0):
    """The tensors of a small Qwen3 MoE model from one layer on, with those outside layers before the first."""
    ends = [("token_embd.weight", (1000, 256)), ("output.weight", (1000, 256)), ("output_norm.weight", (256,))]
    block = {
        **{"attn_q": (256, 256), "attn_k": (128, 256), "attn_v": (128, 256), "attn_output": (256, 256)},
        **{"attn_q_norm": (64,), "attn_k_norm": (64,), "attn_norm": (256,), "ffn_norm": (256,)},
        **{"ffn_gate_inp": (4, 256), "ffn_gate_exps": (4, 256, 256), "ffn_up_exps": (4, 256, 256)},
        **{"ffn_down_exps": (4, 256, 256)},
    }
    layers = range(first, first + num_layers)
    inside = [(f"blk.{layer}.{name}.weight", shape) for layer in layers for name, shape in block.items()]
    return (ends if first == 0 else []) + inside


Q4_K, Q6_K, Q8_0 = (gguf.GGMLQuantizationType[name] for name in ("Q4_K", "Q6_K", "Q8_0"))
TYPES = {
    "0.ffn_down_exps.weight": Q6_K,
    "_exps.weight": Q4_K,
    "attn_v.weight": Q8_0,
    "token_embd.weight": Q4_K,
    "output.weight": Q6_K,
}


def test_each_kind_has_the_width_of_its_tensors(tmp_path):
    path = tmp_path / "mixed.gguf"
    write_gguf(path, gguf.MODEL_ARCH.QWEN3MOE, FIELDS, qwen(), TYPES)
    found = Model.load(path).widths
    assert found.experts == pytest.approx((5 * 4.5 + 6.5625) / 6)
    with_norms_in_32_bits = pytest.approx((16 + 6.5625 + (16 + 8.5) / 2) / 3, rel=2e-3)
    assert found.attention == with_norms_in_32_bits
    assert (found.embedding, found.head) == (4.5, 6.5625)
    assert 16 < found.router < 32


def test_tensors_of_a_type_that_nobody_knows_count_with_their_bytes(tmp_path):
    path = tmp_path / "own.gguf"
    write_gguf(path, gguf.MODEL_ARCH.QWEN3MOE, FIELDS, qwen(), TYPES)
    content = path.read_bytes()
    name = b"blk.1.ffn_up_exps.weight"
    at = content.index(name) + len(name) + 4 + 3 * 8
    assert struct.unpack_from("<I", content, at) == (Q4_K,)
    path.write_bytes(content[:at] + struct.pack("<I", 137) + content[at + 4 :])
    assert Model.load(path).widths.experts == pytest.approx((5 * 4.5 + 6.5625) / 6, rel=1e-4)


def test_only_the_header_of_a_file_is_read(tmp_path):
    """The file is cut off behind its header and made as long as it said, with a hole where weights were."""
    path = tmp_path / "large.gguf"
    write_gguf(path, gguf.MODEL_ARCH.QWEN3MOE, FIELDS, qwen(), TYPES)
    whole = Model.load(path)
    size, header = path.stat().st_size, gguf.GGUFReader(path).data_offset
    with path.open("r+b") as file:
        file.truncate(header)
        file.truncate(max(size, 100 << 30))
    assert Model.load(path) == whole


def test_a_split_file_is_read_by_its_first_part(tmp_path):
    first, second = (tmp_path / f"big-0000{i}-of-00002.gguf" for i in (1, 2))
    write_gguf(first, gguf.MODEL_ARCH.QWEN3MOE, FIELDS, qwen(1), TYPES)
    write_gguf(second, gguf.MODEL_ARCH.QWEN3MOE, {}, qwen(1, first=1), TYPES)
    assert Model.load(first).num_layers == 2
    assert Model.load(tmp_path) == Model.load(first), "a folder with one model"
    with pytest.raises(InputError, match=r"is a later part of a model; give the first, big-00001-of-00002.gguf"):
        Model.load(second)
    second.unlink()
    with pytest.raises(InputError, match=r"big-00002-of-00002.gguf is missing beside it"):
        Model.load(first)


def test_blocks_that_predict_further_tokens_are_no_layers(tmp_path):
    path = tmp_path / "mtp.gguf"
    fields = {**FIELDS, "block_count": 3, "nextn_predict_layers": 1}
    write_gguf(path, gguf.MODEL_ARCH.QWEN3MOE, fields, [*qwen(2), *qwen(1, first=2)])
    assert Model.load(path).num_layers == 2


def made(path, architecture=gguf.MODEL_ARCH.QWEN3MOE, tensors=None, **changes):
    fields = {name: value for name, value in {**FIELDS, **changes}.items() if value is not None}
    write_gguf(path, architecture, fields, qwen() if tensors is None else tensors)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_bytes(b"GGUX" + bytes(100)), "is not a GGUF file"),
        (lambda path: path.write_bytes(b"GGUF" + struct.pack("<I", 1) + bytes(100)), "is GGUF of version 1"),
        (lambda path: path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 5, 5)), "its header ends too early"),
        (lambda path: path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60)), "its header ends too early"),
        (lambda path: path.write_bytes(b""), "its header ends too early"),
        (lambda path: made(path, gguf.MODEL_ARCH.GPT2), "is of architecture 'gpt2', which is not read"),
        (lambda path: made(path, tensors=qwen()[1:]), "has no embedding"),
        (lambda path: made(path, block_count=None), "block_count"),
        (lambda path: made(path, expert_count=None), "has no experts"),
        (
            lambda path: made(path, expert_feed_forward_length=512),
            "this architecture is not read right",
        ),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(tmp_path, make, says):
    path = tmp_path / "odd.gguf"
    make(path)
    with pytest.raises(InputError) as caught:
        Model.load(path)
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
