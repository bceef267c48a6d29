from .accelerate import Accelerate as Accelerate
from .cgopipe import CGOPipe as CGOPipe
from .fastdecode import FastDecode as FastDecode
from .flexgen import FlexGen as FlexGen
from .flexgen_c import FlexGenC as FlexGenC
from .zero import Zero as Zero
