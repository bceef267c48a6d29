"""What sparse attention keeps beside keys and values to choose tokens by: it stays where it is computed."""

import torch

from engine.model.kvcache.kept import Allocate

INDEX_KEYS = "index keys"


class IndexKeys:
    """The index keys of one layer, in room that is made once, for as many tokens as there will be.

    They are [batch, tokens, dim]. Models ask for what the library's own layers have, under the same names.
    """

    indexer_position_ids: torch.Tensor | None = None
    _capacity_of_index = 0
    _allocate_index: Allocate | None = None
    _index_room: torch.Tensor | None = None
    _index_tokens = 0

    def room_of_index_keys(self, capacity: int, allocate: Allocate | None = None) -> None:
        """They will be those of so many tokens; without `allocate` they lie where the first of them are."""
        self._capacity_of_index, self._allocate_index = capacity, allocate

    @property
    def is_indexer_initialized(self) -> bool:
        return self._index_room is not None

    @property
    def indexer_keys(self) -> torch.Tensor | None:
        """Those of all tokens."""
        return None if self._index_room is None else self._index_room[:, : self._index_tokens]

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """Adds those of new tokens; returns all."""
        first, self._index_tokens = self._index_tokens, self._index_tokens + indexer_key_states.shape[1]
        if self._index_room is None:
            self._index_room = self._make_room(indexer_key_states)
        if self._index_tokens > self._index_room.shape[1]:
            most = self._index_room.shape[1]
            raise RuntimeError(f"an index with room for {most} tokens is given {self._index_tokens}")
        self._index_room[:, first : self._index_tokens].copy_(indexer_key_states)
        return self._index_room[:, : self._index_tokens]

    def _make_room(self, like: torch.Tensor) -> torch.Tensor:
        shape = len(like), max(self._capacity_of_index, self._index_tokens), like.shape[2]
        if self._allocate_index is None:
            return like.new_empty(shape)
        return self._allocate_index(INDEX_KEYS, shape, like.dtype)
