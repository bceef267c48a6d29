"""What a call may be given: done right, or refused in one line before anything starts."""

import re
import threading

import numpy as np
import pytest
import torch
from engine_models import PROMPTS, make, reference
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

import engine
from engine.device import EmulatedDevice
from engine.generation.asked import check_kind
from engine.generation.asked.arguments import REFUSED_FAMILIES
from sim.problem import Policy
from traces.errors import InputError

NEW = 4
DEVICE = {"device": "emulated", "max_new_tokens": NEW}


@pytest.fixture(scope="module")
def expected():
    return reference(make("mixtral"), PROMPTS[:2], 1, NEW)


@pytest.mark.parametrize(
    "prompts",
    [
        [np.array(PROMPTS[0]), torch.tensor(PROMPTS[1])],
        [tuple(PROMPTS[0]), [np.int64(token) for token in PROMPTS[1]]],
        (PROMPTS[0], [torch.tensor(token) for token in PROMPTS[1]]),
        iter(PROMPTS[:2]),
        [engine.GenerationRequest(PROMPTS[0]), PROMPTS[1]],
    ],
    ids=["arrays", "numpy numbers", "tensors of one number", "iterator", "requests"],
)
def test_prompts_in_many_forms(prompts, expected):
    assert engine.run(make("mixtral"), prompts, **DEVICE).sequences == expected


def test_a_matrix_is_one_prompt_a_row():
    ids = np.array([PROMPTS[0][:3], PROMPTS[1][:3]])
    expected = reference(make("mixtral"), ids.tolist(), 1, NEW)
    assert engine.run(make("mixtral"), ids, **DEVICE).sequences == expected
    assert engine.run(make("mixtral"), torch.tensor(ids), **DEVICE).sequences == expected
    assert len(list(engine.stream(make("mixtral"), ids, **DEVICE))) == 2


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        (PROMPTS[0], "a list of numbers is one prompt; put it into a list"),
        (np.array(PROMPTS[0]), "an array of 1 dimensions is no list of prompts"),
        (None, "a NoneType is no list of prompts"),
        (5, "a int is no list of prompts"),
        ({"prompt": [3]}, "a dict is no list of prompts"),
        ([None], "prompt 0 is a NoneType"),
        ([[3.0]], "something else than token ids"),
        ([np.array([3.5])], "something else than token ids"),
        ([[True]], "something else than token ids"),
        ([b"ab"], "prompt 0 is a bytes"),
        ("text", "no tokenizer"),
    ],
)
def test_what_is_no_prompt(prompts, told):
    with pytest.raises(InputError, match=told):
        engine.run(make("mixtral"), prompts, **DEVICE)


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"max_tokens": 5}, "max_tokens: unknown argument; did you mean max_new_tokens"),
        ({"micro_batch": 5}, "micro_batch: unknown argument; did you mean micro_batch_size"),
        ({"max_new_tokens": "5"}, "max_new_tokens: '5' is not allowed"),
        ({"max_new_tokens": 2.5}, "max_new_tokens: 2.5"),
        ({"max_new_tokens": True}, "max_new_tokens: True"),
        ({"micro_batch_size": "2"}, "'2' is not allowed"),
        ({"seed": -(2**63) - 1}, "seed: -9223372036854775809"),
        ({"seed": "x"}, "seed: 'x'"),
        ({"temperature": -1.0}, "temperature: -1.0"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"temperature": "hot"}, "temperature: 'hot'"),
        ({"top_p": 2}, "top_p: 2 is not allowed; give a number from 0 to 1"),
        ({"top_k": -1}, "top_k: -1"),
        ({"top_k": 2.5}, "top_k: 2.5"),
        ({"repetition_penalty": 0}, "repetition_penalty: 0"),
        ({"do_sample": "yes"}, "do_sample: 'yes'"),
        ({"stop_strings": "a"}, "stop_strings: they need a tokenizer"),
        ({"eos_token_id": "end"}, "eos_token_id: 'end' is no token id"),
        ({"schedule": 5}, "schedule: a int is no schedule"),
        ({"policy": {"batch_size": 2, "micro_batch": 1}}, "did you mean micro_batch_size"),
        ({"policy": "all"}, "policy: a str is no policy"),
        ({"device": torch.device("cpu")}, "device"),
        ({"generation_config": {"do_sample": True}}, "generation_config: a dict is no GenerationConfig"),
        ({"generation_config": GenerationConfig(num_beams=3)}, "num_beams: 3 asks for beam search"),
    ],
)
@pytest.mark.parametrize("call", [engine.run, engine.stream])
def test_arguments_that_are_refused(call, kwargs, told):
    with pytest.raises(InputError, match=told) as caught:
        call(make("mixtral"), PROMPTS, **{**DEVICE, **kwargs})
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_a_second_model_is_refused_without_its_whole_text():
    with pytest.raises(InputError, match="assistant_model: a MixtralForCausalLM asks for a second model") as caught:
        engine.run(make("mixtral"), PROMPTS, assistant_model=make("mixtral"), **DEVICE)
    assert len(str(caught.value)) < 120


