"""What all boards are made of: panels with a query and a description, variables, links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statushistory,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
GREEN, YELLOW, RED, BLUE = "green", "#EAB839", "red", "blue"
DEVICE = "{{node}} {{device}} · {{job_name}} {{job_id}} rank {{rank}}"
"""Legend of a series of the device families."""
# Links of a cell that shows the id of a job, or the name of a node.
JOB_LINK = "/d/lockstep-job/job?var-job=${__value.text}&var-datasource=${datasource}&${__url_time_range}"
NODE_LINK = "/d/lockstep-gpu/gpu?var-node=${__value.text}&var-datasource=${datasource}&${__url_time_range}"

Query = tuple[str, str]
"""PromQL and legend."""
AnyPanel = Builder[model.Panel]
Panel = TypeVar("Panel", stat.Panel, timeseries.Panel, statushistory.Panel, table.Panel, bargauge.Panel)


def limits(*steps: tuple[float, str], base: str = GREEN) -> dashboard.ThresholdsConfig:
    """Colours from each value on; `base` below the first."""
    thresholds = [model.Threshold(None, base), *(model.Threshold(value, color) for value, color in steps)]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(thresholds)


def _dress(panel: Panel, title: str, description: str, size: tuple[int, int]) -> Panel:
    width, height = size
    return panel.title(title).description(description).datasource(SOURCE).span(width).height(height)


def _query(number: int, expr: str, legend: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id(LETTERS[number]).expr(expr).legend_format(legend).datasource(SOURCE)


def number(
    title: str,
    queries: str | Sequence[Query],
    description: str,
    *,
    unit: str = "short",
    colors: dashboard.ThresholdsConfig | None = None,
    size: tuple[int, int] = (3, 4),
    decimals: int | None = None,
    shows_name: bool = False,
    words: Mapping[str, str] | None = None,
    none: str = "-",
) -> stat.Panel:
    """One number each query, as it is now; in words where there are some. `shows_name` shows the legend instead."""
    panel = _dress(stat.Panel(), title, description, size).unit(unit).no_value(none)
    panel.thresholds(colors or limits(base=BLUE)).graph_mode(common_model.BigValueGraphMode.NONE)
    panel.color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    if decimals is not None:
        panel.decimals(decimals)
    if words:
        panel.mappings([model.ValueMap({value: model.ValueMappingResult(text=text) for value, text in words.items()})])
    if shows_name:
        panel.text_mode(common_model.BigValueTextMode.NAME)
    pairs = [(queries, "")] if isinstance(queries, str) else queries
    for place, (expr, legend) in enumerate(pairs):
        panel.with_target(_query(place, expr, legend).instant())
    return panel


def lines(
    title: str,
    queries: Sequence[Query],
    description: str,
    *,
    unit: str = "short",
    size: tuple[int, int] = (8, 8),
    is_stacked: bool = False,
    most: float | None = None,
    least: float | None = 0,
    limit: float | None = None,
    none: str = "No data",
) -> timeseries.Panel:
    """Lines over time, or areas on top of each other; `limit` draws a red line where it becomes bad."""
    panel = _dress(timeseries.Panel(), title, description, size).unit(unit).no_value(none)
    panel.fill_opacity(60 if is_stacked else 8).line_width(1).show_points(common_model.VisibilityMode.NEVER)
    panel.tooltip(
        common.VizTooltipOptions().mode(common_model.TooltipDisplayMode.MULTI).sort(common_model.SortOrder.DESCENDING)
    )
    legend = common.VizLegendOptions().show_legend(True).placement(common_model.LegendPlacement.BOTTOM)
    panel.legend(legend.display_mode(common_model.LegendDisplayMode.TABLE).calcs(["lastNotNull", "max"]))
    if is_stacked:
        panel.stacking(common.StackingConfig().mode(common_model.StackingMode.NORMAL))
    if least is not None:
        panel.min(least)
    if most is not None:
        panel.max(most)
    if limit is not None:
        panel.thresholds(limits((limit, RED), base="transparent"))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(common_model.GraphThresholdsStyleMode.DASHED))
    for place, (expr, text) in enumerate(queries):
        panel.with_target(_query(place, expr, text).range())
    return panel


def heat(
    title: str, query: Query, description: str, *, size: tuple[int, int] = (12, 9), high_is_good: bool = False
) -> statushistory.Panel:
    """A row of coloured cells for each series, over time: of two ends of a share, the bad one is red."""
    panel = _dress(statushistory.Panel(), title, description, size).unit("percentunit").min(0).max(1).decimals(0)
    ramp = model.FieldColorModeId.CONTINUOUS_RD_YL_GR if high_is_good else model.FieldColorModeId.CONTINUOUS_GR_YL_RD
    panel.color_scheme(dashboard.FieldColor().mode(ramp))
    panel.show_value(common_model.VisibilityMode.NEVER).row_height(0.9).max_data_points(100)
    panel.legend(common.VizLegendOptions().show_legend(False))
    return panel.with_target(_query(0, *query).range())


def rows(
    title: str,
    queries: Sequence[str],
    columns: Mapping[str, str],
    description: str,
    *,
    key: str = "",
    units: Mapping[str, str] | None = None,
    colors: Mapping[str, dashboard.ThresholdsConfig] | None = None,
    links: Mapping[str, tuple[str, str]] | None = None,
    size: tuple[int, int] = (24, 8),
    none: str = "None",
) -> table.Panel:
    """A table of what is so now.

    Args:
        title: of the panel.
        queries: the first gives the rows; the values of the others are joined to them by `key`.
        columns: field to heading, in order; a field is a label, or "Value #A" of query A ("Value" of a single one).
        description: of the panel.
        key: the label that is the same in all queries.
        units: Grafana's units by heading.
        colors: by heading.
        links: title and address by heading.
        size: columns of 24, and rows.
        none: shown when there is nothing.
    """
    panel = _dress(table.Panel(), title, description, size).no_value(none).filterable(True)
    for place, expr in enumerate(queries):
        panel.with_target(_query(place, expr, "").instant().format(PromQueryFormat.TABLE))
    if key:
        panel.with_transformation(_transformation("joinByField", byField=key, mode="outer"))
    panel.with_transformation(_transformation("filterFieldsByName", include={"names": list(columns)}))
    order = {field: place for place, field in enumerate(columns)}
    panel.with_transformation(
        _transformation("organize", indexByName=order, renameByName=dict(columns), excludeByName={})
    )
    overrides: dict[str, list[model.DynamicConfigValue]] = {}
    for heading, unit in (units or {}).items():
        overrides.setdefault(heading, []).append(model.DynamicConfigValue("unit", unit))
    for heading, thresholds in (colors or {}).items():
        values = [("thresholds", thresholds.build()), ("custom.cellOptions", {"type": "color-text"})]
        overrides.setdefault(heading, []).extend(model.DynamicConfigValue(name, value) for name, value in values)
    for heading, (text, url) in (links or {}).items():
        link = [{"title": text, "url": url}]
        overrides.setdefault(heading, []).append(model.DynamicConfigValue("links", link))
    for heading, properties in overrides.items():
        panel.override_by_name(heading, properties)
    return panel


def on_the_right(unit: str) -> list[model.DynamicConfigValue]:
    """Give a line an axis of its own."""
    return [model.DynamicConfigValue("custom.axisPlacement", "right"), model.DynamicConfigValue("unit", unit)]


def _transformation(name: str, **options: Any) -> model.DataTransformerConfig:
    return model.DataTransformerConfig(id_val=name, options=options)


def board(uid: str, title: str, description: str) -> dashboard.Dashboard:
    """A board that knows its data source and leads to the others."""
    made = dashboard.Dashboard(f"Lockstep / {title}").uid(uid).description(description).tags(["lockstep"])
    made.time("now-1h", "now").refresh("10s").timezone("browser").readonly()
    made.tooltip(model.DashboardCursorSync.CROSSHAIR)
    link = dashboard.DashboardLink("Boards").type(model.DashboardLinkType.DASHBOARDS).tags(["lockstep"])
    made.link(link.keep_time(True))
    return made.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))


def choice(name: str, label: str, query: str, *, has_all: bool = True, regex: str = "") -> dashboard.QueryVariable:
    """A variable whose values a query tells; many and all of them may be chosen, or one."""
    made = dashboard.QueryVariable(name).label(label).query({"query": query, "refId": name}).datasource(SOURCE)
    made.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.ALPHABETICAL_ASC)
    if regex:
        made.regex(regex)
    return made.multi(True).include_all(True).all_value(".*") if has_all else made


def node_choice() -> dashboard.QueryVariable:
    return choice("node", "Node", "label_values(lockstep_node_info, node)")


def job_choice(*, has_all: bool) -> dashboard.QueryVariable:
    """Jobs by name and id, those that have ended within the time that the board shows among them."""
    named = 'label_join(last_over_time(lockstep_job_info[$__range]), "title", " ", "name", "job_id")'
    regex = '/job_id="(?<value>[^"]+)".*title="(?<text>[^"]+)"/'
    return choice("job", "Job", f"query_result({named})", has_all=has_all, regex=regex)


def rank_choice() -> dashboard.QueryVariable:
    return choice("rank", "Rank", 'label_values(lockstep_worker_info{job_id=~"$job"}, rank)')


class _Mark(model.AnnotationQuery):
    """An annotation with the fields of Prometheus' own that the SDK does not know."""

    said = ""

    def to_json(self) -> dict[str, object]:
        return super().to_json() | {"step": "15s", "titleFormat": self.name, "textFormat": self.said, "tagKeys": ""}


class Event(Builder[model.AnnotationQuery]):
    """A mark on every picture, wherever a counter has grown."""

    def __init__(self, name: str, counter: str, said: str, color: str) -> None:
        # One sample more than a step, so that growth between two steps is seen.
        self._mark = _Mark(name, SOURCE, True, icon_color=color, expr=f"changes({counter}[20s]) > 0")
        self._mark.said = said

    def build(self) -> model.AnnotationQuery:
        """Return the annotation."""
        return self._mark
