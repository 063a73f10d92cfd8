"""Writes dashboard.json, rules.yml and rules_test.yml, beside itself: `python -m gcp.observe.grafana.generate`.

For developers: needs grafana-foundation-sdk, which nothing imports at run time. Tests hold that what it makes is what
is checked in."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from gcp.observe.grafana import DASHBOARD, RULES, RULES_TEST, alerts, panels

SOURCE = model.DataSourceRef(type_val='prometheus', uid='${datasource}')
LETTERS = 'ABCDEFGH'
HEIGHTS = {'stat': 4, 'table': 7}
MADE = '# Made by `python -m gcp.observe.grafana.generate` from gcp/observe/grafana/alerts.py: change it there.\n'


# --- the dashboard ---

def write_dashboard() -> str:
    """Return the dashboard as Grafana imports it."""
    board = make_board()
    for variable in panels.VARIABLES:
        board.with_variable(make_variable(variable))
    number = 0
    for row in panels.ROWS:
        number += 1
        board.with_row(dashboard.Row(row.title).id(number))
        for panel in row.panels:
            number += 1
            board.with_panel(MAKERS[panel.kind](panel).id(number))
    made = json.loads(json.dumps(board.build(), cls=JSONEncoder))
    for choice in made['templating']['list']:
        for meant_for_intervals in ('auto', 'auto_min', 'auto_count'):
            del choice[meant_for_intervals]
    for annotation in made['annotations']['list']:
        annotation |= {'titleFormat': '{{alertname}}', 'textFormat': '{{pool}} on {{instance}}', 'step': '30s'}
    return json.dumps(made, indent=2) + '\n'


def make_board() -> Any:
    """Begin a dashboard that shows the last hour, and when an alert fired."""
    return (
        dashboard.Dashboard('gcpool: connection pools')
        .uid('gcpool')
        .description('Connection pools: are they large enough, who holds connections, is the server slow to accept, do '
                     'connections last. Made from code, read-only: save a copy to change it.')
        .tags(['gcpool', 'connection-pool', 'python'])
        .readonly()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .time('now-1h', 'now')
        .timezone('browser')
        .refresh('30s')
        .with_variable(dashboard.DatasourceVariable('datasource').label('Data source').type('prometheus'))
        .annotation(
            dashboard.AnnotationQuery().name('Alerts').datasource(SOURCE).enable(True).icon_color('red')
            .expr(f'ALERTS{{alertstate="firing", component="gcpool", {panels.POOL}}}')))


def make_variable(variable: panels.Variable) -> Any:
    return (
        dashboard.QueryVariable(variable.name)
        .label(variable.name.replace('_', ' ').capitalize())
        .description(variable.help)
        .datasource(SOURCE)
        .query(variable.query)
        .current(model.VariableOption(selected=True, text=['All'], value=['$__all']))
        .multi(True)
        .include_all(True)
        .all_value(variable.everything)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC))


def begin(builder: Any, panel: panels.Panel) -> Any:
    """Set what all panels have."""
    builder.title(panel.title).description(panel.help).datasource(SOURCE).unit(panel.unit)
    builder.span(panel.width).height(HEIGHTS.get(panel.kind, 8))
    for letter, query in zip(LETTERS, panel.queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).datasource(SOURCE).expr(query.expr).legend_format(query.legend)
        if panel.kind == 'heatmap':
            target.format(PromQueryFormat.HEATMAP)
        if panel.kind == 'table':
            target.format(PromQueryFormat.TABLE).instant()
        else:
            target.range()
        builder.with_target(target.exemplar(query.exemplars))
    return builder


def make_stat(panel: panels.Panel) -> Any:
    steps = [model.Threshold(None, 'green'), *(model.Threshold(value, color) for value, color in panel.steps)]
    return (
        begin(stat.Panel(), panel)
        .thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .reduce_options(common.ReduceDataOptions().calcs(['lastNotNull']).values(False))
        .graph_mode(shapes.BigValueGraphMode.AREA)
        .color_mode(shapes.BigValueColorMode.VALUE)
        .no_value('-'))


def make_timeseries(panel: panels.Panel) -> Any:
    builder = (
        begin(timeseries.Panel(), panel)
        .min(0)
        .line_width(1)
        .fill_opacity(25 if panel.stacked else 8)
        .show_points(shapes.VisibilityMode.NEVER)
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .legend(common.VizLegendOptions().show_legend(True).display_mode(shapes.LegendDisplayMode.LIST)
                .placement(shapes.LegendPlacement.BOTTOM).calcs([]))
        .tooltip(common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.DESCENDING)))
    if panel.stacked:
        builder.stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL).group('A'))
    if panel.line is not None:
        steps = [model.Threshold(None, 'transparent'), model.Threshold(panel.line, 'red')]
        builder.thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
        builder.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(shapes.GraphThresholdsStyleMode.DASHED))
        builder.axis_soft_max(panel.line)
    for name, color in panel.colors.items():
        builder.override_by_name(name, [colored(color)])
    for letter, query in zip(LETTERS, panel.queries, strict=False):
        if query.limit:
            builder.override_by_query(letter, [
                colored('red'),
                model.DynamicConfigValue('custom.lineStyle', {'fill': 'dash', 'dash': [10, 10]}),
                model.DynamicConfigValue('custom.fillOpacity', 0),
                model.DynamicConfigValue('custom.stacking', {'mode': 'none', 'group': 'A'}),
            ])
    return builder


def make_heatmap(panel: panels.Panel) -> Any:
    return (
        begin(heatmap.Panel(), panel)
        .calculate(False)
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme('Turbo').steps(64)
               .scale(HeatmapColorScale.EXPONENTIAL).exponent(0.5).fill('dark-orange').reverse(False))
        .y_axis(heatmap.YAxisConfig().unit(panel.unit))
        .cell_gap(1)
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .show_value(shapes.VisibilityMode.NEVER)
        .show_legend()
        .mode(shapes.TooltipDisplayMode.SINGLE)
        .exemplars_color('rgba(255,0,255,0.7)'))


def make_table(panel: panels.Panel) -> Any:
    hidden = {'excludeByName': {'Time': True, 'Value': True}, 'indexByName': {}, 'renameByName': {}}
    return (
        begin(table.Panel(), panel)
        .show_header(True)
        .filterable(True)
        .with_transformation(model.DataTransformerConfig('organize', options=hidden)))


MAKERS = {'stat': make_stat, 'timeseries': make_timeseries, 'heatmap': make_heatmap, 'table': make_table}


def colored(color: str) -> model.DynamicConfigValue:
    return model.DynamicConfigValue('color', {'mode': 'fixed', 'fixedColor': color})


# --- the rules ---

def write_rules() -> str:
    """Return the recording and the alerting rules."""
    records = [{'record': record.name, 'expr': record.expr} for record in alerts.RECORDS]
    alerting = [
        {
            'alert': alert.name,
            'expr': alert.expr,
            **({'for': alert.wait} if alert.wait else {}),
            'labels': alert.labels,
            'annotations': alert.annotations,
        }
        for alert in alerts.ALERTS
    ]
    groups = [
        {'name': 'gcpool.records', 'rules': records},
        {'name': 'gcpool.alerts', 'rules': alerting},
    ]
    return MADE + ''.join(lines({'groups': groups}))


def write_rules_test() -> str:
    """Return the cases for `promtool test rules`."""
    by_name = {alert.name: alert for alert in alerts.ALERTS}
    tests = [
        {
            'name': f'{case.alert} {"keeps silent" if case.value is None else "fires"}: {case.story}',
            'interval': '1m',
            'input_series': [
                {'series': targeted(series), 'values': values} for series, values in case.series.items()],
            'alert_rule_test': [{
                'eval_time': case.at,
                'alertname': case.alert,
                'exp_alerts': [] if case.value is None else [{
                    'exp_labels': {**TARGET, **by_name[case.alert].labels},
                    'exp_annotations': {
                        key: fill(text, case.value) for key, text in by_name[case.alert].annotations.items()},
                }],
            }],
        }
        for case in alerts.CASES
    ]
    return MADE + ''.join(lines({'rule_files': [RULES], 'evaluation_interval': '1m', 'tests': tests}))


#: the labels of the series in the test cases: those of a target in Kubernetes, whose `endpoint` is a port's name
TARGET = {'endpoint': 'web', 'instance': 'app:8000', 'job': 'app', 'namespace': 'shop', 'pool': 'orders'}


def targeted(series: str) -> str:
    """Put the labels of a target into a series."""
    name, _, labels = series.rstrip('}').partition('{')
    return f'{name}{{{", ".join(filter(None, [*(f"{key}={json.dumps(TARGET[key])}" for key in TARGET), labels]))}}}'


def fill(text: str, value: str) -> str:
    """Do what Prometheus does to a text when an alert fires."""
    text = re.sub(r'{{ \$labels\.(\w+) }}', lambda match: TARGET[match[1]], text)
    return re.sub(r'{{ \$value[^}]*}}', value, text)


# --- YAML, as far as it is needed here ---

def lines(value: Any, indent: str = '') -> Iterator[str]:
    """Write mappings and lists of them, a line each; sentences are folded, long queries keep their lines."""
    items = value.items() if isinstance(value, Mapping) else ((None, each) for each in value)
    for key, inner in items:
        head = f'{indent}- ' if key is None else f'{indent}{key}:'
        if isinstance(inner, str):
            yield from scalar(head if key is None else head + ' ', inner, indent + '  ')
        elif not inner:
            yield f'{head} []\n'
        elif key is None:
            first, *rest = lines(inner, indent + '  ')
            yield head + first.lstrip()
            yield from rest
        else:
            yield f'{head}\n'
            yield from lines(inner, indent + '  ')


def scalar(head: str, text: str, indent: str) -> Iterator[str]:
    if '\n' in text:
        yield f'{head}|-\n'
        yield from (f'{indent}{line}\n' for line in text.splitlines())
    elif len(head) + len(text) > 118 and ' ' in text:
        yield f'{head}>-\n'
        yield from (f'{indent}{line}\n' for line in textwrap.wrap(
            text, 118 - len(indent), break_long_words=False, break_on_hyphens=False))
    elif re.fullmatch(r'[A-Za-z][\w.:/#-]*\w', text):
        yield f'{head}{text}\n'
    else:
        yield f'{head}{quoted(text)}\n'


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


FILES: Mapping[str, Any] = {DASHBOARD: write_dashboard, RULES: write_rules, RULES_TEST: write_rules_test}


def main() -> None:
    """Write the files."""
    for name, write in FILES.items():
        Path(__file__).with_name(name).write_text(write(), encoding='utf-8')


if __name__ == '__main__':
    main()
