"""The board Service: the server itself."""

from grafana_foundation_sdk.builders import dashboard

from boards.panels import GREEN, RED, YELLOW, AnyPanel, board, limits, lines, number

METHOD = "{{grpc_method}}"


def service() -> dashboard.Dashboard:
    made = board("lockstep-service", "Service", "The server: its calls, its store, its streams, its own load.")
    for panel in (*_standing(), *_load(), *_calls(), *_inside()):
        made.with_panel(panel)
    return made


def _standing() -> list[AnyPanel]:
    yes_no = limits((1, GREEN), base=RED)
    words = {"0": "no", "1": "yes"}
    return [
        number(
            "Answers",
            'max(up{job="lockstep"})',
            "yes while Prometheus can scrape the server. no: it is down, or the address in prometheus.yml is wrong. "
            "Jobs that train go on meanwhile.",
            colors=yes_no,
            words=words,
        ),
        number(
            "Version",
            [("lockstep_build_info", "{{version}} · {{engine_version}}")],
            "Version of the server and of its arithmetic. Jobs of another engine version give other bits: compare "
            "curves only within one.",
            shows_name=True,
        ),
        number(
            "Launcher",
            "lockstep_launcher_up",
            "yes while the process that starts workers is in service. no: no job can start or recover; the log of the "
            "server tells why it ended.",
            colors=yes_no,
            words=words,
        ),
        number(
            "Cluster",
            "lockstep_cluster_ready",
            "yes while there is a Ray cluster on which jobs can start. no: `lockstep nodes` tells the reason.",
            colors=yes_no,
            words=words,
        ),
    ]


def _load() -> list[AnyPanel]:
    return [
        number(
            "Calls that fail",
            "sum(method:lockstep_rpc_errors:rate5m) / (sum(rate(grpc_server_handled_total[5m])) > 0)",
            "Share of the calls of the last 5 minutes that ended with an error of the server, not of the caller. Over "
            "5%: the picture Errors tells which; the log of the server has the trace of each INTERNAL.",
            unit="percentunit",
            decimals=1,
            colors=limits((0.01, YELLOW), (0.05, RED)),
            none="no call",
        ),
        number(
            "Open streams",
            "lockstep_watchers",
            "Calls that watch a job, its metrics or its logs. Thousands: somebody opens them in a loop and "
            "does not close them.",
        ),
        number(
            "Memory of the server",
            'process_resident_memory_bytes{job="lockstep"}',
            "Memory of the server process. It grows for days without more jobs or streams: report it, and restart the "
            "server at leisure; jobs go on.",
            unit="bytes",
        ),
        number(
            "Finished within 15 minutes",
            [
                ('sum(cluster:lockstep_jobs_ended:count15m{state="succeeded"}) or vector(0)', "well"),
                ('sum(cluster:lockstep_jobs_ended:count15m{state="failed"}) or vector(0)', "failed"),
            ],
            "Jobs that ended. Failures of many users at once point to the cluster, of one user to the job: How jobs "
            "end, below, has the reasons.",
        ),
    ]


def _calls() -> list[AnyPanel]:
    return [
        lines(
            "Calls per second",
            [("sum by (grpc_method) (method:lockstep_rpcs:rate1m) > 0", METHOD)],
            "Calls that come in, by method. A method far above its usual rate: somebody polls in a loop; WatchJob and "
            "StreamMetrics spare that. Workers report by themselves.",
            unit="reqps",
        ),
        lines(
            "Errors",
            [
                (
                    "sum by (grpc_method, grpc_code) "
                    '(rate(grpc_server_handled_total{grpc_code!="OK"}[$__rate_interval]))',
                    "{{grpc_method}} {{grpc_code}}",
                )
            ],
            "Calls that did not end with OK. INTERNAL, UNKNOWN, UNAVAILABLE and DATA_LOSS are the server's: see its "
            "log. INVALID_ARGUMENT, NOT_FOUND and the like are the callers'; CANCELLED is a stream that somebody "
            "closed.",
            unit="reqps",
            none="Every call ended well.",
        ),
        lines(
            "Slowest calls",
            [("max by (grpc_method) (method:lockstep_rpc_seconds:p99_rate5m)", METHOD)],
            "How long 99 of 100 calls take at most, streams left out. All methods slow together: the event loop or "
            "the disk of the store, see below. One method alone: large pages or checkpoints.",
            unit="s",
            limit=1,
        ),
    ]


def _quantiles(metric: str) -> list[tuple[str, str]]:
    rate = f"sum by (le) (rate({metric}_bucket[$__rate_interval]))"
    return [
        (f"histogram_quantile(0.5, {rate})", "half"),
        (f"histogram_quantile(0.99, {rate})", "99 of 100"),
    ]


def _inside() -> list[AnyPanel]:
    return [
        lines(
            "Store: time of a commit",
            _quantiles("lockstep_store_commit_seconds"),
            "How long the store takes to make changes durable. Over 100 ms: its disk is slow or shared; submits, and "
            "reports of all jobs, wait for it. Put the data folder on a local SSD.",
            unit="s",
            limit=0.1,
        ),
        lines(
            "Store: changes in a commit",
            _quantiles("lockstep_store_commit_changes"),
            "How many changes one commit carries. Growing with the time of a commit: the store is at its limit, and "
            "changes queue up; let jobs log less often (`training.log_every_steps`).",
        ),
        lines(
            "Metric points",
            [
                ("rate(lockstep_points_stored_total[$__rate_interval])", "stored"),
                ("rate(lockstep_points_repeated_total[$__rate_interval])", "came again, dropped"),
            ],
            "Points of metrics per second. Repeated ones come after a heal or a restart, and are harmless; many of "
            "them for long mean that answers to workers are lost, or that jobs restart again and again.",
            unit="ops",
        ),
        lines(
            "Event loop: lag",
            _quantiles("lockstep_event_loop_lag_seconds"),
            "How late the server gets to what it has to do. Over 100 ms: it is overloaded or its machine is; every "
            "call and every heartbeat is late by that. Give it a CPU of its own.",
            unit="s",
            limit=0.1,
        ),
        lines(
            "Streams",
            [("lockstep_watchers", "open")],
            "Calls open to watch jobs, metrics and logs. A steady climb: clients that do not close what they open.",
        ),
        lines(
            "Load of the server",
            [
                ('rate(process_cpu_seconds_total{job="lockstep"}[$__rate_interval])', "CPUs"),
            ],
            "CPUs that the server process uses. Near 1: it is at its limit, since one thread does nearly all; fewer "
            "streams and less frequent logging of jobs relieve it.",
            size=(8, 8),
        ),
        lines(
            "How jobs end",
            [("cluster:lockstep_jobs_ended:count15m", "{{state}} {{reason}}")],
            "Jobs that ended within 15 minutes, by how. WORKER_LOST: nodes or memory. DATA_INVALID, USER_ERROR, "
            "NON_FINITE_LOSS, NOT_DETERMINISTIC: the job. PLACEMENT_FAILED: it asks for more than there is. "
            "RANKS_DISAGREE, INTERNAL: report it.",
            size=(24, 7),
            none="No job has ended.",
        ),
    ]
