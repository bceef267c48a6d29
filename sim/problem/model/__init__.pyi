from .attention import within_window as within_window
from .feed_forward import FeedForward as FeedForward
from .layer import Layer as Layer
from .model import Model as Model
