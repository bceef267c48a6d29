"""Where a model comes from: paths, names of presets, the cache of the Hub and the Hub itself, which here is a stub."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import gguf
import numpy as np
import pytest
import safetensors.numpy
from gguf_files import write_gguf
from hub_stub import REVISION, serving
from huggingface_hub import constants

from sim.problem import Model, find_checkpoint
from sim.problem.presets import MODELS
from tests.sim.problem.test_gguf import FIELDS, TYPES, qwen
from traces.errors import InputError

QWEN = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "head_dim": 16,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "torch_dtype": "bfloat16",
}
NVFP4 = {"quantization": {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"]}}


def tensors(dtype=np.float16, experts=None):
    """The weights of that model, those of experts as `experts` makes them of a name and a shape."""
    hidden, dim, width = 64, 16, 32
    found = {f"{name}.weight": (100, hidden) for name in ("model.embed_tokens", "lm_head")}
    found["model.norm.weight"] = (hidden,)
    for layer in (f"model.layers.{i}" for i in range(2)):
        found |= {f"{layer}.self_attn.{one}_proj.weight": (4 * dim, hidden) for one in "qo"}
        found |= {f"{layer}.self_attn.{one}_proj.weight": (2 * dim, hidden) for one in "kv"}
        found |= {f"{layer}.self_attn.{one}_norm.weight": (dim,) for one in "qk"}
        found |= {f"{layer}.{one}_layernorm.weight": (hidden,) for one in ("input", "post_attention")}
        found[f"{layer}.mlp.gate.weight"] = (4, hidden)
        for expert in range(4):
            name = f"{layer}.mlp.experts.{expert}"
            found |= {f"{name}.{one}_proj.weight": (width, hidden) for one in ("gate", "up")}
            found[f"{name}.down_proj.weight"] = (hidden, width)
    made = {}
    for name, shape in found.items():
        made |= experts(name, shape) if experts and ".experts." in name else {name: np.zeros(shape, dtype)}
    return made


def packed(name, shape):
    """Four bits, eight weights a word, with a scale of sixteen bits for 32 of them."""
    base = name.removesuffix(".weight")
    return {
        f"{base}.weight_packed": np.zeros((shape[0], shape[1] // 8), np.int32),
        f"{base}.weight_scale": np.zeros((shape[0], shape[1] // 32), np.float16),
    }


def write_folder(folder, config=QWEN, made=None, beside=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if made is not None:
        safetensors.numpy.save_file(made, folder / "model.safetensors")
    if beside is not None:
        (folder / "hf_quant_config.json").write_text(json.dumps(beside))
    return folder


def shards(folder, made, count=2):
    """The tensors in so many files, and their index."""
    names = list(made)
    where = {name: f"model-{i % count + 1:05}-of-{count:05}.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        safetensors.numpy.save_file({name: made[name] for name in names if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


# --- on this machine -------------------------------------------------------------------------------------------------


def test_a_folder_wins_over_a_preset_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "mixtral-8x7b", QWEN)
    assert Model.load("mixtral-8x7b").hidden_size == 64
    assert Model.load("Mixtral-8x7B").hidden_size == 4096, "no such path"
    shutil.rmtree(tmp_path / "mixtral-8x7b")
    (tmp_path / "mixtral-8x7b").mkdir()
    assert Model.load("mixtral-8x7b").hidden_size == 4096, "a folder without a model is none"


def test_a_file_beside_the_configuration_says_what_modelopt_did(tmp_path):
    folder = write_folder(tmp_path / "nvfp4", QWEN, beside=NVFP4)
    for given in (folder, folder / "config.json"):
        found = Model.load(given).widths
        assert (found.experts, found.head, found.embedding) == (4.5, 16, 16)


def test_widths_are_read_off_tensors(tmp_path):
    folder = write_folder(
        tmp_path / "packed", {**QWEN, "quantization_config": {"quant_method": "fp8"}}, tensors(experts=packed)
    )
    found = Model.load(folder).widths
    assert found.experts == 4.5, "what is there, not what the configuration says"
    assert (found.attention, found.embedding, found.head, found.router) == (16, 16, 16, 16)


def test_layers_that_predict_further_tokens_and_other_parts_do_not_count(tmp_path):
    more = {"model.layers.2.mlp.experts.0.up_proj.weight": np.zeros((64, 64), np.float64)}
    more |= {"visual.blocks.0.mlp.fc1.weight": np.zeros((64, 64), np.float64)}
    folder = write_folder(tmp_path / "mtp", QWEN, tensors() | more)
    assert Model.load(folder).widths == Model.of_config(QWEN, "mtp", "").widths


def test_wide_tensors_are_wide(tmp_path):
    made = tensors()
    made = {name: one.astype(np.float32) if "self_attn" in name else one for name, one in made.items()}
    found = Model.load(write_folder(tmp_path / "wide", QWEN, made)).widths
    assert (found.experts, found.attention) == (16, 32)


def test_an_index_a_file_and_a_folder_name_the_same_model(tmp_path):
    folder = write_folder(tmp_path / "sharded", QWEN)
    shards(folder, tensors(experts=packed))
    found = Model.load(folder)
    assert found.widths.experts == 4.5
    assert Model.load(folder / "model.safetensors.index.json") == found
    single = write_folder(tmp_path / "single" / "sharded", QWEN, tensors(experts=packed))
    assert Model.load(single / "model.safetensors") == found


def test_a_folder_that_lacks_files_is_read_by_its_configuration(tmp_path):
    folder = write_folder(tmp_path / "partly", QWEN)
    shards(folder, tensors(experts=packed))
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert Model.load(folder).widths.experts == 16
    with pytest.raises(InputError, match=r"names 'model-00002-of-00002.safetensors', which is not there \(1 of 2"):
        Model.load(folder / "model.safetensors.index.json")


def test_pointers_of_git_are_no_tensors(tmp_path):
    folder = write_folder(tmp_path / "cloned", QWEN)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 100\n")
    assert Model.load(folder).widths.experts == 16
    with pytest.raises(InputError, match=r"is a pointer of Git LFS: fetch the file itself"):
        Model.load(folder / "model.safetensors")


def test_a_byte_order_mark_is_no_part_of_a_configuration(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(QWEN).encode())
    assert Model.load(path).hidden_size == 64


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.safetensors", b"", "is not a safetensors file"),
        ("model.safetensors", b"\xff" * 100, "is not a safetensors file"),
        ("model.safetensors", (20).to_bytes(8, "little") + b'{"a": {"shape": 3}}x', "its header cannot be read"),
        ("model.safetensors.index.json", b'{"weight_map": 3}', "is no index of safetensors"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path, name, content, says):
    write_folder(tmp_path, QWEN)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        Model.load(tmp_path / name)


def test_tensors_of_another_model_are_refused(tmp_path):
    folder = write_folder(tmp_path / "other", {**QWEN, "moe_intermediate_size": 3200}, tensors(experts=packed))
    with pytest.raises(InputError, match=r"its tensors of kind experts take .* they are of different models"):
        Model.load(folder)


def test_tensors_without_a_configuration_are_refused(tmp_path):
    safetensors.numpy.save_file(tensors(), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"tensors alone are no model: their config.json must lie beside them"):
        Model.load(tmp_path / "model.safetensors")


def test_a_folder_with_several_gguf_files_asks_which(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"holds 2 models; give one of its files: a.gguf, b.gguf"):
        Model.load(tmp_path)


# --- the Hub ---------------------------------------------------------------------------------------------------------


def header(shapes, dtype="BF16", size=2):
    """The header of a file of safetensors, and how long the file would be."""
    content, at = {}, 0
    for name, shape in shapes.items():
        end = at + int(np.prod(shape)) * size
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + at


def large_checkpoint(count=118):
    """Qwen3-235B-A22B as it lies on the Hub, without its weights: files of 470 GB in all."""
    config = json.loads(MODELS.path("qwen3-235b-a22b").read_text())
    hidden, width, heads, dim = 4096, 1536, 64, 128
    shapes = {"model.embed_tokens.weight": (151936, hidden), "lm_head.weight": (151936, hidden)}
    for i in range(94):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.self_attn.{one}_proj.weight": (heads * dim, hidden) for one in "qo"}
        shapes |= {f"{layer}.self_attn.{one}_proj.weight": (4 * dim, hidden) for one in "kv"}
        shapes |= {f"{layer}.mlp.gate.weight": (128, hidden), f"{layer}.input_layernorm.weight": (hidden,)}
        for expert in range(128):
            name = f"{layer}.mlp.experts.{expert}"
            shapes |= {f"{name}.{one}_proj.weight": (width, hidden) for one in ("gate", "up")}
            shapes[f"{name}.down_proj.weight"] = (hidden, width)
    names = list(shapes)
    files = {"config.json": json.dumps(config).encode(), "README.md": b"#" * 10**6}
    for number in range(count):
        part = names[number * len(names) // count : (number + 1) * len(names) // count]
        files[f"model-{number + 1:05}-of-{count:05}.safetensors"] = header({name: shapes[name] for name in part})
    files["model.safetensors.index.json"] = b" " * (4 << 20)
    return files


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stub of the Hub in place of the real one, with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    file = tmp_path / "tiny.gguf"
    write_gguf(file, gguf.MODEL_ARCH.QWEN3MOE, FIELDS, qwen(), TYPES)
    folder = write_folder(tmp_path / "made", QWEN, tensors(experts=packed), NVFP4)
    repositories = {
        "org/small": {path.name: path.read_bytes() for path in folder.iterdir()},
        "org/modelopt": {"config.json": json.dumps(QWEN).encode(), "hf_quant_config.json": json.dumps(NVFP4).encode()},
        "org/one-gguf": {"tiny-Q4_K_M.gguf": file.read_bytes(), "README.md": b""},
        "org/ggufs": {f"tiny-{kind}.gguf": file.read_bytes() for kind in ("Q4_K_M", "Q4_K_S", "IQ3_XXS")},
        "org/text": {"README.md": b"text"},
        "org/broken": {"config.json": b"<html>"},
    }
    with serving(repositories) as (stub, address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield stub


def test_a_repository_is_read_by_its_configuration_and_headers(hub):
    found = Model.load("org/small")
    assert found.name == "org/small"
    assert (found.hidden_size, found.widths.experts, found.widths.attention) == (64, 4.5, 16)
    assert Model.load("org/small@main") == found
    assert Model.load(f"org/small@{REVISION}") == found


def test_modelopt_of_a_repository(hub):
    assert Model.load("org/modelopt").widths.experts == 4.5


def test_gguf_files_of_a_repository_are_named_behind_a_colon(hub):
    found = Model.load("org/one-gguf")
    assert found.widths.embedding == 4.5
    assert Model.load("org/ggufs:IQ3_XXS").widths == Model.load("org/ggufs:q4_k_m").widths == found.widths
    with pytest.raises(InputError, match=r"org/ggufs: may be any of 3: say which of its GGUF files behind a colon"):
        Model.load("org/ggufs")
    with pytest.raises(InputError, match=r"org/ggufs:Q8_0: names none: say which"):
        Model.load("org/ggufs:Q8_0")


def test_a_token_goes_with_the_request(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    Model.load("org/small")
    assert hub.token == "Bearer hf_secret"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("org/none", "is neither a file or folder here nor a repository of the Hub that you may read"),
        ("org/small@none", "has no revision 'none'"),
        ("org/text", "has neither a config.json nor a GGUF file: it holds no model"),
        ("org/broken", "config.json: is not JSON"),
    ],
)
def test_what_the_hub_lacks_is_told_in_one_line(hub, name, says):
    with pytest.raises(InputError) as caught:
        Model.load(name)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_network_one_line_says_so_in_time(monkeypatch, tmp_path):
    """Once where nothing listens, and once where something does that never answers."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("sim.problem.checkpoint.hub.TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (silent.getsockname()[1], 9):
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
            began = time.monotonic()
            with pytest.raises(InputError, match=r"is no file or folder here, and the Hub .* cannot be reached"):
                Model.load("org/name")
            assert time.monotonic() - began < 5


