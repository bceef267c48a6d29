"""What a campaign over streams runs: a random model, and requests of lognormal lengths that end by themselves."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

import engine
from engine.device import Device
from sim.admission import Arrivals, Lengths, RequestStream, StreamedRequest
from sim.problem import Policy
from sim.schedule import by_name
from traces.files import read_toml
from traces.trace import Trace
from validation.campaign.grid import few_large_experts

PAD, END, FIRST_TOKEN = 0, 1, 3
ALL_STEPS = 1_000_000_000

EMBEDDING_SCALE = 50.0
"""Embeddings are drawn so small that what attention adds to them is most of what a layer sees."""


@dataclass(frozen=True)
class StreamCase:
    """One stream: its requests, and how they are served."""

    model: str
    label: str
    schedule: str
    requests: int
    prompt_lens: str
    """Laws of lengths as `--prompt-lens` and `--gen-lens` have them, cut at `most_prompt_tokens` and `gen_len`."""
    most_prompt_tokens: int
    gen_lens: str
    gen_len: int
    arrivals: str
    micro_batch_size: int
    num_micro_batches: int
    num_prompts: int = 1
    priority: str = "arrival"
    seed: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the policy other than its sizes."""

    @property
    def name(self) -> str:
        """Names the run in files and tables."""
        return f"{self.model}_{self.schedule}_{self.label}"

    @cached_property
    def stream(self) -> RequestStream:
        """What is known of the requests, and after how many tokens each ends."""
        prompts = Lengths.parse(self.prompt_lens).drawn(self.most_prompt_tokens, self.requests, self.seed + 1)
        generated = Lengths.parse(self.gen_lens).drawn(self.gen_len, self.requests, self.seed)
        times = Arrivals.parse(self.arrivals).drawn_ns(self.requests, self.seed)
        numbers = enumerate(zip(prompts, generated, times, strict=True))
        requests = (
            StreamedRequest(i, max(2, prompt), self.gen_len, tokens, when) for i, (prompt, tokens, when) in numbers
        )
        return RequestStream(self.label, tuple(requests))

    def run(self, model: PreTrainedModel, device: Device) -> Trace:
        """The trace of all of it."""
        schedule = by_name(self.schedule)
        size = self.micro_batch_size
        stream = engine.stream(
            model,
            list(self._asked(model.config.get_text_config(decoder=True).vocab_size)),
            schedule,
            Policy.usual(schedule, size * self.num_micro_batches, size, **self.fields),
            max_new_tokens=self.gen_len,
            device=device,
            num_prompts=self.num_prompts,
            priority=self.priority,
            traced_steps=ALL_STEPS,
            do_sample=False,
            eos_token_id=END,
            logits_processor=LogitsProcessorList([EndsAsToldByPrompt()]),
        )
        failed = [output.error for output in stream if output.error]
        if failed:
            raise RuntimeError(f"{self.name}: {failed[0]}")
        assert stream.trace is not None
        return stream.trace

    def _asked(self, vocabulary: int) -> Iterator[engine.GenerationRequest]:
        """Random token ids, the same each time, of which the first two say how long prompt and answer are."""
        generator = torch.Generator().manual_seed(self.seed)
        for one in self.stream.requests:
            told = [FIRST_TOKEN + one.prompt_tokens, FIRST_TOKEN + one.generated_tokens]
            others = torch.randint(FIRST_TOKEN, vocabulary, (one.prompt_tokens - 2,), generator=generator).tolist()
            yield engine.GenerationRequest([*told, *others], arrival_s=one.arrival_ns / 1e9)


class EndsAsToldByPrompt(LogitsProcessor):
    """The end token after as many as the prompt says, and never before: nobody knows earlier when a request ends."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(input_ids), device=input_ids.device)
        first = (input_ids != PAD).int().argmax(dim=1)
        length, wanted = (input_ids[rows, first + at] - FIRST_TOKEN for at in range(2))
        made = input_ids.shape[1] - first - length
        scores[:, END] = torch.where(made + 1 >= wanted, torch.inf, -torch.inf)
        return scores


@dataclass(frozen=True, slots=True)
class StreamGrid:
    """The models, and what is run of each."""

    models: Mapping[str, Callable[[], PreTrainedModel]]
    streams: Sequence[Mapping[str, Any]]
    """Each with the fields of a case but its model; `shared` has those that all have."""
    shared: Mapping[str, Any]

    def cases(self) -> list[StreamCase]:
        """Every run, model by model."""
        return [StreamCase(model, **{**self.shared, **one}) for model in self.models for one in self.streams]


def few_large_experts_of_unlike_tokens() -> PreTrainedModel:
    """A random Mixtral whose tokens use experts of their own, as those of a text do.

    In a model as it is drawn the tokens of one prompt soon resemble each other, and use half of the experts.
    """
    model = few_large_experts()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(EMBEDDING_SCALE)  # type: ignore[operator]
    return model


STREAMS = StreamGrid(
    {"unlike-tokens": few_large_experts_of_unlike_tokens}, **read_toml(Path(__file__).with_name("streams.toml"))
)
"""Small enough for ten minutes with three repeats."""
