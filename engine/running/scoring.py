"""An offloaded model for lm-evaluation-harness (EleutherAI): `--model cgopipe` of `cgopipe-lm-eval` (harness.py).

Scores are those of the harness's own `--model hf`, to what the order of additions changes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from engine.generation import GenerationRequest, find_tokenizer, load_model, run
from sim.problem import Policy, read_policy_file
from sim.schedule import by_name
from traces.errors import InputError

USUAL_LENGTH = 2048
"""Tokens of a request where the model does not say how many it takes."""

USUAL_REQUESTS = 16
"""Of a batch."""


class OffloadedLM(TemplateLM):  # type: ignore[misc, unused-ignore]
    """A model that the engine runs. Arguments are those of `engine.run`, and the harness's usual ones.

    `policy` is a file that `plan --out` wrote. Raises InputError for what cannot be run.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        batch_size: int | str | None = None,
        max_length: int | None = None,
        schedule: str = "cgopipe",
        policy: str | None = None,
        micro_batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        max_batch_size: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        if others:
            raise InputError(f"model_args: {', '.join(sorted(others))} is not known; known are {', '.join(KNOWN)}")
        self.tokenizer: Any = find_tokenizer(pretrained)
        if self.tokenizer is None:
            raise InputError(f"{pretrained}: has no tokenizer, which tasks need")
        self._model = load_model(pretrained, dtype=dtype)
        self._schedule, self._policy = by_name(schedule), None if policy is None else _policy_of(policy, schedule)
        self._micro_batch_size = micro_batch_size
        self._device = "auto" if device in (None, "cuda:0") else device
        automatic = batch_size in (None, "auto")
        self.batch_size = USUAL_REQUESTS if automatic else int(batch_size or USUAL_REQUESTS)
        self._max_length, self._add_bos_token, self._prefix = max_length, add_bos_token, prefix_token_id
        self.max_gen_toks = 256

    @property
    def max_length(self) -> int:
        """Tokens of a request; one more is scored and one more generated, for which the model has positions."""
        positions = getattr(self._model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return int(self._max_length or (positions - 2 if positions else USUAL_LENGTH))

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        begin = self.tokenizer.bos_token_id
        own = begin if begin is not None else self.tokenizer.eos_token_id
        return int(own if self._prefix is None else self._prefix)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model's prompt."""
        how = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
        return str(
            self.tokenizer.apply_chat_template(chat_history, continue_final_message=not add_generation_prompt, **how)
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text, which may begin with the token that begins texts."""
        special = self._add_bos_token if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
            special = False
        return list(self.tokenizer.encode(string, **({} if special is None else {"add_special_tokens": special})))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Of each continuation behind its context: its log-probability, and whether it is the likeliest."""
        asked = []
        for _text, context, continuation in requests:
            ids = [*context, *continuation][-(self.max_length + 1) :]
            asked.append(GenerationRequest(ids, max_new_tokens=1, prompt_logprobs=1))
        found = []
        for (_text, _context, continuation), told in zip(requests, self._run(asked).prompt_logprobs, strict=True):
            own = (told or [])[-len(continuation) :]
            likeliest = all(one.token == one.likeliest[0][0] for one in own)
            found.append((sum(one.logprob for one in own), likeliest))
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in pieces that fit the model."""
        windows = [self._windows(one.args[0]) for one in requests]
        flat = [(None, context, continuation) for of_one in windows for context, continuation in of_one]
        scores = iter(self._loglikelihood_tokens(flat, disable_tqdm=disable_tqdm))
        return [sum(next(scores)[0] for _ in of_one) for of_one in windows]

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        tokens = self.tok_encode(text)
        found = get_rolling_token_windows(
            token_list=tokens, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
        )
        return [make_disjoint_window(one) for one in found]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to its stop strings."""
        asked, stops = [], []
        end = self.tokenizer.decode([self.eot_token_id], skip_special_tokens=False)
        for context, given in (one.args for one in requests):
            kwargs = normalize_gen_kwargs(given, self.max_gen_toks)
            until = handle_stop_sequences(kwargs.pop("until", None), eos=end)
            most = kwargs.pop("max_gen_toks")
            room = self.max_length - most
            if room <= 0:
                raise InputError(
                    f"max_gen_toks: {most} leaves no room for a prompt in {self.max_length} tokens: give less"
                )
            stops.append(until)
            options = {**_choice(kwargs), "stop_strings": [one for one in until if one]}
            asked.append(GenerationRequest(self.tok_encode(context)[-room:], most, options))
        sequences = self._run(asked).sequences
        texts = [self.tokenizer.decode(one, skip_special_tokens=True) for one in sequences]
        return [postprocess_generated_text(text, until, None) for text, until in zip(texts, stops, strict=True)]

    def _run(self, asked: list[GenerationRequest]) -> Any:
        """All of them in batches: the engine orders those of a batch by length itself."""
        policy = self._policy or Policy.usual(
            self._schedule, self.batch_size, self._micro_batch_size or max(1, self.batch_size // 4)
        )
        return run(self._model, asked, self._schedule, policy, device=self._device, tokenizer=self.tokenizer)


KNOWN = ("pretrained", "max_length", "schedule", "policy", "micro_batch_size", "device", "dtype", "add_bos_token")
"""What a user may give as `--model_args`."""


def _policy_of(path: str, schedule: str) -> Policy:
    meant_for, fields = read_policy_file(Path(path))
    if meant_for not in (None, schedule):
        raise InputError(f"policy {path} is for schedule {meant_for}: give schedule={meant_for}")
    return Policy.from_dict(fields, by_name(schedule))


def _choice(kwargs: dict[str, Any]) -> dict[str, Any]:
    """How tokens are chosen: the likeliest ones unless a task asks for draws."""
    if not kwargs.pop("do_sample", False):
        kwargs.pop("temperature", None)
        return {"do_sample": False, **kwargs}
    return {"do_sample": True, **kwargs}
