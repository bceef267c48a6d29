from .one_layer import LayerView as LayerView, layer_view as layer_view
from .timeline import (
    describe_shape as describe_shape,
    link_rates as link_rates,
    record as record,
    span_of as span_of,
    structure as structure,
)
