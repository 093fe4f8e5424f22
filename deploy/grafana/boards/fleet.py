"""The board Fleet: what is there, who holds it, what is wasted."""

from grafana_foundation_sdk.builders import dashboard

from boards.panels import (
    BLUE,
    GREEN,
    JOB_LINK,
    NODE_LINK,
    RED,
    YELLOW,
    AnyPanel,
    board,
    limits,
    lines,
    node_choice,
    number,
    rows,
)

LIVING = 'and on (job_id) (lockstep_job_state{state!~"succeeded|failed|cancelled"} == 1)'
NODES = 'node=~"$node"'
HELD = f'device:lockstep_utilization:ratio{{job_id!="", {NODES}}}'
IDLE = f"avg_over_time({HELD}[5m]) < 0.1 and {HELD}"


def fleet() -> dashboard.Dashboard:
    made = board("lockstep-fleet", "Fleet", "What the cluster has, who holds it, what is wasted, and what waits.")
    made.with_variable(node_choice())
    for panel in (*_numbers_of_devices(), *_numbers_of_jobs(), *_troubles(), _jobs(), *_curves(), _nodes()):
        made.with_panel(panel)
    return made


def _numbers_of_devices() -> list[AnyPanel]:
    free = f'sum(node:lockstep_devices:count{{state="free", {NODES}}})'
    return [
        number(
            "Allocated",
            [
                (f'sum(node:lockstep_devices:count{{state="allocated", {NODES}}})', "held"),
                (f'sum(node:lockstep_devices:count{{state="usable", {NODES}}})', "of"),
            ],
            "GPUs that jobs hold, of those that Lockstep may use; CPUs on a cluster without GPUs. All held and a long "
            "queue: the cluster is too small, or something is held and idle (see the table below). Few held and a "
            "long queue: the waiting jobs want more than one node or the cluster has free; `lockstep describe` tells "
            "what each waits for.",
            size=(4, 4),
        ),
        number(
            "Free",
            free,
            "GPUs (CPUs on a cluster without GPUs) that no job holds. Warm workers count as free: they give way at "
            "once. Free ones while jobs wait: see what the waiting jobs ask for.",
        ),
        number(
            "Held and idle",
            f"count({IDLE}) or vector(0)",
            "GPUs (workers on CPUs) that a job holds and that were used for less than 10% of the last 5 minutes. "
            "Anything but 0 is money for nothing: the table below names the jobs. Pause or cancel them, or mend what "
            "they wait for.",
            colors=limits((1, YELLOW)),
        ),
        number(
            "Unhealthy",
            f"count(max by (node, device) (device:lockstep_unhealthy:info{{{NODES}}})) or vector(0)",
            "GPUs with an XID error within 15 minutes or throttled by heat or power supply, and nodes whose agent is "
            "silent. Anything but 0: the table of alerts and the board GPU tell which and why; take the node out of "
            "the cluster.",
            colors=limits((1, RED)),
        ),
    ]


def _numbers_of_jobs() -> list[AnyPanel]:
    return [
        number(
            "Jobs",
            [
                ('sum(lockstep_jobs{state=~"starting|running|pausing|cancelling"})', "with workers"),
                ("lockstep_queue_depth", "waiting"),
            ],
            "Jobs that hold workers, and jobs that wait for them. Many wait and the wait grows: add nodes, or free "
            "what is held and idle.",
            size=(4, 4),
        ),
        number(
            "Longest wait",
            "lockstep_queue_oldest_wait_seconds",
            "For how long the oldest job of the queue has waited. Over 10 minutes is over the target. See whether "
            "something is held and idle, and what the job asks for (`lockstep describe`).",
            unit="s",
            colors=limits((300, YELLOW), (600, RED)),
        ),
        number(
            "Goodput",
            "cluster:lockstep_goodput:ratio_rate5m",
            "Share of the time that jobs held GPUs (workers) which went into training steps, over 5 minutes. Below "
            "80%: the picture of where the time went, below, tells whether start-up, checkpoints, recovery or waiting "
            "takes it.",
            unit="percentunit",
            decimals=0,
            colors=limits((0.6, YELLOW), (0.8, GREEN), base=RED),
            size=(4, 4),
            none="no job",
        ),
    ]


