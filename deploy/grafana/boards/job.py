"""The board Job: how far it is, how well it learns, and why it is not faster."""

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as model

from boards.panels import (
    DEVICE,
    GREEN,
    RED,
    YELLOW,
    AnyPanel,
    Event,
    board,
    heat,
    job_choice,
    limits,
    lines,
    number,
    on_the_right,
    rank_choice,
)

JOB = 'job_id="$job"'
RANKS = f'{JOB}, rank=~"$rank"'


def job() -> dashboard.Dashboard:
    made = board("lockstep-job", "Job", "One job: how far it is, how well it learns, and why it is not faster.")
    made.with_variable(job_choice(has_all=False)).with_variable(rank_choice())
    heals, restarts = f"lockstep_job_heals_total{{{JOB}}}", f"lockstep_job_restarts_total{{{JOB}}}"
    made.annotation(Event("Healed", heals, "A worker was lost; the others went on.", "orange"))
    made.annotation(Event("Restarted", restarts, "All workers were lost; it begins anew from its checkpoint.", RED))
    devices = "/d/lockstep-gpu/gpu?var-job=${job}&var-datasource=${datasource}&${__url_time_range}"
    made.link(dashboard.DashboardLink("Its GPUs").type(model.DashboardLinkType.LINK).url(devices).icon("external link"))
    for panel in (*_progress(), *_health(), *_learning(), *_speed(), *_time(), *_devices()):
        made.with_panel(panel)
    return made


def _progress() -> list[AnyPanel]:
    left = f"(lockstep_job_total_steps{{{JOB}}} - lockstep_job_step{{{JOB}}})"
    return [
        number(
            "State",
            [(f"lockstep_job_state{{{JOB}}} == 1", "{{state}}")],
            "What the job does. queued for long: see who holds what on the board Fleet. starting for more than 10 "
            "minutes, or failed: `lockstep describe` and the logs tell why.",
            shows_name=True,
        ),
        number(
            "Done",
            f"lockstep_job_progress_ratio{{{JOB}}}",
            "Share of its steps that are taken. It stands still while the job runs: look at Last step. It falls back "
            "after a restart: the steps since the checkpoint are taken anew.",
            unit="percentunit",
            decimals=1,
        ),
        number(
            "Ends",
            f"(time() + {left} / on (job_id) (job:lockstep_steps:rate5m{{{JOB}}} > 0)) * 1000 "
            f'and on (job_id) lockstep_job_state{{{JOB}, state="running"}} == 1',
            "When it will be done at the speed of the last 5 minutes, a pause among them; it may stop early. It moves "
            "away: the job got slower, and the pictures below tell of what.",
            unit="dateTimeFromNow",
            none="does not train",
        ),
        number(
            "Workers",
            [
                (f'lockstep_job_workers{{{JOB}, state="wanted"}}', "wanted"),
                (f'lockstep_job_workers{{{JOB}, state="running"}}', "train"),
            ],
            "Workers that the job wants, and that train now. Fewer train than are wanted: workers were lost or the "
            "cluster has no room; the job goes on and takes them back when it can, with the same curve.",
        ),
    ]


def _health() -> list[AnyPanel]:
    return [
        number(
            "Goodput",
            f"job:lockstep_goodput:ratio_rate5m{{{JOB}}}",
            "Share of the time of its workers that goes into training steps, over 5 minutes. Below 80%: Where the "
            "time goes, below, tells whether validation, checkpoints, recovery or start-up takes the rest.",
            unit="percentunit",
            decimals=0,
            colors=limits((0.6, YELLOW), (0.8, GREEN), base=RED),
        ),
        number(
            "Last step",
            f"job:lockstep_step_age_seconds:min{{{JOB}}}",
            "How long ago a step was taken, or, before the first one, the job began to train. Minutes instead of "
            "seconds: it validates for long, or it hangs. Read its logs; pause or cancel it to free what it holds.",
            unit="s",
            colors=limits((60, YELLOW), (300, RED)),
            none="does not run",
        ),
        number(
            "Steps at risk",
            f"job:lockstep_steps_at_risk:count{{{JOB}}}",
            "Steps since the newest checkpoint: so many are taken anew if all workers are lost. More than three times "
            "the checkpoint interval: the checkpoint folder is slow, full or not writable; the log of the job tells.",
        ),
        number(
            "Recoveries",
            [
                (f"lockstep_job_heals_total{{{JOB}}}", "heals"),
                (f"lockstep_job_restarts_total{{{JOB}}}", "restarts"),
            ],
            "How often the job went on without a lost worker, and how often it began anew from a checkpoint since all "
            "were lost. Either grows again and again: `lockstep describe` tells how the workers ended; out of memory "
            "is frequent.",
        ),
    ]


def _learning() -> list[AnyPanel]:
    return [
        lines(
            "Loss",
            [(f'lockstep_job_metric{{{JOB}, name=~".*loss"}}', "{{name}}")],
            "Newest losses. Validation rises while training falls: the model overfits, stop it. Both rise or end: it "
            "diverges, lower the learning rate. Prometheus keeps a sample every few seconds; `lockstep metrics` has "
            "every point.",
            least=None,
        ),
        lines(
            "Accuracy",
            [(f'lockstep_job_metric{{{JOB}, name=~".*accuracy"}}', "{{name}}")],
            "Newest accuracies. At the level of chance for long: the learning rate or the data is wrong. Training far "
            "above validation: the model overfits.",
            unit="percentunit",
            most=1,
            none="This job reports no accuracy.",
        ),
        lines(
            "Gradient norm, learning rate and others",
            [(f'lockstep_job_metric{{{JOB}, name!~".*(loss|accuracy)"}}', "{{name}}")],
            "All other result metrics. A gradient norm that jumps by orders of magnitude announces divergence: clip "
            "gradients or lower the learning rate.",
            least=None,
        ),
    ]


