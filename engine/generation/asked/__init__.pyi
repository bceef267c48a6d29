from .arguments import (
    SEEDS as SEEDS,
    check_seed as check_seed,
    checked_arguments as checked_arguments,
    names_of as names_of,
)
from .given import (
    WhatIsAsked as WhatIsAsked,
    check_kind as check_kind,
    drawn_seed as drawn_seed,
    errors_of_callers as errors_of_callers,
    given_model as given_model,
    only_user as only_user,
    what_is_asked as what_is_asked,
)
from .prompts import (
    GenerationRequest as GenerationRequest,
    Prompt as Prompt,
    as_requests as as_requests,
    asked_of as asked_of,
    check_fits as check_fits,
    check_length as check_length,
    pad_token as pad_token,
    prompt_ids as prompt_ids,
)
