"""The board GPU: each GPU, and each worker on CPUs, with the job that holds it."""

from grafana_foundation_sdk.builders import dashboard

from boards.panels import (
    DEVICE,
    JOB_LINK,
    AnyPanel,
    Query,
    board,
    heat,
    job_choice,
    lines,
    node_choice,
    rank_choice,
    rows,
)

CHOSEN = 'node=~"$node", job_id=~"$job", rank=~"$rank"'
NO_GPU = "No GPU here tells this."


def held(metric: str) -> str:
    """A metric of GPUs, with the job that holds each."""
    return (
        f'device:lockstep_allocation:info{{device!="cpu", {CHOSEN}}} '
        f"* on (node, gpu, uuid) group_left () sum by (node, gpu, uuid) ({metric})"
    )


def gpu() -> dashboard.Dashboard:
    made = board("lockstep-gpu", "GPU", "Each GPU, and each worker on CPUs, with the job that holds it.")
    made.with_variable(node_choice()).with_variable(job_choice(has_all=True)).with_variable(rank_choice())
    for panel in _work():
        made.with_panel(panel)
    made.with_row(dashboard.Row("Machines"))
    for panel in _machines():
        made.with_panel(panel)
    row = dashboard.Row("Hardware, on GPUs only").collapsed(True)
    for panel in (*_faults(), *_power(), *_units()):
        row.with_panel(panel)
    return made.with_row(row)


def _work() -> list[AnyPanel]:
    return [
        heat(
            "Who uses what",
            (f"device:lockstep_utilization:ratio{{{CHOSEN}}}", DEVICE),
            "Utilization of every GPU (of every worker, on CPUs) with the job that holds it. Red rows with a job are "
            "held and idle: open the job. Red rows without one are free.",
            size=(24, 10),
            high_is_good=True,
        ),
        lines(
            "Utilization",
            [(f"device:lockstep_utilization:ratio{{{CHOSEN}}}", DEVICE)],
            "Share of the time in which some kernel ran; on CPUs the CPU time of the worker, of what it holds. Near 0 "
            "with a job: it waits for data, a checkpoint or other ranks. It says nothing of how much of the GPU a "
            "kernel used.",
            unit="percentunit",
            most=1,
        ),
        lines(
            "SM activity",
            [(f"device:lockstep_activity:ratio{{{CHOSEN}}}", DEVICE)],
            "Share of the multiprocessors' time with work; where a GPU does not tell, and on CPUs, the share of the "
            "time in which its rank computes. Far below the utilization: kernels are too small to fill the GPU, or it "
            "waits in the all-reduce. Use larger minibatches, or fewer workers.",
            unit="percentunit",
            most=1,
        ),
        lines(
            "Memory",
            [(f"device:lockstep_memory_used:ratio{{{CHOSEN}}}", DEVICE)],
            "Share of the GPU's memory in use; on CPUs the share of its node's memory that the worker takes. Near 1: "
            "the next larger minibatch does not fit. In use without a job: a process was left behind; see "
            "`nvidia-smi` there.",
            unit="percentunit",
            most=1,
            limit=0.95,
        ),
    ]


def _machines() -> list[AnyPanel]:
    node = 'node=~"$node"'
    return [
        lines(
            "CPUs",
            [(f"lockstep_node_cpu_utilization_ratio{{{node}}}", "{{node}}")],
            "Share of all CPUs of the node that is busy, with everything that runs there. At 1 beside idle GPUs: "
            "preparing the data is the limit. At 1 without jobs: somebody else uses the machine.",
            unit="percentunit",
            most=1,
            size=(6, 7),
        ),
        lines(
            "Memory of the machine",
            [(f"lockstep_node_memory_used_bytes{{{node}}} / lockstep_node_memory_total_bytes", "{{node}}")],
            "Share of the node's memory that is not available. Over 95% the kernel kills processes, workers first: "
            "place fewer workers there, or smaller ones.",
            unit="percentunit",
            most=1,
            limit=0.95,
            size=(6, 7),
        ),
        lines(
            "Network",
            [
                (f"rate(lockstep_node_network_received_bytes_total{{{node}}}[$__rate_interval])", "{{node}} in"),
                (f"rate(lockstep_node_network_sent_bytes_total{{{node}}}[$__rate_interval])", "{{node}} out"),
            ],
            "Bytes per second over the network, without loopback. At what the link can carry, with a high share of "
            "all-reduce on the board Job: the network is the limit; use fewer nodes per job.",
            unit="Bps",
            size=(6, 7),
        ),
        lines(
            "Disks",
            [
                (f"rate(lockstep_node_disk_read_bytes_total{{{node}}}[$__rate_interval])", "{{node}} read"),
                (f"rate(lockstep_node_disk_written_bytes_total{{{node}}}[$__rate_interval])", "{{node}} written"),
            ],
            "Bytes per second from and to all disks. Reads that never cease: the training data does not fit into "
            "memory. Writes at what the disk can do: checkpoints wait for it.",
            unit="Bps",
            size=(6, 7),
        ),
    ]


