"""A file of requests through the engine, results appended as they come: batch after batch, or in a stream."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from engine.device import Device, DeviceAsked
from engine.generation.asked import GenerationRequest, check_seed
from engine.generation.files.answers import Answer, error_line, output_line
from engine.generation.files.made_by import MadeBy, seed_in
from engine.generation.files.requests import Request, read_requests
from engine.generation.files.results import Results, UnorderedResults
from engine.generation.generate import BatchDone, RunResult, run
from engine.generation.rows import TokenLogprobs, chooses
from engine.generation.streaming import OutputStream, RequestOutput, stream
from engine.model import end_tokens
from sim.problem import Policy
from sim.schedule import Schedule
from traces.errors import InputError

CHOICES_APART = 1 << 32
"""By so much the seeds of two choices of one request differ."""


class RequestFile:
    """The requests of one file and the results that it already has; the results are locked until it is closed."""

    def __init__(
        self, source: Path, target: Path, model_name: str, resume: bool, *, in_any_order: bool = False
    ) -> None:
        """`in_any_order`: results come as requests end, for `run_stream`, each with the number of its line."""
        if target.exists() and source.exists() and target.samefile(source):
            raise InputError(f"output {target}: it is the input; give another name")
        self._model_name = model_name
        self._requests = read_requests(source, own_names(model_name))
        self._numbered = in_any_order
        self._results = (UnorderedResults if in_any_order else Results)(target, self._requests, resume)
        self.resumed = self._results.done  # lines that had results already
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._made_by = MadeBy(model_name, {})
        self._max_new_tokens = 1
        self._answers: dict[int, dict[int, Answer]] = {}
        self._units: list[tuple[Request, int]] = []

    def close(self) -> None:
        """Lets others write the results."""
        self._results.close()

    def prepare(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        model_config: Any,
        max_new_tokens: int,
        settings: Mapping[str, Any],
        seed: int | None,
        *,
        draws: bool,
    ) -> None:
        """Encodes what has no result yet, and checks all that can be checked without the model.

        `settings` are what results depend on beside the model; `draws`: whether requests draw where they do not say.
        Raises InputError if results that are there already were made with others.
        """
        self._tokenizer, self._max_new_tokens = tokenizer, max_new_tokens
        encoded = [one if self._results.has(one) else one.encoded(tokenizer) for one in self._requests]
        self._requests = [one.fitting(max_new_tokens, model_config) for one in encoded]
        draws = draws or any(one.asked.draws for one in self._requests)
        given = self._seed(seed) if draws else None
        self._made_by = MadeBy(self._model_name, {"max_new_tokens": max_new_tokens, **settings}, given)
        self._results.check_made_by(self._made_by)
        left = [one for one in self._requests if one.ids is not None and not self._results.has(one)]
        self._units = [(one, choice) for one in left for choice in range(one.asked.choices)]

    @property
    def prompt_tokens(self) -> list[int]:
        """The length of each prompt that is to be run, once for each of its choices."""
        return [len(one.ids or ()) for one, _ in self._units]

    @property
    def limits(self) -> list[int]:
        """The most tokens of each of them."""
        return [one.asked.max_tokens or self._max_new_tokens for one, _ in self._units]

    def chooses(self, model: PreTrainedModel, kwargs: Mapping[str, Any]) -> bool:
        """Whether tokens are drawn or scores changed for any of them; `kwargs` are the arguments of the run."""
        return chooses(model, kwargs, (one.asked for one, _ in self._units))

    @property
    def errors(self) -> list[str]:
        """Why lines were left out that have no result yet."""
        return [one.error for one in self._requests if one.error and not self._results.has(one)]

    @property
    def failed(self) -> int:
        """How many requests have an error instead of a result."""
        return self._results.failed

    @property
    def count(self) -> int:
        """How many requests there are."""
        return len(self._requests)

    def run_nothing(self) -> None:
        """Writes what is left to say where no request can be run."""
        if self._numbered:
            self._append_errors()
        else:
            self._append_complete()

    def run(
        self,
        model: PreTrainedModel,
        schedule: Schedule,
        policy: Policy,
        device: Device | DeviceAsked,
        progress: Callable[[int], None],
        *,
        by: Callable[..., RunResult] | None = None,
        **kwargs: Any,
    ) -> RunResult:
        """Runs what has no result yet, by another call than `run` if one is given.

        Raises InputError if results cannot be written.
        """

        def write(batch: BatchDone) -> None:
            parts = zip(batch.sequences, batch.logprobs, strict=True)
            for unit, (sequence, logprobs) in enumerate(parts, batch.first):
                self._note(model, unit, sequence, logprobs)
            self._append_complete()

        return (by or run)(
            model,
            self._asked(),
            schedule,
            policy,
            max_new_tokens=self._max_new_tokens,
            device=device,
            seed=self._made_by.seed,
            tokenizer=self._tokenizer,
            progress=progress,
            on_batch=write,
            **kwargs,
        )

    def run_stream(
        self,
        model: PreTrainedModel,
        schedule: Schedule,
        policy: Policy | None,
        device: Device,
        progress: Callable[[int], None],
        **kwargs: Any,
    ) -> OutputStream:
        """The same in a stream: a line as each request ends. `progress` is told of its tokens."""
        options = {"device": device, "tokenizer": self._tokenizer, "seed": self._made_by.seed, **kwargs}
        self._append_errors()
        asked = self._asked()
        with stream(model, asked, schedule, policy, max_new_tokens=self._max_new_tokens, **options) as outputs:
            try:
                self._write_all(model, outputs, progress)
            except KeyboardInterrupt:
                outputs.close()
                self._write_all(model, outputs, progress)  # what had ended by then
                raise
        return outputs

    def _seed(self, given: int | None) -> int:
        """That of the run: what is given, else what results are there with, else a new one."""
        if given is not None:
            return check_seed("seed", given)
        before = seed_in(self._results.made_by)
        return random.SystemRandom().randrange(2**31) if before is None else before

    def _asked(self) -> list[GenerationRequest]:
        at = {one.line: i for i, one in enumerate(self._requests)}
        return [self._asked_for(one, at[one.line], choice) for one, choice in self._units]

    def _asked_for(self, request: Request, at: int, choice: int) -> GenerationRequest:
        asked, first = request.asked, self._made_by.seed
        own = asked.seed if asked.seed is not None else None if first is None else first + at
        seed = own if own is None or not choice else (own + choice * CHOICES_APART) % 2**64
        assert request.ids is not None
        return GenerationRequest(request.ids, asked.max_tokens, asked.options, seed, asked.top_logprobs)

    def _note(
        self, model: PreTrainedModel, unit: int, sequence: list[int], logprobs: list[TokenLogprobs] | None
    ) -> None:
        """Keeps what one choice generated until all of its request are there."""
        request, choice = self._units[unit]
        text_of = None if self._tokenizer is None else self._text
        answer = Answer.of(sequence, end_tokens(model), request.asked.stops, text_of, logprobs)
        self._answers.setdefault(request.line, {})[choice] = answer

    def _text(self, ids: Sequence[int]) -> str:
        assert self._tokenizer is not None
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _line(self, request: Request) -> str | None:
        """The result of a request; None where some of it is still to come."""
        if request.error:
            return error_line(request, numbered=self._numbered)
        answers = self._answers.get(request.line, {})
        if len(answers) < request.asked.choices:
            return None
        text_of = None if self._tokenizer is None else self._name
        ordered = [one for _, one in sorted(self._answers.pop(request.line).items())]
        return output_line(request, ordered, self._made_by, text_of=text_of, numbered=self._numbered)

    def _name(self, ids: Sequence[int]) -> str:
        assert self._tokenizer is not None
        return str(self._tokenizer.decode(list(ids)))

    def _append_complete(self) -> None:
        """Lines in the order of the input, up to the first that is still to come."""
        lines = []
        for request in self._requests[self._results.done :]:
            line = self._line(request)
            if line is None:
                break
            lines.append(line)
        self._results.append(lines)

    def _append_errors(self) -> None:
        """Of lines that cannot be run, where no order has to be kept."""
        left = [one for one in self._requests if one.error and not self._results.has(one)]
        self._results.append([error_line(one, numbered=True) for one in left])

    def _write_all(
        self, model: PreTrainedModel, outputs: Iterable[RequestOutput], progress: Callable[[int], None]
    ) -> None:
        broken = set[int]()
        for output in outputs:
            request, _ = self._units[output.number]
            progress(len(output.sequence))
            if request.line in broken:
                continue
            if output.error:
                broken.add(request.line)
                self._results.append([error_line(request.refused(output.error), numbered=True)])
                continue
            self._note(model, output.number, output.sequence, output.logprobs)
            line = self._line(request)
            self._results.append([] if line is None else [line])


def own_names(model_name: str) -> list[str]:
    """What requests may call a model that is given by a folder or a hub id."""
    return [model_name, Path(model_name).name]
