"""What a command wrote against the schema that the package ships for it."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

import traces

FOLDER = Path(traces.__file__).with_name("schemas")


@cache
def validator(name: str) -> Draft202012Validator:
    """The validator of `traces/schemas/NAME.json`, which may point at the others."""
    schemas = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in FOLDER.glob("*.json")}
    registry = Registry().with_resources((file, Resource.from_contents(schema)) for file, schema in schemas.items())
    return Draft202012Validator(schemas[f"{name}.json"], registry=registry)


def faults(name: str, value: Any) -> list[str]:
    """What is wrong with a value by a schema: where, and why."""
    return [f"{error.json_path}: {error.message[:300]}" for error in validator(name).iter_errors(value)]
