"""The buffers of a pipeline: how many slots each has, which slot a task takes, what it holds, and in which memory."""

from dataclasses import dataclass
from enum import StrEnum


class Tier(StrEnum):
    """A memory of the machine."""

    DEVICE = "device"  # of each device
    HOST = "host"
    PINNED = "pinned"  # page-locked, part of the host's


class MemoryPart(StrEnum):
    """What the memory plan names; a schedule's own buffers add names of their own."""

    EMBEDDING_AND_HEAD = "embedding and head"
    NON_EXPERTS = "non-expert weights"
    RESIDENT_EXPERTS = "resident experts"
    UNPACKED_EXPERTS = "unpacked experts"
    STREAMED_WEIGHTS = "streamed weights"
    WEIGHT_SLOTS = "weight slots"
    KV_CACHE = "kv cache"
    KV_BUFFERS = "kv buffers"
    ATTENTION_EXCHANGE = "attention exchange"
    ACTIVATIONS = "activations"
    HIDDEN_STATES = "hidden states"
    STAGING = "staging"
    HOST_EXPERTS = "experts on the host"
    FETCHED_EXPERTS = "fetched experts"
    EXPERT_EXCHANGE = "expert exchange"


class Holds(StrEnum):
    """What fills one slot: of a layer, or of a micro-batch in it."""

    WEIGHTS = "a layer's streamed weights"
    STAGED = "what of a layer's streamed weights is not page-locked where it lives"
    CACHE = "the KV cache of a layer at its longest, but for the share that stays on the device"
    RESIDENT_CACHE = "that share"
    JOINED_CACHE = "both in one piece, where a model expands its KV cache before attention"
    PROMPT_CACHE = "the KV entries of a layer for the prompts"
    LOADED_CACHE = "in a stream, the KV entries of a layer that come to the device to be attended to there"
    ATTENDED_CACHE = "the same of those who decode and attend there while others attend on the host"
    PROMPT_HIDDEN = "hidden states of the prompts"
    HIDDEN = "hidden states of one token a request"
    QKV = "query, new key and value of one token a request"
    ATTENTION = "attention's output of one token a request"
    ROUTED = "what goes into experts, with the experts of each token and their weights"
    EXPERT_OUTPUT = "what experts of one place make of it"
    NEXT_ROUTED = "the same of every other layer in decode, where experts of the layer before may be computed still"
    DEFERRED_OUTPUT = "what experts of one place make of it in decode that counts in the next layer"
    DEVICE_OUTPUT = "what routed experts on the device make of it, and beside that what shared ones make"
    FETCHED = "as many experts as a group may ask for"


AS_WIDE_AS_HIDDEN = frozenset(
    {
        Holds.PROMPT_HIDDEN,
        Holds.HIDDEN,
        Holds.ROUTED,
        Holds.EXPERT_OUTPUT,
        Holds.NEXT_ROUTED,
        Holds.DEFERRED_OUTPUT,
        Holds.DEVICE_OUTPUT,
    }
)
"""What devices that share each tensor have each for itself."""


class By(StrEnum):
    """What decides which slot of a buffer a task takes."""

    RUN = "run"  # the layers that run take turns; a slot is cut into pages
    TURN = "turn"  # the micro-batches of each layer that runs take turns
    MICRO_BATCH = "micro-batch"  # each micro-batch has its own
    CACHE = "layer and micro-batch"  # and in each layer another
    GROUP = "group"  # the groups of each layer that runs take turns


@dataclass(frozen=True, slots=True)
class Buffer:
    """Slots of one kind."""

    holds: Holds
    by: By
    turns: int = 1
    """How many slots take turns, where slots do: of two weight slots one is computed from while the other fills."""
    tier: Tier | None = None
    """The memory that it is in, for the plan, the costs of copies, and the engine; None: it takes none of its own."""
    part: str = ""
    """Its name in the memory plan, which several may share; by default the buffer's."""
