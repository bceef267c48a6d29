from .host_experts import (
    QUICK_TOKENS as QUICK_TOKENS,
    TOKENS as TOKENS,
    Beside as Beside,
    HostExpertsTime as HostExpertsTime,
    can_be_apart as can_be_apart,
    host_samples as host_samples,
    time_host_experts as time_host_experts,
)
from .measured import Measured as Measured
from .network import NetworkProbe as NetworkProbe, network_probe as network_probe
from .probes import FEW_REPEATS as FEW_REPEATS, REPEATS as REPEATS, Probes as Probes, probe as probe
from .rounds import (
    Round as Round,
    median_host_experts as median_host_experts,
    median_host_unpack_rate as median_host_unpack_rate,
    median_probes as median_probes,
    median_split_cost as median_split_cost,
    median_unpack_rate as median_unpack_rate,
    median_watts as median_watts,
)
from .runs import (
    STEPS as STEPS,
    Attempt as Attempt,
    Condition as Condition,
    MeasuredRun as MeasuredRun,
    Sample as Sample,
    conditions as conditions,
    once as once,
    run_all as run_all,
    samples_of as samples_of,
)
from .split_experts import split_cost as split_cost
from .unpacking import host_unpack_rate as host_unpack_rate, unpack_rate as unpack_rate
from .watts import (
    COMPUTE as COMPUTE,
    HOST_COMPUTE as HOST_COMPUTE,
    HOST_READ as HOST_READ,
    IDLE as IDLE,
    LINK as LINK,
    MEMORY as MEMORY,
    Watts as Watts,
    measure_watts as measure_watts,
)
from .what_fits import (
    keep_first_layers as keep_first_layers,
    layers_to_measure as layers_to_measure,
    runs_that_fit as runs_that_fit,
)