def _troubles() -> list[AnyPanel]:
    return [
        rows(
            "Held and idle: which, and by whom",
            [IDLE],
            {
                "node": "Node",
                "device": "Device",
                "job_name": "Job",
                "job_id": "Id",
                "rank": "Rank",
                "Value": "Used",
            },
            "What jobs hold and used for less than 10% of the last 5 minutes: GPUs, and workers on CPUs. Open the "
            "job: its phases tell what it waits for. Pause or cancel it when nobody looks after it.",
            units={"Used": "percentunit"},
            links={"Id": ("Open the job", JOB_LINK)},
            size=(12, 7),
            none="Nothing is held and idle.",
        ),
        rows(
            "Alerts",
            ['max by (alertname, severity, name, job_id, node, gpu, rank) (ALERTS{alertstate="firing"})'],
            {
                "severity": "Severity",
                "alertname": "Alert",
                "job_id": "Job",
                "rank": "Rank",
                "node": "Node",
                "gpu": "GPU",
            },
            "The alerts that fire. critical: work is lost or stands still now. warning: time is being wasted. "
            "docs/observability.md says for each what to do.",
            links={"Job": ("Open the job", JOB_LINK), "Node": ("Open its GPUs", NODE_LINK)},
            size=(12, 7),
            none="No alert fires.",
        ),
    ]


def _queries_of_jobs() -> list[str]:
    """What the columns of the table of jobs show: Value #A, which tells the jobs, to Value #J."""
    states = 'lockstep_job_state{state!~"succeeded|failed|cancelled"} == 1'
    waits = 'job:lockstep_step_phase:ratio_rate1m{phase=~"%s"}'
    return [
        f"max by (job_id, name, owner, model, state) (lockstep_job_info * on (job_id) group_left (state) ({states}))",
        f'max by (job_id) (lockstep_job_workers{{state="held"}}) {LIVING}',
        f"max by (job_id) (lockstep_job_progress_ratio) {LIVING}",
        f"job:lockstep_samples:rate1m {LIVING}",
        f'avg by (job_id) (device:lockstep_utilization:ratio{{job_id!=""}}) {LIVING}',
        f"job:lockstep_goodput:ratio_rate5m {LIVING}",
        f"sum by (job_id) ({waits % 'data|host_to_device'}) {LIVING}",
        f"sum by (job_id) ({waits % 'exchange|exchange_wait'}) {LIVING}",
        f"max by (job_id) (rank:lockstep_straggler_lag:ratio_rate1m) {LIVING}",
        "job:lockstep_step_age_seconds:min",
    ]


def _jobs() -> AnyPanel:
    slow = limits((0.15, YELLOW), (0.3, RED))
    return rows(
        "Jobs: who holds what, and what slows each down",
        _queries_of_jobs(),
        {
            "name": "Job",
            "job_id": "Id",
            "owner": "Owner",
            "model": "Model",
            "state": "State",
            "Value #B": "Workers",
            "Value #C": "Done",
            "Value #D": "Samples/s",
            "Value #E": "Utilization",
            "Value #F": "Goodput",
            "Value #G": "Waits for data",
            "Value #H": "All-reduce",
            "Value #I": "Straggler",
            "Value #J": "Last step",
        },
        "Every job that has not ended. Waits for data: share of the steps that gathers examples; over 30% the job "
        "is input-bound, give it more CPUs. All-reduce: share that is not hidden behind computing; with a high "
        "Straggler (how much less one rank waits than the others) one slow device holds up all, otherwise the "
        "network does, or the job has too many workers for its minibatch. Last step, while it runs: minutes "
        "instead of seconds mean that it hangs.",
        key="job_id",
        units={
            "Done": "percentunit",
            "Samples/s": "short",
            "Utilization": "percentunit",
            "Goodput": "percentunit",
            "Waits for data": "percentunit",
            "All-reduce": "percentunit",
            "Straggler": "percentunit",
            "Last step": "s",
        },
        colors={
            "Utilization": limits((0.1, YELLOW), (0.5, GREEN), base=RED),
            "Goodput": limits((0.6, YELLOW), (0.8, GREEN), base=RED),
            "Waits for data": slow,
            "All-reduce": slow,
            "Straggler": limits((0.1, YELLOW), (0.15, RED)),
            "Last step": limits((60, YELLOW), (300, RED)),
        },
        links={"Id": ("Open the job", JOB_LINK)},
        size=(24, 9),
        none="There is no job.",
    )


