"""Widths that a plan sets apart, and those that names of GGUF files stand for."""

import json
from dataclasses import replace

import gguf
import pytest
from glm_air import GLM_AIR

from sim.problem import KINDS, Model, Placement, Policy, Widths, WidthsApart
from sim.problem.presets import FOLDER
from sim.schedule import by_name
from traces.errors import InputError
from traces.files import read_toml

TABLES = read_toml(FOLDER / "gguf_widths.toml")
GLM_WITH_BIAS = {**GLM_AIR, "attention_bias": True}
MIXTRAL = Model.load("mixtral-8x7b")


def as_stored(weight_bits, model=MIXTRAL):
    return Policy(8, 4, weight_bits=weight_bits).widths(model)


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ("4.5", 4.5),
        ("experts=4.5", 4.5),
        ({"experts": 4.5}, 4.5),
        ("q4_k_m", "Q4_K_M"),
        ("MXFP4", "MXFP4_MOE"),
        ("attention=8", WidthsApart(attention=8.0)),
        ("experts=Q4_K, head=q6_k", WidthsApart(experts=4.5, head=6.5625)),
        ("experts=4.5+rest=8", WidthsApart(4.5, 8.0, 8.0, 8.0, None, 8.0, 8.0)),
        ({"rest": 8, "router": 32}, WidthsApart(8.0, 8.0, 8.0, 8.0, 32.0, 8.0, 8.0)),
    ],
)
def test_widths_are_given_in_three_forms(given, means):
    policy = Policy(8, 4, weight_bits=given)
    assert policy.weight_bits == means
    written = json.loads(json.dumps(policy.to_dict()))
    assert Policy.from_dict(written, by_name("cgopipe")).weight_bits == means


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("Q4_K_X", "did you mean Q4_K_S or Q4_K_M"),
        ("expert=4", "'expert' is no kind of tensor; did you mean experts?; known are experts, attention"),
        ("experts=4,experts=5", "gives 'experts' twice"),
        ("experts=wide", "experts: 'wide' is no width; give bits such as 4.5, or one of F32"),
        ("experts=0.5", "experts: 0.5 is not allowed"),
        ({}, "is no kind of tensor"),
        ([4], "[4] is not allowed"),
    ],
)
def test_what_is_no_width_is_refused(given, says):
    with pytest.raises(InputError) as caught:
        Policy(8, 4, weight_bits=given)
    assert says in str(caught.value)


def test_a_plain_number_is_the_width_of_routed_experts():
    assert as_stored(4.5) == Widths(experts=4.5)


def test_kinds_that_are_not_named_keep_their_width():
    assert as_stored("experts=4.5,attention=8") == Widths(experts=4.5, attention=8.0)
    assert as_stored("experts=4.5,rest=8") == Widths(4.5, 8.0, 8.0, 8.0, 16.0, 8.0, 8.0), "routers stay"


def test_every_kind_has_its_own_bytes():
    """Bytes of a layer that has all kinds fall with each of them, and by what that kind has."""
    model = Model.load("deepseek-v3")
    for kind in KINDS:
        narrow = replace(model.widths, **{kind: getattr(model.widths, kind) / 2})
        total, less = (model.experts_bytes(one) + model.resident_bytes(one) for one in (model.widths, narrow))
        numbers = {
            "experts": model.over_layers(lambda one: one.num_experts * one.expert_params),
            "attention": model.over_layers(lambda one: one.attention_params),
            "shared": model.over_layers(lambda one: one.shared_expert_params),
            "dense": model.over_layers(lambda one: one.dense_ffn_params),
            "router": model.over_layers(lambda one: one.router_params + one.norm_params) + model.final_norm_params,
            "embedding": model.embedding_params,
            "head": model.head_params,
        }[kind]
        assert total - less == pytest.approx(numbers * getattr(model.widths, kind) / 16, abs=2 * model.num_layers)


def test_streamed_bytes_have_the_width_of_their_kind():
    policy = Policy(8, 8, weight_bits="experts=4,attention=8")
    placement = Placement.of(policy, by_name("zero"), MIXTRAL)
    layer = MIXTRAL.layers[0]
    others = layer.attention_params * 8 / 8 + (layer.router_params + layer.norm_params) * 16 / 8
    assert placement.streamed_bytes(0) == layer.num_experts * layer.expert_params * 4 / 8 + others


# --- names of GGUF files ---------------------------------------------------------------------------------------------


def test_bits_of_types_are_those_of_the_package():
    known = {kind.name: 8 * size / count for kind, (count, size) in gguf.GGML_QUANT_SIZES.items()}
    assert TABLES["bits"].items() <= known.items()
    blocks = {name: int(count) for count, names in TABLES["blocks"].items() for name in names}
    for name in TABLES["bits"]:
        assert blocks.get(name, 32) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][0]


def test_names_of_files_are_those_of_the_package():
    known = {kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    assert set(TABLES["files"]) <= known


@pytest.mark.parametrize("name", TABLES["files"])
def test_every_name_gives_every_kind_a_width(name):
    found, usual = as_stored(name), TABLES["bits"][TABLES["files"][name]["type"]]
    assert found.router == 32
    assert found.experts >= 0.9 * usual or name == "MXFP4_MOE"
    assert found.experts < usual + 2


PUBLISHED_GB = {
    "Q2_K": 52.10,
    "IQ3_XS": 58.22,
    "IQ3_S": 61.49,
    "Q3_K_S": 61.49,
    "IQ3_M": 64.49,
    "Q3_K_M": 67.78,
    "Q3_K_L": 72.57,
    "IQ4_XS": 76.35,
    "IQ4_NL": 80.47,
    "Q4_K_S": 80.47,
    "Q4_K_M": 85.58,
    "Q5_K_S": 96.97,
    "Q5_K_M": 99.96,
}
"""https://huggingface.co/bartowski/Mixtral-8x22B-v0.1-GGUF"""


@pytest.mark.parametrize("name", PUBLISHED_GB)
def test_files_are_as_large_as_those_that_were_published(name):
    model = Model.load("mixtral-8x22b")
    widths = as_stored(name, model)
    size = model.experts_bytes(widths) + model.resident_bytes(widths)
    assert size / 1e9 == pytest.approx(PUBLISHED_GB[name], rel=0.005)


def test_a_file_of_four_bits_has_the_rest_of_a_model_at_four_to_six_bits():
    """The rest of GLM-4.5-Air: 14.4 GB in 16 bits, 4 to 5.5 GB in a file of Q4_K_M."""
    model = Model.of_config(GLM_AIR, "glm-4.5-air", "glm")
    assert model.resident_bytes() / 1e9 == pytest.approx(14.4, rel=0.02)
    assert 4 < model.resident_bytes(as_stored("Q4_K_M", model)) / 1e9 < 5.5


def test_rows_that_are_no_multiple_of_a_block_take_the_type_that_stands_in():
    """Of an expert of GLM-4.5-Air the down projection has rows of 1,408: Q5_0 and Q8_0 where others have Q4_K, Q6_K."""
    model = Model.of_config(GLM_AIR, "glm-4.5-air", "glm")
    assert as_stored("Q4_K_S", model).experts == pytest.approx((2 * 4.5 + (40 * 5.5 + 5 * 6.0) / 45) / 3, rel=0.01)