def _of_gpus(title: str, queries: list[Query], description: str, unit: str, most: float | None = None) -> AnyPanel:
    return lines(title, queries, description, unit=unit, most=most, none=NO_GPU, size=(8, 7))


def _faults() -> list[AnyPanel]:
    errors = 'gpu:lockstep_xid_error_age_seconds:min15m{node=~"$node"}'
    return [
        rows(
            "XID errors",
            [
                f"{errors} * on (node, gpu, uuid) group_left (job_id, job_name) "
                'topk by (node, gpu, uuid) (1, device:lockstep_allocation:info{device!="cpu"}) '
                f"or {errors} unless on (node, gpu, uuid) device:lockstep_allocation:info"
            ],
            {"node": "Node", "gpu": "GPU", "uuid": "UUID", "xid": "XID", "job_id": "Job", "Value": "Ago"},
            "Critical errors that the driver told of within 15 minutes, and who holds the GPU now. 48, 63, 64, 74, 79, "
            "94 and 95 are broken hardware: take the node out of the cluster. 13, 31 and 43 are most often the code of "
            "the model.",
            links={"Job": ("Open the job", JOB_LINK)},
            size=(12, 7),
            units={"Ago": "s"},
            none="No GPU had an error.",
        ),
        rows(
            "Throttled",
            ['max by (node, gpu, uuid, reason) (lockstep_gpu_throttled{node=~"$node", reason!=""} == 1)'],
            {"node": "Node", "gpu": "GPU", "uuid": "UUID", "reason": "Reason"},
            "GPUs that run slower than they could, and why. sw_power_cap under full load is usual. Heat (thermal) and "
            "power brakes (hw_) are not: look at fans, neighbours and the power supply; every rank of the job waits "
            "for this GPU.",
            size=(12, 7),
            none="No GPU is throttled.",
        ),
    ]


def _power() -> list[AnyPanel]:
    return [
        _of_gpus(
            "Power",
            [
                (held("lockstep_gpu_power_watts"), DEVICE),
                (f"max({held('lockstep_gpu_power_limit_watts')})", "most allowed"),
            ],
            "Power that each GPU draws, and the most that one is allowed. Far below the others of the same job: it "
            "waits for them, or it is throttled.",
            "watt",
        ),
        _of_gpus(
            "Temperature",
            [(held("lockstep_gpu_temperature_celsius"), DEVICE)],
            "Temperature of the chip. Above its neighbours, or above 85 °C: it will slow down; look at fans and air.",
            "celsius",
        ),
        _of_gpus(
            "Clock, of the highest",
            [(held("lockstep_gpu_sm_clock_hertz / lockstep_gpu_sm_clock_max_hertz"), DEVICE)],
            "Clock of the multiprocessors, of the highest that it can be. Low under load: heat, power, or a limit "
            "that somebody set; see Throttled. Low without load is usual.",
            "percentunit",
            1,
        ),
    ]


def _units() -> list[AnyPanel]:
    return [
        _of_gpus(
            "SM occupancy and tensor cores",
            [
                (held("lockstep_gpu_sm_occupancy_ratio"), f"occupancy {DEVICE}"),
                (held("lockstep_gpu_tensor_active_ratio"), f"tensor cores {DEVICE}"),
            ],
            "Resident warps, of those that there could be, and the share of the time in which tensor cores worked. "
            "Low occupancy: small kernels, use larger minibatches. Idle tensor cores: the job computes in full "
            "float32.",
            "percentunit",
            1,
        ),
        _of_gpus(
            "Memory bandwidth",
            [
                (held("lockstep_gpu_memory_bandwidth_ratio or lockstep_gpu_memory_utilization_ratio"), DEVICE),
            ],
            "Share of the memory's bandwidth that is used; where a GPU does not tell, of the time in which memory was "
            "used. Near 1: the job is bound by memory, not by computing; fused kernels help.",
            "percentunit",
            1,
        ),
        _of_gpus(
            "Energy per thousand samples",
            [
                (
                    "1000 * sum by (job_id, job_name) (" + held("rate(lockstep_gpu_energy_joules_total[1m])") + " != 0)"
                    " / on (job_id) group_left () (job:lockstep_samples:rate1m > 0)",
                    "{{job_name}} {{job_id}}",
                )
            ],
            "Joules that the GPUs of a job take for a thousand examples. It rises with more workers: each does less "
            "for its power; give some back.",
            "joule",
        ),
    ]
