"""Requests that ask for different things share micro-batches, and each has what it would have alone."""

import pytest
import torch
from engine_models import make, make_prompts

import engine
from engine.generation import find_tokenizer
from engine.running.demo import make_model
from sim.problem import Policy
from traces.errors import InputError

NEW = 8
EOS = 24
PROMPTS = make_prompts(5, 9, 3, 7, 12, 4, 6, 5)
DIFFERENT = [
    {},
    {"do_sample": True, "temperature": 1.5},
    {"do_sample": True, "temperature": 0.7, "top_p": 0.8},
    {"do_sample": True, "top_k": 5},
    {"repetition_penalty": 1.7},
    {"do_sample": True, "temperature": 1.5},
    {"no_repeat_ngram_size": 1},
    {"do_sample": True, "min_p": 0.1, "suppress_tokens": [5, 6]},
]
LIMITS = [8, 3, 8, 1, 5, 12, 7, 2]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_model(path, hidden_size=32, num_layers=1)
    return find_tokenizer(path)


def alone(model, prompt, new, seed=None, **options):
    """What plain `generate()` gives for one request by itself, until an end token."""
    if seed is not None:
        torch.manual_seed(seed)
    out = model.generate(torch.tensor([prompt]), max_new_tokens=new, **options)[0, len(prompt) :].tolist()
    eos = model.generation_config.eos_token_id
    return out[: out.index(eos) + 1] if eos in out else out


def different():
    """Requests of which no two ask for the same, and what each has alone; the run's seed is 11."""
    model, seeds = make("mixtral", eos=EOS), [None, 3, None, None, None, 3, None, 9]
    asked, expected = [], []
    for i, (prompt, options, limit, seed) in enumerate(zip(PROMPTS, DIFFERENT, LIMITS, seeds, strict=True)):
        asked.append(engine.GenerationRequest(prompt, limit, options, seed))
        expected.append(alone(model, prompt, limit, 11 + i if seed is None else seed, **options))
    return model, asked, expected


@pytest.mark.parametrize("size", [1, 3, 8])
def test_each_has_what_it_has_alone_whatever_its_company(size):
    model, asked, expected = different()
    result = engine.run(model, asked, micro_batch_size=size, max_new_tokens=4, seed=11, device="emulated")
    assert result.sequences == expected
    assert result.stats.generated_tokens == sum(map(len, expected))


def test_padding_is_no_part_of_a_prompt():
    """It would be what a request repeats most."""
    model, likes = make("mixtral"), {"repetition_penalty": 0.05}
    found = engine.run(model, PROMPTS, micro_batch_size=8, max_new_tokens=NEW, device="emulated", **likes)
    assert found.sequences == [alone(model, prompt, NEW, **likes) for prompt in PROMPTS]


def test_in_a_stream_too():
    model, asked, expected = different()
    stream = engine.stream(model, asked, micro_batch_size=3, max_new_tokens=4, seed=11, device="emulated")
    assert {one.number: one.sequence for one in stream} == dict(enumerate(expected))


def test_the_run_asks_for_something_and_a_request_for_something_else():
    model, asked = make("mixtral"), [{}, {"temperature": 0}, {"do_sample": False}, {"temperature": 2.0}]
    requests = [engine.GenerationRequest(PROMPTS[0], None, options) for options in asked]
    run = {"do_sample": True, "temperature": 1.2}
    found = engine.run(model, requests, micro_batch_size=4, max_new_tokens=NEW, seed=1, device="emulated", **run)
    greedy = alone(model, PROMPTS[0], NEW)
    assert found.sequences[1] == found.sequences[2] == greedy
    assert found.sequences[0] == alone(model, PROMPTS[0], NEW, 1, **run)
    assert found.sequences[3] == alone(model, PROMPTS[0], NEW, 4, do_sample=True, temperature=2.0)


def test_batches_do_not_change_what_is_drawn():
    model, sampling = make("qwen3_moe"), {"do_sample": True, "temperature": 1.4, "seed": 2}
    whole = engine.run(model, PROMPTS, micro_batch_size=4, max_new_tokens=NEW, device="emulated", **sampling)
    parts = engine.run(model, PROMPTS, policy=Policy(3, 2), max_new_tokens=NEW, device="emulated", **sampling)
    assert whole.sequences == parts.sequences
    assert len(set(map(tuple, whole.sequences))) == len(PROMPTS)
    same = engine.run(model, [PROMPTS[0]] * 6, micro_batch_size=2, max_new_tokens=NEW, device="emulated", **sampling)
    assert len(set(map(tuple, same.sequences))) == 6, "requests with one prompt draw each for themselves"


