from .choice import StreamChoice as StreamChoice, Way as Way, plan_stream as plan_stream
from .estimate import StreamEstimate as StreamEstimate
from .flow import Flow as Flow
from .points import StreamPoint as StreamPoint, StreamSetups as StreamSetups
from .report import PROMPTS_IN_WORDS as PROMPTS_IN_WORDS, print_stream_plan as print_stream_plan
from .search import StreamPlan as StreamPlan, best_stream_policy as best_stream_policy
