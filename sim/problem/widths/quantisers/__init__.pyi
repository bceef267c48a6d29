from .native import METHODS as METHODS, native_widths as native_widths, plain_bits as plain_bits
