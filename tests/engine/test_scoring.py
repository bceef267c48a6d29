"""lm-evaluation-harness scores an offloaded model as it scores the model itself."""

from types import SimpleNamespace

import pytest
import torch
from engine_models import make

from traces.errors import InputError

pytest.importorskip("lm_eval", reason="lm_eval is not installed (extra eval)")
WORDS = "abcdefghijklmnopqrstuvwxyz ,.!?"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small random model with a tokenizer of single bytes, as a folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    make("mixtral", vocab_size=258).to(torch.float32).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = Tokenizer(models.BPE(vocab={one: at for at, one in enumerate(["<unk>", "</s>", *alphabet])}, merges=[]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="</s>", unk_token="<unk>", pad_token="</s>")
    made.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def both(checkpoint):
    from lm_eval.models.huggingface import HFLM

    from engine.running.scoring import OffloadedLM

    theirs = HFLM(pretrained=checkpoint, device="cpu", dtype="float32", batch_size=4, max_length=24)
    ours = OffloadedLM(checkpoint, dtype="float32", batch_size=4, max_length=24, device="emulated", micro_batch_size=2)
    return theirs, ours


def requests(*args):
    return [SimpleNamespace(args=one, task_name="") for one in args]


def text(first, count, step=7):
    return "".join(WORDS[(first + step * at) % len(WORDS)] for at in range(count))


def test_of_continuations(both):
    pairs = [(text(3, 5), " " + text(1, 2)), ("", text(4, 3)), (text(9, 30), " " + text(2, 6)), (text(5, 1), " w")]
    theirs, ours = (one.loglikelihood(requests(*pairs)) for one in both)
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=1e-3)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_a_continuation_that_the_model_would_choose_is_greedy(both):
    theirs, ours = both
    letters = {ours.tok_encode(one)[0]: one for one in WORDS}
    with torch.no_grad():
        contexts = (text(first, count) for first in range(30) for count in (3, 4, 5))
        likeliest = (
            (one, int(theirs.model(torch.tensor([ours.tok_encode(one)])).logits[0, -1].argmax())) for one in contexts
        )
        context, letter = next((one, letters[token]) for one, token in likeliest if token in letters)
    other = next(one for one in WORDS if one not in (letter, " "))
    for one in both:
        assert [said for _, said in one.loglikelihood(requests((context, letter), (context, other)))] == [True, False]


def test_of_whole_texts_longer_than_the_model_takes(both):
    texts = [(text(1, 60),), (text(2, 3),)]
    theirs, ours = (one.loglikelihood_rolling(requests(*texts)) for one in both)
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_of_what_it_generates(both):
    asked = [
        (text(3, 5), {"until": ["?"], "max_gen_toks": 6}),
        (text(8, 40), {"until": ["?"], "max_gen_toks": 6}),
        (text(6, 2), {"until": ["?"], "max_gen_toks": 6}),
    ]
    theirs, ours = (one.generate_until(requests(*asked)) for one in both)
    assert ours == theirs


def test_the_harness_knows_it_by_name(monkeypatch):
    from importlib.metadata import EntryPoint

    from lm_eval.api.registry import get_model

    from engine.running import harness
    from engine.running.scoring import OffloadedLM

    offered = [EntryPoint("cgopipe", "engine.running.scoring:OffloadedLM", harness.GROUP)]
    monkeypatch.setattr(harness, "entry_points", lambda group: offered if group == harness.GROUP else [])
    harness.register_models()
    assert get_model("cgopipe") is OffloadedLM


def test_arguments_that_nobody_reads_are_refused(checkpoint):
    from engine.running.scoring import OffloadedLM

    with pytest.raises(InputError, match="model_args: parallelize is not known; known are pretrained"):
        OffloadedLM(checkpoint, parallelize=True)


def test_no_room_for_a_prompt_is_said(both):
    with pytest.raises(InputError, match="max_gen_toks: 24 leaves no room for a prompt in 24 tokens"):
        both[1].generate_until(requests((text(1, 2), {"until": [], "max_gen_toks": 24})))
