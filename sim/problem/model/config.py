"""From a Hugging Face `config.json` to a `Model`.

Mixture-of-Experts families give the same dimensions different names; `reading` knows them, and what the code of each
family fixes. A family that it does not know is read by the names alone, and refused if a size is left that nobody read.
What the nouns of `sim.problem.model` cannot say is refused, not guessed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim.problem.model.modules import modules_of
from sim.problem.model.reading import (
    REFUSED_FIELDS,
    REFUSED_TYPES,
    Fields,
    check_all_read,
    ends_params,
    family_of,
    number_of_layers,
    read_layer,
)
from sim.problem.presets import MODELS
from sim.problem.widths import native_widths, plain_bits
from traces.errors import InputError, error_prefix
from traces.files import read_object


def find_config(name_or_path: str | Path) -> tuple[Mapping[str, Any], str, str]:
    """A preset by its name, or a `config.json`, or a folder that holds one: its content, name, and what to call it."""
    preset = MODELS.path(str(name_or_path).lower())
    if isinstance(name_or_path, str) and preset is not None:
        return read_object(preset), preset.stem, f"model preset {preset.stem}"
    path = _config_path(Path(name_or_path))
    if path is None:
        raise MODELS.unknown(str(name_or_path))
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    return read_object(path), name, str(path)


def _config_path(path: Path) -> Path | None:
    try:
        path = path / "config.json" if path.is_dir() else path
        return path if path.exists() else None
    except (OSError, ValueError):  # no name that a file can have
        return None


def model_fields(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The fields of the `Model` that a configuration describes; `source` stands first in every error."""
    fields = Fields(config)
    with error_prefix(f"{source}: "):
        model_type = fields.text("model_type")
        family = family_of(model_type)
        _refuse(fields, model_type)
        layers = tuple(read_layer(fields, family, index) for index in range(number_of_layers(fields)))
        if not any(layer.num_experts for layer in layers):
            raise InputError("no layer has experts: mlp_only_layers, first_k_dense_replace and their like leave none")
        vocab_size, tied = fields.count("vocab_size"), fields.flag("tie_word_embeddings", family.tie_embeddings)
        dtype = fields.text("dtype", "bfloat16")
        found = dict[str, Any](
            vocab_size=vocab_size,
            layers=layers,
            tie_embeddings=tied,
            widths=native_widths(fields.values, dtype, modules_of(layers, vocab_size, tied=tied)),
            activation_bits=max(plain_bits(dtype), 16.0),
            final_norm_params=ends_params(fields, family),
            head_bias=fields.flag("lm_head_bias"),
            mtp_layers=fields.count("mtp_layers", default=0, minimum=0),
        )
        if not family.name:
            check_all_read(fields, model_type)
        return found


def _refuse(fields: Fields, model_type: str) -> None:
    """What cannot be told, with the reason: the architecture first, then what is missing."""
    refused = (contents for field, contents in REFUSED_FIELDS.items() if fields.has_some(field))
    what = REFUSED_TYPES.get(model_type.removesuffix("_text")) or next(refused, None)
    if what:
        raise InputError(f"model type {model_type or '(not given)'} is not modelled: it has {what}")
    if fields.flag("is_encoder_decoder"):
        raise InputError("is an encoder-decoder; only decoders are handled")
    turned_off = next((name for name in ("enable_moe_block", "is_moe") if not fields.flag(name, default=True)), None)
    if turned_off or not fields.count("num_local_experts", default=0, minimum=0):
        looked = ", ".join(fields.names("num_local_experts"))
        why = f"{turned_off} is false" if turned_off else f"looked for {looked}"
        raise InputError(f"has no experts ({why}); only Mixture-of-Experts models are handled")
