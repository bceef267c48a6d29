from .moe_lens import BoundCheck as BoundCheck, moe_lens_checks as moe_lens_checks
from .report import print_bounds as print_bounds
