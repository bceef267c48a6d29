from .network import Network as Network, links_of_a_corner as links_of_a_corner
from .tiles import NO_TILES as NO_TILES, Tiles as Tiles
