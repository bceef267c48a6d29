"""The private names of torch that a device in Python needs, looked up by name: one may be gone in another version."""

import importlib
from typing import Any

NAMES = {
    "setup_backend": "torch.utils.backend_registration:_setup_privateuseone_for_python_backend",
    "Hooks": "torch:_C._acc.PrivateUse1Hooks",
    "create_empty_tensor": "torch:_C._acc.create_empty_tensor",
    "storage_at": "torch:_C._construct_storage_from_data_pointer",
    "DispatchKeySet": "torch:_C.DispatchKeySet",
    "DispatchKey": "torch:_C.DispatchKey",
    "EventHandler": "torch.cuda._sanitizer:EventHandler",
    "sanitizer": "torch.cuda:_sanitizer",
    "TensorInfo": "torch.cuda._sanitizer:TensorInfo",
}


def _found(place: str) -> Any:
    module, _, path = place.partition(":")
    try:
        value: Any = importlib.import_module(module)
        for name in path.split("."):
            value = getattr(value, name)
    except (ImportError, AttributeError):
        return None
    return value


_FOUND = {name: _found(place) for name, place in NAMES.items()}

MISSING = ", ".join(NAMES[name].replace(":", ".") for name, value in _FOUND.items() if value is None)
"""What this torch lacks; empty if nothing."""


def private(name: str) -> Any:
    """A private thing of torch, by our name of it."""
    return _FOUND[name]
