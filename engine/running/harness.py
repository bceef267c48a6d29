"""`cgopipe-lm-eval`: the command line of lm-evaluation-harness (EleutherAI) with the models that packages offer it.

The harness itself (0.4.13) looks for such models nowhere. Packages name theirs under the entry-point group
`lm_eval.models`; ours is `cgopipe`.
"""

import sys
from importlib.metadata import entry_points
from importlib.util import find_spec

from traces.errors import InputError

GROUP = "lm_eval.models"


def register_models() -> None:
    """Tells the harness of them; what it has by that name already stays."""
    from lm_eval.api.registry import model_registry

    for one in entry_points(group=GROUP):
        if one.name not in model_registry:
            model_registry.register(one.name, target=one)


def evaluate() -> None:
    """Run the harness's own command line."""
    if find_spec("lm_eval") is None:
        sys.exit("error: needs lm_eval, which is not installed: pip install 'cgopipe[engine,eval]'")
    from lm_eval.__main__ import cli_evaluate

    register_models()
    try:
        cli_evaluate()
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    evaluate()