def test_zero_is_greedy_and_a_policy_may_be_a_table(expected):
    found = engine.run(
        make("mixtral"),
        PROMPTS[:2],
        policy={"micro_batch_size": 1, "num_micro_batches": 2},
        do_sample=True,
        temperature=0.0,
        top_p=np.float32(1),
        pad_token_id=5,
        **DEVICE,
    )
    assert found.sequences == expected


def test_a_generation_config_is_read_as_the_models_own():
    model, whole = make("mixtral"), reference(make("mixtral"), PROMPTS, 1, 8)
    sampling = GenerationConfig(do_sample=True, temperature=1.3, pad_token_id=0, max_new_tokens=8)
    end = next(token for token in whole[0][1:] if token not in whole[1])
    options = {"micro_batch_size": 3, "device": "emulated"}
    drawn = [engine.run(model, PROMPTS, seed=3, generation_config=sampling, **options).sequences for _ in range(2)]
    assert drawn[0] == drawn[1] == reference(model, PROMPTS, 1, 8, seed=3, do_sample=True, temperature=1.3)
    ended = engine.run(
        model, PROMPTS, max_new_tokens=8, generation_config=GenerationConfig(eos_token_id=end), **options
    )
    assert ended.sequences == engine.run(model, PROMPTS, max_new_tokens=8, eos_token_id=end, **options).sequences
    assert ended.sequences[0] == whole[0][: whole[0].index(end) + 1]


# the model -----------------------------------------------------------------------------------------------------------


def test_one_model_has_one_run_at_a_time(expected):
    model = make("mixtral")
    with pytest.raises(InputError, match="in use by another run"):
        engine.run(model, PROMPTS, on_batch=lambda _: engine.run(model, PROMPTS, **DEVICE), **DEVICE)
    stream = engine.stream(model, PROMPTS, **DEVICE)
    with pytest.raises(InputError, match="in use by another run"):
        engine.run(model, PROMPTS, **DEVICE)
    stream.close()
    assert engine.run(model, PROMPTS[:2], **DEVICE).sequences == expected


def test_of_two_threads_one_runs_the_model_at_a_time(expected):
    whole, refused, both = [], [], threading.Barrier(2)

    def go():
        both.wait()
        try:
            whole.append(engine.run(make("mixtral"), PROMPTS[:2], **DEVICE).sequences)
        except InputError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=go) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(whole) + len(refused) == 2
    assert whole
    assert all(one == expected for one in whole)
    assert all("in use by another run" in one for one in refused)


@pytest.mark.parametrize("how", ["layers", "model", "wrapped"])
def test_a_compiled_model_runs_as_it_was_written(how, expected):
    model = AutoModelForCausalLM.from_config(make("mixtral").config).eval()
    model.load_state_dict(make("mixtral").state_dict())
    model.generation_config = make("mixtral").generation_config

    compiled = []

    def never(*_):
        compiled.append(1)
        raise RuntimeError("it was compiled")

    if how == "layers":
        for layer in model.model.layers:
            layer.compile(backend=never)
    elif how == "model":
        model.compile(backend=never)
    given = torch.compile(model, backend=never) if how == "wrapped" else model
    assert engine.run(given, PROMPTS[:2], **DEVICE).sequences == expected
    assert not compiled
    with pytest.raises(Exception, match="it was compiled"):
        given(torch.tensor([[3, 4]]))
    assert compiled, "it is what it was"


