from .config import find_config as find_config
from .layer import Layer as Layer, packed_bytes as packed_bytes
from .model import Model as Model
