from .generate import XlaModel as XlaModel, XlaResult as XlaResult