def test_similar_lengths_share_a_micro_batch_and_results_are_in_the_order_of_the_input():
    model, prompts = make("mixtral"), make_prompts(3, 30, 4, 31, 5, 29)
    result = engine.run(model, prompts, micro_batch_size=3, max_new_tokens=2, device="emulated")
    assert result.sequences == [alone(model, prompt, 2) for prompt in prompts]
    assert result.trace.metadata["prompt_tokens"] == [31, 30, 29, 5, 4, 3], "as they were cut into two micro-batches"


def test_stop_strings_are_each_requests_own(tokenizer):
    model, prompts = make("mixtral", vocab_size=len(tokenizer)), make_prompts(5, 9, 3, 7)
    free = [alone(model, prompt, NEW) for prompt in prompts]
    stops = [next(text for text in map(tokenizer.decode, row[2:]) if text.strip("\ufffd")) for row in free]
    asked = [
        engine.GenerationRequest(prompts[0], None, {"stop_strings": stops[0]}),
        engine.GenerationRequest(prompts[1]),
        engine.GenerationRequest(prompts[2], None, {"stop_strings": ["never there", stops[2]]}),
        engine.GenerationRequest(prompts[3], 4, {"stop_strings": stops[3], "do_sample": True}, 5),
    ]
    expected = [
        alone(model, one.prompt, one.max_new_tokens or NEW, one.seed, tokenizer=tokenizer, **one.options)
        for one in asked
    ]
    assert len(expected[0]) < NEW == len(expected[1])
    options = {"max_new_tokens": NEW, "tokenizer": tokenizer, "device": "emulated"}
    assert engine.run(model, asked, micro_batch_size=4, **options).sequences == expected
    stream = engine.stream(model, asked, micro_batch_size=4, **options)
    assert {one.number: one.sequence for one in stream} == dict(enumerate(expected))


def test_logprobs_are_the_models_own():
    model = make("mixtral")
    asked = [
        engine.GenerationRequest(PROMPTS[1], 4, {"do_sample": True, "temperature": 0.5}, 3, top_logprobs=2),
        engine.GenerationRequest(PROMPTS[0]),
        engine.GenerationRequest(PROMPTS[2], 3, top_logprobs=0),
    ]
    result = engine.run(model, asked, micro_batch_size=3, max_new_tokens=NEW, device="emulated")
    assert [None if one is None else len(one) for one in result.logprobs] == [4, None, 3]
    for request, sequence, logprobs in zip(asked, result.sequences, result.logprobs, strict=True):
        if logprobs is None:
            continue
        whole = torch.tensor([[*request.prompt, *sequence]])
        with torch.no_grad():
            every = model(whole).logits[0, len(request.prompt) - 1 : -1].log_softmax(-1)
        for at, one in enumerate(logprobs):
            assert one.token == sequence[at]
            assert one.logprob == pytest.approx(every[at, one.token].item(), abs=1e-4)
            best = every[at].topk(request.top_logprobs)
            assert [token for token, _ in one.likeliest] == best.indices.tolist()
    stream = engine.stream(model, asked, micro_batch_size=3, max_new_tokens=NEW, device="emulated")
    for output in stream:
        expected = result.logprobs[output.number] or []
        assert [one.token for one in output.logprobs or []] == [one.token for one in expected]
        assert [one.logprob for one in output.logprobs or []] == pytest.approx([one.logprob for one in expected])


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (engine.GenerationRequest([3], options={"num_beams": 2}), "prompt 1: num_beams: 2 asks for beam search"),
        (engine.GenerationRequest([3], options={"temprature": 2}), "temprature: not known.*did you mean temperature"),
        (engine.GenerationRequest([3], options={"top_p": 1.5}), "prompt 1: top_p: 1.5 .* from 0 to 1"),
        (engine.GenerationRequest([3], options={"stop_strings": "a"}), "they need a tokenizer"),
        (engine.GenerationRequest([3], seed=2**64), "prompt 1: seed: 1844"),
        (engine.GenerationRequest([3], 0), "prompt 1: max_new_tokens: 0"),
        (engine.GenerationRequest([3], top_logprobs=-1), "top_logprobs: -1"),
    ],
)
def test_what_a_request_may_not_ask_for(request_, told):
    with pytest.raises(InputError, match=told):
        engine.run(make("mixtral"), [PROMPTS[0], request_], max_new_tokens=2, device="emulated")
    outputs = list(engine.stream(make("mixtral"), [PROMPTS[0], request_], max_new_tokens=2, device="emulated"))
    assert [bool(one.error) for one in sorted(outputs, key=lambda one: one.number)] == [False, True]
