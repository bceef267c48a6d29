from .config import read_model as read_model
from .layer import Layer as Layer, packed_bytes as packed_bytes
from .model import Model as Model
