from .axes import Axis as Axis, parse_axes as parse_axes
from .picture import check_columns as check_columns, draw_map as draw_map
from .rows import FORMATS as FORMATS, RowFile as RowFile, read_rows as read_rows
from .sweep import Base as Base, Row as Row, Sweep as Sweep, row_of as row_of
from .workers import BACKENDS as BACKENDS, Workers as Workers
