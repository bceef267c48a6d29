"""A machine's table with every number that follows from others; what a file gives, measured or assumed, stays."""

from typing import Any

from sim.problem.machine.derived.given import Given, Table
from sim.problem.machine.derived.rates import RULES_OF_RATES
from sim.problem.machine.derived.watts import RULES_OF_WATTS
from sim.problem.machine.quantity import Basis, Quantity

RULES = (*RULES_OF_RATES, *RULES_OF_WATTS)

RULE = "derived: "
"""How the source of such a number begins."""
HALF_OF_THE_HOST = "half of the host"
"""How it began in files of page-locked memory that were written before there were such rules."""


def completed(table: Table) -> Table:
    """The table with every number that follows from others and that no file gives. Raises InputError."""
    table = without_derived(table)
    measured = "emulation" in table  # all that an emulated device does
    rules = [rule for rule in RULES if rule.path == "pinned" or not measured]
    given = Given(table)
    for rule in rules:
        value = None if _is_given(table, rule.path) else rule.value(given)
        if value is not None:
            scale = Quantity(1.0, rule.unit)
            number = Quantity(value / scale, rule.unit, Basis.ASSUMED, RULE + rule.source)
            given.table = table = with_number(table, rule.path, number.to_dict())
    return table


def without_derived(table: Table) -> Table:
    """The table without numbers that were derived before: a file that was written keeps following its own numbers."""
    found: Table = {}
    for key, value in table.items():
        if isinstance(value, dict) and "value" not in value:
            found[key] = without_derived(value)
        elif not (isinstance(value, dict) and str(value.get("source", "")).startswith((RULE, HALF_OF_THE_HOST))):
            found[key] = value
    return found


def with_number(table: Table, path: str, value: Any) -> Table:
    """The table with a value at a dotted path, and the tables that lead to it."""
    first, _, rest = path.partition(".")
    inner = table.get(first, {})
    if not rest or not isinstance(inner, dict):
        return table if rest else {**table, first: value}
    return {**table, first: with_number(inner, rest, value)}


def _is_given(table: Table, path: str) -> bool:
    first, _, rest = path.partition(".")
    if not rest or not isinstance(table.get(first, {}), dict):
        return first in table
    return first in table and _is_given(table[first], rest)
