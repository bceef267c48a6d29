from .admission import RequestStream as RequestStream, Service as Service
from .comparison import (
    Comparison as Comparison,
    Outcome as Outcome,
    ServedComparison as ServedComparison,
    compare as compare,
    compare_served as compare_served,
)
from .cost import Setup as Setup
from .planning import Choice as Choice, Explanation as Explanation, explain as explain, plan as plan
from .problem import (
    Hardware as Hardware,
    Model as Model,
    Policy as Policy,
    Problem as Problem,
    Routing as Routing,
    Workload as Workload,
)
from .simulation import Band as Band, Prediction as Prediction, bands_of as bands_of, predict as predict