def _curves() -> list[AnyPanel]:
    return [
        lines(
            "Utilization of what is held",
            [(f'avg by (node) (device:lockstep_utilization:ratio{{job_id!="", {NODES}}})', "{{node}}")],
            "Share of the time in which some kernel ran on the GPUs that jobs hold, by node; on CPUs the CPU time of "
            "the workers, of what they hold. Low: jobs wait, see the table above. High says little by itself: a GPU "
            "that waits inside an all-reduce counts as busy, so look at the activity next to it.",
            unit="percentunit",
            most=1,
        ),
        lines(
            "SM activity of what is held",
            [(f'avg by (node) (device:lockstep_activity:ratio{{job_id!="", {NODES}}})', "{{node}}")],
            "Share of the time in which the multiprocessors had work; where GPUs do not tell that, and on CPUs, the "
            "share of the time in which ranks compute. Much lower than the utilization: small kernels, or waiting for "
            "others. Larger minibatches or fewer workers per job help.",
            unit="percentunit",
            most=1,
        ),
        lines(
            "Where the time goes",
            [("cluster:lockstep_device_seconds:rate5m", "{{cause}}")],
            "How many GPUs (workers, on a cluster without GPUs) each cause takes, over 5 minutes. productive is what "
            "you pay for. Much start_up: jobs are too short, or restart often. checkpoint: the checkpoint folder is "
            "slow. healing: workers die. no job: there is room.",
            is_stacked=True,
        ),
        lines(
            "Queue",
            [("lockstep_queue_depth", "jobs that wait"), ('sum(lockstep_jobs{state="running"})', "jobs that train")],
            "How many jobs wait and how many train. A queue that only grows: the cluster is too small for what is "
            "asked of it, or jobs hold more than they use.",
            size=(12, 7),
        ),
        lines(
            "Waiting and starting",
            [
                (
                    "histogram_quantile(0.9, sum by (le) (rate(lockstep_queue_wait_seconds_bucket[30m])))",
                    "in the queue, 9 of 10",
                ),
                (
                    "histogram_quantile(0.9, sum by (le) (rate(lockstep_startup_seconds_bucket[30m])))",
                    "from its workers to the first step, 9 of 10",
                ),
            ],
            "How long nine of ten jobs of the last 30 minutes waited for workers, and then for their first step. A "
            "long start is data that is far away, or no warm workers (`--warm-workers`).",
            unit="s",
            size=(12, 7),
        ),
    ]


def _nodes() -> AnyPanel:
    return rows(
        "Nodes",
        [
            f'sum by (node) (node:lockstep_devices:count{{state="usable", {NODES}}})',
            f'sum by (node) (node:lockstep_devices:count{{state="allocated", {NODES}}})',
            f'sum by (node) (node:lockstep_devices:count{{state="free", {NODES}}})',
            f"avg by (node) (device:lockstep_utilization:ratio{{{NODES}}})",
            f"max by (node) (lockstep_node_cpu_utilization_ratio{{{NODES}}})",
            f"max by (node) (lockstep_node_memory_used_bytes{{{NODES}}} / lockstep_node_memory_total_bytes)",
            f"max by (node) (lockstep_node_disk_used_bytes{{{NODES}}} / lockstep_node_disk_total_bytes)",
            f'sum by (node) (lockstep_node_workers{{state="warm", {NODES}}})',
            f"max by (node) (lockstep_node_telemetry_age_seconds{{{NODES}}})",
        ],
        {
            "node": "Node",
            "Value #A": "Usable",
            "Value #B": "Held",
            "Value #C": "Free",
            "Value #D": "Utilization",
            "Value #E": "CPUs busy",
            "Value #F": "Memory",
            "Value #G": "Disk",
            "Value #H": "Warm workers",
            "Value #I": "Last heard of",
        },
        "Each node: its GPUs (CPUs on a cluster without GPUs) by who holds them, and how busy the machine is. CPUs "
        "all busy beside idle GPUs: the data is prepared too slowly. Memory over 95%: workers will be killed. Disk "
        "over 95%: Ray starts no worker there. No time under Last heard of: the machine is overloaded or cut off.",
        key="node",
        units={
            "Utilization": "percentunit",
            "CPUs busy": "percentunit",
            "Memory": "percentunit",
            "Disk": "percentunit",
            "Last heard of": "s",
        },
        colors={
            "Free": limits((1, BLUE), base=GREEN),
            "Memory": limits((0.85, YELLOW), (0.95, RED)),
            "Disk": limits((0.85, YELLOW), (0.95, RED)),
            "Last heard of": limits((5, YELLOW), (10, RED)),
        },
        links={"Node": ("Open its devices", NODE_LINK)},
        size=(24, 8),
        none="No node has joined.",
    )
