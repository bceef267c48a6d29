"""What `record_routing` writes: the experts that the model's own router chose, without padding and ended requests."""

import json

import pytest
import torch
from engine_models import FAMILIES, PROMPTS, make
from schemas import faults

import engine
from engine.calibration import described
from engine.model import Anatomy, can_split
from sim.problem import Histogram, Policy, Routing
from traces.errors import InputError

NEW = 5


def told(family):
    """Whether the experts of a family are told which tokens use them."""
    anatomy = Anatomy.of(make(family))
    return all(can_split(experts, anatomy.num_experts) for experts in anatomy.experts if experts)


TOLD = [family for family in FAMILIES if told(family)]


def by_itself(model, sequences):
    """Used experts by layer and phase, of each request alone through plain forward passes, with no padding."""
    anatomy = Anatomy.of(model)
    counts = {}
    for prompt, generated in zip(PROMPTS, sequences, strict=True):
        seen, hooks = {}, []
        for layer, experts in enumerate(anatomy.experts):
            if experts:
                kept = seen.setdefault(layer, [])
                hook = experts[0].owner.register_forward_pre_hook(lambda _, args, kept=kept: kept.append(args[1]))
                hooks.append(hook)
        with torch.no_grad():
            model(torch.tensor([prompt + generated[:-1]]))
        for hook in hooks:
            hook.remove()
        for layer, (index,) in seen.items():
            for phase, part in (("prefill", index[: len(prompt)]), ("decode", index[len(prompt) :])):
                used = torch.bincount(part.flatten(), minlength=anatomy.num_experts)
                counts[layer, phase] = counts.get((layer, phase), 0) + used
    return {key: tuple(used.tolist()) for key, used in counts.items()}


@pytest.mark.parametrize("family", TOLD)
def test_it_is_what_each_request_uses_by_itself(family, tmp_path):
    model = make(family)
    size = 1 if family == "minimax" else 2  # the state of its linear attention is not the same behind padding
    result = engine.run(
        model, PROMPTS, micro_batch_size=size, max_new_tokens=NEW, device="emulated", record_routing=tmp_path / "r.json"
    )
    recorded = Histogram.read(tmp_path / "r.json")
    assert faults("routing", json.loads((tmp_path / "r.json").read_text())) == []
    found = {
        (at, phase): getattr(layer, phase).used
        for at, layer in enumerate(recorded.layers)
        if layer
        for phase in ("prefill", "decode")
    }
    assert found == by_itself(model, result.sequences)
    measured = next(layer for layer in recorded.layers if layer)
    assert measured.prefill.tokens == sum(map(len, PROMPTS))
    assert measured.decode.tokens == len(PROMPTS) * (NEW - 1)


def decoded(sequences):
    """Tokens that go through the layers on their own: all but the last of each sequence."""
    return sum(len(sequence) - 1 for sequence in sequences)


@pytest.mark.parametrize("stopped", ["by an end token", "by a criterion"])
def test_ended_requests_are_not_counted(stopped, tmp_path):
    """Some requests of a micro-batch end before the others, in several batches."""
    model, settings = make("mixtral"), {"policy": Policy(6, 3), "max_new_tokens": 12, "device": "emulated"}
    sequences = engine.run(model, PROMPTS, **settings).sequences
    end, never = sequences[0][3], 2
    assert not any({0, never} & set(sequence) for sequence in sequences)
    how = {"eos_token_id": end}
    if stopped == "by a criterion":  # which the library heeds beside an end token
        how = {"eos_token_id": never, "stopping_criteria": [lambda ids, scores: ids[:, -1] == end]}
    result = engine.run(model, PROMPTS, **settings, record_routing=tmp_path / "r.json", **how)
    ended = sum(len(sequence) < 12 for sequence in result.sequences)
    assert ended
    more = ended if stopped == "by a criterion" else 0  # what made the criterion hold is seen as an end one step later
    for layer in Histogram.read(tmp_path / "r.json").layers:
        assert layer.decode.tokens <= decoded(result.sequences) + more
        assert layer.decode.tokens >= decoded(result.sequences)
        assert layer.prefill.tokens == sum(map(len, PROMPTS))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_it_does_not_matter_where_experts_are(share, tmp_path):
    paths = tmp_path / "all.json", tmp_path / "shared.json"
    for path, policy in zip(paths, (Policy(7, 2), Policy(7, 4, experts_on_device=share)), strict=True):
        engine.run(
            make("qwen3_moe"), PROMPTS, policy=policy, max_new_tokens=NEW, device="emulated", record_routing=path
        )
    assert paths[0].read_text() == paths[1].read_text()


def test_the_planner_reads_it(tmp_path):
    model = make("olmoe")
    engine.run(model, PROMPTS, max_new_tokens=NEW, device="emulated", record_routing=tmp_path / "r.json")
    routing = Routing.parse(str(tmp_path / "r.json"))
    routing.check_fits(described(model))
    (layer,) = {routing.popularity(0, one).sum() for one in described(model).layers}
    assert layer == pytest.approx(2)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(TOLD)))
def test_a_family_that_does_not_tell_is_refused_before_anything_runs(family, tmp_path):
    with pytest.raises(InputError, match=r"^record_routing: \w+ does not tell its experts .*: leave it out$"):
        engine.run(make(family), PROMPTS, max_new_tokens=NEW, device="emulated", record_routing=tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


def test_nothing_of_it_stays_on_the_model(tmp_path):
    model = make("mixtral")
    engine.run(model, PROMPTS, max_new_tokens=NEW, device="emulated", record_routing=tmp_path / "r.json")
    assert [name for name, module in model.named_modules() if module._forward_pre_hooks] == []
