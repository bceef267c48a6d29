from .generate import XlaModel as XlaModel, XlaResult as XlaResult
from .proof import (
    EXPERTS as EXPERTS,
    Proof as Proof,
    prove as prove,
    random_model as random_model,
    random_prompts as random_prompts,
)
