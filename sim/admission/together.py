"""Requests whose prompts are computed together, as one padded batch: how many, and the room that they take."""

import heapq
from collections.abc import Sequence

import numpy as np

from sim.admission.ledger import Counts, KvLedger, Promise
from sim.admission.requests import StreamedRequest
from sim.admission.rules import AdmissionRules
from sim.admission.stay import planned_blocks

Queue = list[tuple[int, int, StreamedRequest]]
"""A heap of requests that wait, the next one first."""


def take_together(queue: Queue, rules: AdmissionRules, ledger: KvLedger) -> tuple[list[StreamedRequest], Counts]:
    """From the head of the queue as many as fit one micro-batch, with the blocks that they hold in each step."""
    taken: list[StreamedRequest] = []
    needs = np.zeros(0, np.int64)
    while queue and len(taken) < rules.micro_batch_size:
        wider = [*taken, queue[0][2]]
        if not _go_together(wider, rules):
            break
        more = _needs(wider, rules)
        if not ledger.fits(more):
            break
        heapq.heappop(queue)
        taken, needs = wider, more
    return taken, needs


def take_whole(
    queue: Queue, rules: AdmissionRules, ledger: KvLedger, most: int
) -> list[tuple[StreamedRequest, Promise]]:
    """From the head of the queue as many as one micro-batch computes in a step, at most `most`, each with its room.

    They decode wherever there are places, and leave when they end.
    """
    taken: list[tuple[StreamedRequest, Promise]] = []
    while queue and len(taken) < min(rules.micro_batch_size, most):
        request = queue[0][2]
        needs = planned_blocks(rules, request.prompt_tokens, request.most_tokens, request.prompt_tokens)[0]
        if not _go_together([*(one for one, _ in taken), request], rules) or not ledger.fits(needs):
            break
        heapq.heappop(queue)
        taken.append((request, ledger.promise(needs)))
    return taken


def _go_together(requests: Sequence[StreamedRequest], rules: AdmissionRules) -> bool:
    """Whether one micro-batch computes their prompts in one step, and nobody minds."""
    padded_tokens = len(requests) * max(one.prompt_tokens for one in requests)
    return padded_tokens <= rules.prefill_chunk and (len(requests) == 1 or not any(one.alone for one in requests))


def _needs(requests: Sequence[StreamedRequest], rules: AdmissionRules) -> Counts:
    """Blocks in each step from now on: each of them counts as the longest prompt with the most to generate."""
    longest, most = max(one.prompt_tokens for one in requests), max(one.most_tokens for one in requests)
    return len(requests) * planned_blocks(rules, longest, most, longest)[0]
