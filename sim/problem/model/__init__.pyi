from .layer import Layer as Layer
from .model import Model as Model
