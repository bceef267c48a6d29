from .generate import XlaModel as XlaModel, XlaResult as XlaResult
from .proof import (
    EXPERTS as EXPERTS,
    JaxProof as JaxProof,
    prove as prove,
    small_model as small_model,
    uneven_prompts as uneven_prompts,
)
