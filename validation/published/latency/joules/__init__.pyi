from .predict import PredictedJoules as PredictedJoules, predict_joules as predict_joules
from .report import print_joules as print_joules
from .rows import JOULES as JOULES, JoulesRow as JoulesRow, read_joules_rows as read_joules_rows
