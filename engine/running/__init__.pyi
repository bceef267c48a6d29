from .planning import RunPlan as RunPlan, plan as plan