def _speed() -> list[AnyPanel]:
    count = f"count(device:lockstep_allocation:info{{{JOB}}})"
    return [
        lines(
            "Samples per second",
            [
                (f"job:lockstep_samples:rate1m{{{JOB}}}", "all"),
                (f"job:lockstep_samples:rate1m{{{JOB}}} / on () {count}", "per GPU (worker)"),
            ],
            "Examples trained on per second, in all and per GPU (per worker on CPUs). In all flat while workers were "
            "added, and so per GPU falling: the all-reduce or the data is the limit; give workers back. A step down "
            "without a heal: look for a straggler and for throttling.",
        ),
        lines(
            "Time of a step",
            [
                (
                    "histogram_quantile(0.5, sum by (le) "
                    f"(rate(lockstep_step_duration_seconds_bucket{{{JOB}}}[$__rate_interval])))",
                    "half",
                ),
                (
                    "histogram_quantile(0.99, sum by (le) "
                    f"(rate(lockstep_step_duration_seconds_bucket{{{JOB}}}[$__rate_interval])))",
                    "99 of 100",
                ),
            ],
            "How long half of the steps, and 99 of 100, take at most. The two far apart: something disturbs single "
            "steps, such as other load on a node, a slow disk or checkpoints.",
            unit="s",
        ),
        lines(
            "Computing speed",
            [
                (f"job:lockstep_flops:rate5m{{{JOB}}}", "FLOP/s"),
                (f"job:lockstep_flops_utilization:ratio_rate5m{{{JOB}}}", "of the GPUs' peak"),
            ],
            "Floating-point operations of matrix products and convolutions per second, and their share of what the "
            "GPUs can do in single precision, where that is known. A few percent: the model is too small for a GPU, "
            "or waits; use larger minibatches or fewer workers.",
            none="Its operations are not counted yet.",
        ).override_by_name("of the GPUs' peak", on_the_right("percentunit")),
    ]


def _time() -> list[AnyPanel]:
    phases = f"rank:lockstep_phase_seconds:rate1m{{{RANKS}}}"
    share = f"job:lockstep_step_phase:ratio_rate1m{{{JOB}, phase"
    return [
        lines(
            "Where the time goes",
            [(f"sum by (phase) ({phases}) / on () group_left () (sum({phases}) > 0)", "{{phase}}")],
            "The time of the chosen ranks by phase; it adds up to 1. forward, backward and optimizer are "
            "the work. data and host_to_device: input-bound, give more CPUs. exchange: the network. exchange_wait: "
            "waiting for slower ranks, see the next two. checkpoint, validation: do them less often. healing, "
            "start_up: workers die.",
            unit="percentunit",
            most=1,
            is_stacked=True,
            size=(12, 9),
        ),
        lines(
            "What keeps the steps from computing",
            [
                (f'sum({share}=~"exchange|exchange_wait"}})', "all-reduce that is not hidden"),
                (f'sum({share}="exchange_wait"}})', "of it, waiting for others"),
                (f'sum({share}=~"data|host_to_device"}})', "data"),
                (f"max(rank:lockstep_straggler_lag:ratio_rate1m{{{JOB}}})", "lag of the slowest rank"),
            ],
            "Shares of the time of a step. Data over 30%: input-bound. All-reduce over 30%: too many workers for the "
            "size of the minibatch, or a slow network; when the lag of the slowest rank is as high, one device is the "
            "cause: the map below shows which.",
            unit="percentunit",
            most=1,
            limit=0.3,
            size=(12, 9),
        ),
        heat(
            "Waiting for the others, by rank",
            (f'rank:lockstep_step_phase:ratio_rate1m{{{RANKS}, phase="exchange_wait"}}', "rank {{rank}}"),
            "How much of its steps each rank waits for others. The straggler is the green row among red ones: it "
            "waits least, and everyone waits for it. Look at its node for other load, throttling and a slow disk. All "
            "green is good.",
        ),
        heat(
            "Utilization, by rank",
            (f"device:lockstep_utilization:ratio{{{RANKS}}}", "rank {{rank}} · {{node}} {{device}}"),
            "How busy the GPU (the CPUs) of each rank is. One row redder than the others is a rank that waits or "
            "whose device is broken; all red is a job that holds more than it uses: look at where its time goes.",
            high_is_good=True,
        ),
    ]


def _devices() -> list[AnyPanel]:
    return [
        lines(
            "Memory, by rank",
            [(f"device:lockstep_memory_used_bytes:sum{{{RANKS}}}", DEVICE)],
            "Memory in use on the GPU of each rank; on CPUs that of the worker process. It grows steadily: something "
            "is kept from step to step, and the worker will be killed for lack of memory.",
            unit="bytes",
            size=(12, 8),
        ),
        lines(
            "Memory of the worker processes",
            [(f"lockstep_worker_memory_bytes{{{RANKS}}}", "rank {{rank}}")],
            "Memory of the host that each worker takes, the training data among it. The node's memory is shared by "
            "all of its workers: when the sum nears it, the kernel kills one, and the job heals again and again.",
            unit="bytes",
            size=(12, 8),
        ),
    ]