def test_offline_nothing_is_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"org/name: is neither .* and HF_HUB_OFFLINE forbids"):
        Model.load("org/name")


def test_repositories_of_presets_need_no_network(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Model.load("openai/gpt-oss-120b") == Model.load("gpt-oss-120b")
    ids = [one for path in MODELS.paths() for one in json.loads(path.read_text()).get("_hub_ids", [])]
    assert len(ids) == len(set(ids)) >= len(MODELS.paths()) - 1


def cached(cache, made=None):
    """The cache of the Hub with one repository."""
    repository = cache / "models--org--small"
    snapshot = repository / "snapshots" / REVISION
    write_folder(snapshot, QWEN, made)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(REVISION)


def test_the_cache_comes_first(hub, tmp_path):
    cached(tmp_path / "cache", tensors())
    assert find_checkpoint("org/small").source == "org/small (cached)"
    assert hub.asked == []
    assert Model.load("org/small").widths.experts == 16


def test_a_cache_without_weights_lets_their_headers_be_asked(hub, tmp_path, monkeypatch):
    cached(tmp_path / "cache")
    assert Model.load("org/small").widths.experts == 4.5
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert Model.load("org/small").widths.experts == 16, "without a network its configuration must do"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Model.load("org/small").widths.experts == 16


def test_gguf_files_of_the_cache_need_no_network(hub, tmp_path, monkeypatch):
    cached(tmp_path / "cache")
    repository = tmp_path / "cache" / "models--org--small"
    write_gguf(
        repository / "snapshots" / REVISION / "tiny-Q4_K_M.gguf", gguf.MODEL_ARCH.QWEN3MOE, FIELDS, qwen(), TYPES
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Model.load("org/small:Q4_K_M").widths.embedding == 4.5
    with pytest.raises(InputError, match="HF_HUB_OFFLINE forbids"):
        Model.load("org/small:Q8_0")


def test_a_checkpoint_of_235_b_takes_less_than_10_mb(tmp_path):
    """By the command itself, as a user has it: endpoint and token from the environment."""
    with serving({"org/large": large_checkpoint()}) as (hub, address):
        env = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path)}
        command = "plan --quick --model org/large --hardware rtx4090 --batch 1 --prompt-len 64 --gen-len 8"
        options = ["--schedules", "zero", "--weight-bits", "Q2_K"]
        run = [sys.executable, "-m", "sim", *command.split(), *options]
        done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert "org/large" in done.stdout, done.stderr
    assert 3e6 < hub.sent < 10e6
    assert len(hub.asked) > 118
