"""A file of requests through the engine, results appended as they come: batch after batch, or in a stream."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from engine.device import Device
from engine.generation.generate import BatchDone, RunResult, run
from engine.generation.prompts import GenerationRequest, check_length
from engine.generation.requests import Request, error_line, output_line, read_requests
from engine.generation.results import Results, UnorderedResults
from engine.generation.streaming import OutputStream, RequestOutput, stream
from engine.model import end_tokens
from sim.problem import Policy
from sim.schedule import Schedule
from traces.errors import InputError


class RequestFile:
    """The requests of one file and the results that it already has."""

    def __init__(
        self,
        source: Path,
        target: Path,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        max_new_tokens: int,
        resume: bool,
        *,
        in_any_order: bool = False,
    ) -> None:
        """`in_any_order`: results come as requests end, for `run_stream`, each with the number of its line."""
        self._model = model
        self._tokenizer = tokenizer
        self._max_new_tokens = max_new_tokens
        self._requests = [self._checked(request) for request in read_requests(source, tokenizer)]
        self._numbered = in_any_order
        self._results = (UnorderedResults if in_any_order else Results)(target, self._requests, resume)
        self.resumed = self._results.done  # lines that had results already
        self._left = [request for request in self._requests if not self._results.has(request)]
        self.pending = [request for request in self._left if request.ids is not None]
        self.prompts = [request.ids for request in self.pending if request.ids is not None]

    @property
    def errors(self) -> list[str]:
        """Why lines were left out."""
        return [request.error for request in self._requests if request.error]

    def run_nothing(self) -> None:
        """Writes what is left to say where no request can be run."""
        with closing(self._results):
            if self._numbered:
                self._append_errors()
            else:
                self._append(len(self._requests), {})

    def run(
        self, schedule: Schedule, policy: Policy, device: Device, progress: Callable[[int], None], **kwargs: Any
    ) -> RunResult:
        """Runs what has no result yet. Raises InputError if results cannot be written."""
        with closing(self._results):
            result = run(
                self._model,
                self.prompts,
                schedule,
                policy,
                max_new_tokens=self._max_new_tokens,
                device=device,
                tokenizer=self._tokenizer,
                progress=progress,
                on_batch=self._write,
                **kwargs,
            )
            self._append(len(self._requests), {})
            return result

    def run_stream(
        self, schedule: Schedule, policy: Policy | None, device: Device, progress: Callable[[int], None], **kwargs: Any
    ) -> OutputStream:
        """The same in a stream: a line as each request ends. `progress` is told of its tokens."""
        asked = [
            GenerationRequest(ids, self._limit(request))
            for ids, request in zip(self.prompts, self.pending, strict=True)
        ]
        options = {"max_new_tokens": self._max_new_tokens, "device": device, "tokenizer": self._tokenizer, **kwargs}
        with closing(self._results):
            self._append_errors()
            with stream(self._model, asked, schedule, policy, **options) as outputs:
                try:
                    self._write_all(outputs, progress)
                except KeyboardInterrupt:
                    outputs.close()
                    self._write_all(outputs, progress)  # what had ended by then
                    raise
            return outputs

    def _checked(self, request: Request) -> Request:
        if request.ids is None:
            return request
        try:
            check_length(request.ids, "the prompt", self._max_new_tokens, self._model)
        except InputError as error:
            return replace(request, ids=None, error=f"line {request.line}: {error}")
        return request

    def _limit(self, request: Request) -> int:
        return min(self._max_new_tokens, request.max_tokens or self._max_new_tokens)

    def _write_all(self, outputs: Iterable[RequestOutput], progress: Callable[[int], None]) -> None:
        for output in outputs:
            self._results.append([self._line_of(self.pending[output.number], output)])
            progress(len(output.sequence))

    def _write(self, batch: BatchDone) -> None:
        requests = self.pending[batch.first : batch.first + len(batch.sequences)]
        pairs = zip(requests, batch.sequences, strict=True)
        lines = {request.line: self._line(request, sequence) for request, sequence in pairs}
        self._append(self._requests.index(requests[-1]) + 1, lines)

    def _append(self, stop: int, lines: dict[int, str]) -> None:
        waiting = self._requests[self._results.done : stop]
        self._results.append([lines.get(request.line) or error_line(request) for request in waiting])

    def _append_errors(self) -> None:
        """Of lines that cannot be run, where no order has to be kept."""
        self._results.append([error_line(one, numbered=True) for one in self._left if one.ids is None])

    def _line_of(self, request: Request, output: RequestOutput) -> str:
        if output.error:
            return error_line(replace(request, error=f"line {request.line}: {output.error}"), numbered=True)
        return self._line(request, output.sequence)

    def _line(self, request: Request, sequence: Sequence[int]) -> str:
        kept = list(sequence[: self._limit(request)])
        text = None if self._tokenizer is None else str(self._tokenizer.decode(kept, skip_special_tokens=True))
        ended = bool(kept) and kept[-1] in end_tokens(self._model)
        name = str(self._model.name_or_path)
        return output_line(request, kept, text, ended, name, numbered=self._numbered)
