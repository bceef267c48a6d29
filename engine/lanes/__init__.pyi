from .executor import Executor as Executor, Ran as Ran
