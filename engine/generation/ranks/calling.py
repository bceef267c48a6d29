"""A call on several devices: each rank makes it in a process of its own, and the first one's answer is the answer."""

import contextlib
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging

from engine.device import (
    Device,
    DeviceAsked,
    Rank,
    Rendezvous,
    join_group,
    keep_to_share,
    run_in_ranks,
    started_by_torchrun,
)
from traces.errors import InputError

Callback = Callable[..., None] | None

ON_BATCH, PROGRESS = "on_batch", "progress"


def call_on_devices(call: Callable[..., Any], count: int, asked: Mapping[str, Any]) -> Any:
    """What `call(**asked, rank=…)` gives on `count` devices of this host, its ranks started here or by `torchrun`.

    `asked` has the model, the device and the callbacks, which are told of the first rank's work.
    Raises InputError for what cannot be sent to other processes.
    """
    device = _asked_device(asked["device"])
    device.check_there_are(count)
    place = started_by_torchrun()
    if place is not None:
        if place.count != count:
            raise InputError(f"num_devices: {count} with {place.count} ranks of torchrun: give {place.count}")
        return _beside_others(place, call, {**asked, "device": device})
    callbacks = {name: asked[name] for name in (PROGRESS, ON_BATCH) if name in asked}
    with _in_a_folder(asked["model"]) as model:
        sent = {**asked, "device": device, "model": model} | dict.fromkeys(callbacks)
        _check_can_be_sent(sent)
        heard = [name for name, one in callbacks.items() if one is not None]
        return run_in_ranks(count, _in_its_process, call, sent, heard, hear=partial(_call_back, callbacks))


@contextlib.contextmanager
def joined_ranks(place: Rendezvous, device: DeviceAsked) -> Iterator[Rank]:
    """While entered, this process is a rank, on its share of the host's cores; entered by all ranks."""
    with join_group(place, device.torch_type) as rank, contextlib.ExitStack() as at_end:
        if not rank.is_first:  # what libraries say, the first says for all
            nowhere = at_end.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            at_end.enter_context(contextlib.redirect_stdout(nowhere))
            at_end.enter_context(contextlib.redirect_stderr(nowhere))
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        keep_to_share(rank, device.near_cores(rank.index))
        yield rank


def _beside_others(place: Rendezvous, call: Callable[..., Any], asked: Mapping[str, Any]) -> Any:
    """In a process that is a rank already; the others make the same call."""
    with joined_ranks(place, asked["device"]) as rank:
        return call(**{**asked, **({} if rank.is_first else _unheard(asked))}, rank=rank)


def _unheard(asked: Mapping[str, Any]) -> dict[str, None]:
    return {name: None for name in (PROGRESS, ON_BATCH) if name in asked}


def _in_its_process(
    place: Rendezvous, tell: Callable[[Any], None], call: Callable[..., Any], asked: Mapping[str, Any], heard: list[str]
) -> Any:
    told = {name: partial(_tell, tell, name) for name in heard}
    with joined_ranks(place, asked["device"]) as rank:
        return call(**{**asked, **(told if rank.is_first else {})}, rank=rank)


def _tell(tell: Callable[[Any], None], name: str, *values: Any) -> None:
    if name == ON_BATCH:  # marks of tasks belong to the device of their process
        values = tuple(replace(one, result=replace(one.result, ran=[])) for one in values)
    tell((name, values))


def _call_back(callbacks: Mapping[str, Callback], said: tuple[str, tuple[Any, ...]]) -> None:
    name, values = said
    call = callbacks[name]
    assert call is not None
    call(*values)


def _asked_device(device: "str | DeviceAsked | Device") -> DeviceAsked:
    if isinstance(device, Device):
        raise InputError(
            f"device: {device.name} is open here, and each of several devices is opened by its own process: give a "
            f"name, or a DeviceAsked with what it is told"
        )
    return device if isinstance(device, DeviceAsked) else DeviceAsked(device)


@contextlib.contextmanager
def _in_a_folder(model: Any) -> Iterator[Any]:
    """A model where each rank can load it: one that is loaded here already is written into a folder meanwhile."""
    if not isinstance(model, PreTrainedModel):
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="cgopipe-model-") as folder:
        try:
            model.save_pretrained(folder)
        except Exception as error:
            raise InputError(
                f"model: it cannot be written for the processes of several devices: {error}; give its folder"
            ) from error
        yield Path(folder)


def _check_can_be_sent(asked: Mapping[str, Any]) -> None:
    for name, value in asked.items():
        try:
            pickle.dumps(value)
        except Exception as error:  # whatever the object's own code raises
            raise InputError(
                f"{name}: it cannot be sent to the processes of several devices: {error}; give what is defined in a "
                f"module"
            ) from error
