"""The command line, `python -m gcp`: parses the arguments, and imports a command only when it is run."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from gcp import __version__

MOST_WORKERS = 10_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    :param arguments: the arguments; ``None``: those of the process
    :return: the exit status
    """
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser('python -m gcp', description='A keyed connection pool for Python.')
    parser.add_argument('--version', action='version', version=f'gcpool {__version__}')
    commands = parser.add_subparsers(title='commands', required=True, metavar='COMMAND')
    demo = commands.add_parser(
        'demo',
        help='watch two pools serve three PostgreSQL databases and replace lost connections',
        description='Serve three PostgreSQL databases to threads and to asyncio tasks through two pools, end some of '
        'the connections meanwhile, and report whether every acquire was served and every lost connection '
        'replaced.',
    )
    demo.add_argument('--seconds', type=_positive, default=15.0, help='how long to run (default: %(default)g)')
    demo.add_argument('--threads', type=_count, default=32, help='how many threads (default: %(default)s)')
    demo.add_argument('--tasks', type=_count, default=200, help='how many asyncio tasks (default: %(default)s)')
    demo.add_argument(
        '--dsn',
        help='a PostgreSQL server, as a libpq connection string: "host=... user=..." or '
        '"postgresql://..." (default: start one in a temporary directory)',
    )
    demo.set_defaults(run=_demo)
    _add_top(commands)
    _add_advise(commands)
    _add_files(commands)
    _add_steering(commands)
    return parser


def _add_top(commands: Any) -> None:
    top = commands.add_parser(
        'top',
        help='watch the pools on a page of metrics',
        description='Show all pools on a page of metrics: connections against their limits, waiters, and the rates '
        'since the last refresh (in the first frame: since the pools were built). Press Ctrl-C to quit.',
    )
    top.add_argument(
        'targets',
        nargs='+',
        metavar='URL|FILE',
        help='a metrics page: http://HOST:PORT/metrics, HOST:PORT, a file, or - for standard input',
    )
    top.add_argument('--once', action='store_true', help='print one frame and exit, for pipes')
    top.add_argument(
        '--interval', type=_positive, default=2.0, metavar='SECONDS', help='how often to refresh (default: %(default)g)'
    )
    top.set_defaults(run=_top)


def _add_advise(commands: Any) -> None:
    advise = commands.add_parser(
        'advise',
        help='say how big the pools on a page of metrics should be',
        description='Say how big each pool on a page of metrics should be, and why: too small, too large, too many '
        'creations, waits that no size cures, or fine. One page counts since its process started; two files, or a URL '
        'with --interval, count what happened between them.',
    )
    advise.add_argument(
        'targets',
        nargs='+',
        action=_OneOrTwo,
        metavar='URL|FILE',
        help='a metrics page: http://HOST:PORT/metrics, HOST:PORT, a file, or - for standard input; the address of a '
        'Prometheus server; or two files, the earlier page first',
    )
    advise.add_argument(
        '--interval',
        type=_positive,
        metavar='SECONDS',
        help='read the page twice, so far apart; with two files: the time between them (default: by the times of the '
        'files); with Prometheus: how far to look back (default: 3600)',
    )
    advise.add_argument('--json', action='store_true', help='print JSON')
    advise.set_defaults(run=_advise)


class _OneOrTwo(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, options: Any, values: Any, option: str | None = None) -> None:
        if len(values) > 2:
            raise argparse.ArgumentError(self, 'one page, or two of the same process, were expected')
        options.targets = values


def _add_files(commands: Any) -> None:
    """Add the commands that print a file of the package."""
    for command, file, what, then in (
        ('grafana', 'dashboard.json', 'the Grafana dashboard', 'import it in Grafana, or provision it'),
        (
            'rules',
            'rules.yml',
            'the Prometheus recording and alerting rules',
            "list it under rule_files in Prometheus' configuration",
        ),
    ):
        printer = commands.add_parser(command, help=f'print {what}', description=f'Print {what}: {then}.')
        printer.add_argument('-o', '--output', metavar='FILE', help='the file to write (default: standard output)')
        printer.set_defaults(run=_print_file, file=file, rules=None)
        if command == 'rules':
            printer.add_argument(
                '--runbook-base',
                metavar='URL',
                dest='rules',
                type=_rules,
                help='where your runbooks are: the lower-case name of each alert is appended, after a # unless the URL '
                'ends with /, # or = (default: the documentation)',
            )


#: what can be done with a pool of another process
STEERING = {
    'expire': ('replace the connections of a pool', 'Hand out no connection again that was opened before now.'),
    'suspend': ('hand out no connections of a pool', 'Have acquires wait until the pool, or the endpoint, is resumed.'),
    'resume': ('hand out connections again', 'End what suspend has begun; without an endpoint, all of it.'),
    'retire': ('take an endpoint out of use', 'Take no new acquires of an endpoint, and close its connections.'),
}


def _add_steering(commands: Any) -> None:
    """Add the commands that ask the debug page of a process to do something with a pool."""
    for command, (what, then) in STEERING.items():
        parser = commands.add_parser(
            command,
            help=f'{what}, by the debug page of a process',
            description=f'{then} The process must serve gcp.debug with allow_actions=True. The exit status is 0 if it '
            'was done or begun, 1 if it has failed, 3 if the process does not allow it.',
        )
        parser.add_argument('url', metavar='URL', help='the debug page: http://HOST:PORT/debug/pools, or HOST:PORT')
        parser.add_argument('pool', metavar='POOL', help='the name of the pool')
        needed: dict[str, Any] = {} if command == 'retire' else {'nargs': '?'}
        parser.add_argument(
            'endpoint',
            metavar='ENDPOINT',
            help='the endpoint, as the page shows it' + ('' if command == 'retire' else ' (default: all)'),
            **needed,
        )
        if command == 'retire':
            parser.add_argument(
                '--timeout',
                type=_positive,
                metavar='SECONDS',
                help='close connections in use by force after so long (default: wait until they are released)',
            )
        parser.set_defaults(run=_steer, command=command, timeout=None)


def _demo(options: argparse.Namespace) -> int:
    from gcp import demo

    return demo.main(options.seconds, options.threads, options.tasks, options.dsn)


def _top(options: argparse.Namespace) -> int:
    from gcp import top

    return top.main(options.targets, options.once, options.interval)


def _advise(options: argparse.Namespace) -> int:
    from gcp import advise

    return advise.main(options.targets, options.interval, options.json)


def _steer(options: argparse.Namespace) -> int:
    from gcp.debug import client

    return client.main(options.command, options.url, options.pool, options.endpoint, options.timeout)


def _print_file(options: argparse.Namespace) -> int:
    from gcp.observe import grafana

    text: str = options.rules or grafana.read(options.file)
    if options.output is None:
        sys.stdout.write(text)
        return 0
    try:
        with open(options.output, 'w', encoding='utf-8') as file:
            file.write(text)
    except OSError as error:
        print(f'{options.output}: {error.strerror}', file=sys.stderr)
        return 1
    return 0


def _rules(base: str) -> str:
    """Return the rules with runbooks below a URL."""
    from gcp.observe import grafana

    try:
        return grafana.rules(base)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'a number of seconds above 0 was expected, not {text}')
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_WORKERS:
        raise argparse.ArgumentTypeError(f'a number from 1 to {MOST_WORKERS} was expected, not {text}')
    return int(text)


if __name__ == '__main__':
    sys.exit(main())
