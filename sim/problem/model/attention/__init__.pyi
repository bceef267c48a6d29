from .absent import NoAttention as NoAttention
from .base import Attention as Attention, Keeping as Keeping, check_at_least as check_at_least
from .compressed import CompressedAttention as CompressedAttention
from .heads import HeadAttention as HeadAttention
from .indexer import Indexer as Indexer
from .latent import LatentAttention as LatentAttention
from .recurrent import Recurrent as Recurrent
from .several import SeveralAttentions as SeveralAttentions
from .window import within_window as within_window
