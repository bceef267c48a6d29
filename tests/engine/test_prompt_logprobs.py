"""Log-probabilities of prompts: those of the model alone, whatever the micro-batch, the schedule or the company."""

import pytest
import torch
from engine_models import make, make_prompts

from engine import GenerationRequest, run, stream
from traces.errors import InputError

FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")
LENGTHS = (9, 4, 1, 12, 7)


def alone(model, ids):
    """Logarithms of the probabilities of all words after each position but the last."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("schedule", ["cgopipe", "hybrid"])
def test_are_those_of_the_model_alone(family, schedule):
    model, prompts = make(family), make_prompts(*LENGTHS)
    asked = [GenerationRequest(ids, prompt_logprobs=2) for ids in prompts]
    found = run(model, asked, schedule, micro_batch_size=2, max_new_tokens=2, device="emulated")
    for ids, told in zip(prompts, found.prompt_logprobs, strict=True):
        expected = alone(model, ids)
        assert [one.token for one in told] == ids[1:]
        values = torch.tensor([one.logprob for one in told])
        torch.testing.assert_close(values, expected.gather(1, torch.tensor([ids[1:]]).T)[:, 0], atol=1e-4, rtol=1e-4)
        for one, row in zip(told, expected, strict=True):
            best = row.topk(2)
            assert [value for _, value in one.likeliest] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_only_who_asks_has_them_and_nobody_has_other_tokens():
    model, prompts = make("mixtral"), make_prompts(*LENGTHS)
    plain = run(model, prompts, micro_batch_size=3, max_new_tokens=4, device="emulated")
    asked = [GenerationRequest(ids, prompt_logprobs=0 if at % 2 else None) for at, ids in enumerate(prompts)]
    found = run(model, asked, micro_batch_size=3, max_new_tokens=4, device="emulated")
    assert found.sequences == plain.sequences
    assert [one is not None for one in found.prompt_logprobs] == [False, True, False, True, False]
    assert plain.prompt_logprobs == [None] * len(prompts)
    assert all(one.likeliest == [] for told in found.prompt_logprobs if told for one in told)
    scores = model(torch.tensor([prompts[0]])).logits
    assert scores.shape[1] == len(prompts[0])  # nothing of ours is left in the model


def test_longer_prompts_than_are_worked_on_at_a_time(monkeypatch):
    model, (ids,) = make("mixtral"), make_prompts(12)
    (whole,) = run(model, [GenerationRequest(ids, prompt_logprobs=1)], max_new_tokens=1).prompt_logprobs
    monkeypatch.setattr("engine.generation.rows.prompt_scores.AT_ONCE", 5)
    (pieces,) = run(model, [GenerationRequest(ids, prompt_logprobs=1)], max_new_tokens=1).prompt_logprobs
    assert [one.token for one in pieces] == [one.token for one in whole] == ids[1:]
    assert [one.logprob for one in pieces] == pytest.approx([one.logprob for one in whole])


def test_a_stream_refuses_them():
    with pytest.raises(InputError, match="prompt_logprobs: a stream keeps no scores of prompts"):
        stream(make("mixtral"), [GenerationRequest([1, 2], prompt_logprobs=1)])


def test_a_number_that_is_none_is_refused():
    with pytest.raises(InputError, match="prompt 0: prompt_logprobs"):
        run(make("mixtral"), [GenerationRequest([1, 2], prompt_logprobs=-1)], max_new_tokens=1)
