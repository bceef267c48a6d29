from .comparison import Comparison as Comparison, Outcome as Outcome, compare as compare
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
from .simulation import Prediction as Prediction, predict as predict
