from .compile_first import compile_once as compile_once
from .jit import jitted as jitted
from .path import FastResult as FastResult, generation_s as generation_s
