from .families import REFUSED_FIELDS as REFUSED_FIELDS, REFUSED_TYPES as REFUSED_TYPES, family_of as family_of
from .fields import Fields as Fields
from .layers import ends_params as ends_params, number_of_layers as number_of_layers, read_layer as read_layer
from .unread import check_all_read as check_all_read
