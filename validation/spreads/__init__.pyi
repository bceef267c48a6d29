from .coverage import Held as Held, hold_out as hold_out
from .evidence import Evidence as Evidence, evidence_of as evidence_of
from .learn import learnt_from as learnt_from
from .report import print_spreads as print_spreads
from .runs import PublishedRun as PublishedRun, published_runs as published_runs
from .write import write_spreads as write_spreads