def test_a_part_that_is_compiled_is_refused():
    model = AutoModelForCausalLM.from_config(make("mixtral").config).eval()
    model.model.layers[1] = torch.compile(model.model.layers[1])
    with pytest.raises(InputError, match=r"model.layers.1 was compiled by torch.compile: give the model uncompiled"):
        engine.run(model, PROMPTS, **DEVICE)


def test_weights_that_are_not_in_host_memory_are_refused():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(make("mixtral").config)
    with pytest.raises(InputError, match="is on meta, but the engine places a model itself"):
        engine.run(model, PROMPTS, **DEVICE)


def test_what_is_no_model_is_refused():
    for given, told in ((torch.nn.Linear(2, 2), "a Linear is no model"), (None, "a NoneType is no model")):
        with pytest.raises(InputError, match=told):
            engine.run(given, PROMPTS, **DEVICE)


# callbacks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(3), ValueError("mine")], ids=lambda one: type(one).__name__
)
@pytest.mark.parametrize("where", ["progress", "on_batch", "on_result"])
def test_what_a_callback_raises_comes_out_as_it_is(where, error):
    def raises(_):
        raise error

    def go(**options):
        if where == "on_result":
            list(engine.stream(make("mixtral"), PROMPTS, **options))
        else:
            engine.run(make("mixtral"), PROMPTS, policy=Policy(4, 2), **options)

    threads = threading.active_count()
    with EmulatedDevice(None, None, 1 << 30) as device:
        with pytest.raises(type(error)) as caught:
            go(max_new_tokens=NEW, device=device, **{where: raises})
        assert caught.value is error
        assert device.usage.current_bytes == 0
    assert threading.active_count() == threads


# families ------------------------------------------------------------------------------------------------------------

LATENT = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 1, "topk_group": 1,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_shared_experts": 1,
    "index_topk": 6, "index_head_dim": 16, "index_n_heads": 2,
}  # fmt: skip
HYBRID = {
    "layers_block_type": ["mamba", "moe", "attention"], "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 24, "num_key_value_heads": 2,
    "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 16, "n_groups": 2, "chunk_size": 16,
}  # fmt: skip
SPARSE = {"deepseek_v32": LATENT, "glm_moe_dsa": LATENT, "nemotron_h": HYBRID}
"""Attention that an indexer makes sparse, and experts that a layer calls its mixer."""


def random_model(family):
    """Small, with wide weights, so that tokens vary."""
    base = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
    tokens = {"eos_token_id": None, "pad_token_id": 0, "bos_token_id": 1}
    torch.manual_seed(0)
    try:
        config = AutoConfig.for_model(family, num_attention_heads=4, **base, **SPARSE[family], **tokens)
    except ValueError:
        pytest.skip(f"this transformers has no {family}")
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


@pytest.mark.parametrize("family", sorted(REFUSED_FAMILIES))
def test_families_that_are_refused_could_not_be_run(family, monkeypatch):
    """Each for the reason that is told, and none that could be."""
    try:
        config = AutoConfig.for_model(family)
    except ValueError:
        pytest.skip(f"this transformers has no {family}")
    with pytest.raises(InputError, match=re.escape(REFUSED_FAMILIES[family])):
        check_kind(config)
    monkeypatch.setattr("engine.generation.asked.given.REFUSED_FAMILIES", {})
    with pytest.raises(InputError, match=r"layers were not found|keeps a cache of type"):
        check_kind(config)


@pytest.mark.parametrize("family", SPARSE)
def test_a_family_of_another_kind_has_the_tokens_of_generate(family):
    """Of prompts of one length: what an indexer finds alike it may choose otherwise beside padding."""
    model, prompts = random_model(family), [PROMPTS[4], PROMPTS[4][::-1], PROMPTS[1], PROMPTS[1][::-1]]
    expected = reference(model, prompts, 2, 5)
    assert engine.run(model, prompts, micro_batch_size=2, max_new_tokens=5, device="emulated").sequences == expected
    hybrid = engine.run(model, prompts, "hybrid", micro_batch_size=2, max_new_tokens=5, device="emulated")
    assert hybrid.sequences == expected
