from .config import find_config as find_config
from .layer import Layer as Layer
from .model import Model as Model
