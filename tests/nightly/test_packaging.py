"""What a wheel, an sdist and an editable install contain, and that what was installed works.

Everything is built from a copy of what a clone has, with the build requirements of this environment, and installed into
environments that have nothing else. The core is compiled without optimisation: only its presence is at stake."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import gcp

pytest.importorskip('build')
pytest.importorskip('Cython')
pytest.importorskip('pip')

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / '.git').exists() or shutil.which('git') is None:
    pytest.skip('only a clone can tell what belongs to the project', allow_module_level=True)

#: what the environment of a developer may say and must not decide here
FOREIGN = {'CFLAGS', 'CPPFLAGS', 'GCP_CYTHON_ANNOTATE', 'GCP_SANITIZE', 'LDFLAGS', 'PYTHONHOME', 'PYTHONPATH'}

UNOPTIMISED = {'CFLAGS': '-O0 -g0'}


def call(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a command; on failure show what it said."""
    env = {name: value for name, value in os.environ.items() if name not in FOREIGN and not name.startswith('GIT_')}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**env, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, f'{command[0]} exited with {result.returncode}:\n{result.stdout[-8000:]}'

    return result.stdout


def cloned_files() -> Iterator[Path]:
    """What a clone has, or will have once the new files are added."""
    listing = call(
        'git',
        '-c',
        'safe.directory=*',
        'ls-files',
        '-z',
        '--cached',
        '--others',
        '--exclude-standard',
        cwd=ROOT,
    )
    yield from {Path(name) for name in listing.split('\0') if name and os.path.lexists(ROOT / name)}


def modules() -> set[str]:
    """The files of the package that are installed, the core excepted."""
    paths = [path for path in cloned_files() if path.parts[0] in ('contrib', 'gcp') and path != Path('gcp', 'contrib')]
    names = {
        path.as_posix()
        for path in paths
        if path.suffix in ('.py', '.pyi', '.json', '.yml', '.css', '.js') or path.name == 'py.typed'
    }

    return {f'gcp/{name}' if name.startswith('contrib/') else name for name in names}


@pytest.fixture(scope='session')
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp('packaging') / 'project'
    for path in cloned_files():
        target = copy / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target, follow_symlinks=False)

    return copy


@pytest.fixture(scope='session')
def archives(project: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that was built from it, not from the tree."""
    out = project.parent / 'dist'
    call(sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, project, cwd=project.parent, **UNOPTIMISED)
    (sdist,) = out.glob('*.tar.gz')
    (wheel,) = out.glob('*.whl')

    return sdist, wheel


def make_environment(path: Path, *wheels: Path) -> Path:
    """Create an environment with these wheels and nothing else; return its interpreter."""
    call(sys.executable, '-m', 'venv', '--without-pip', path, cwd=path.parent)
    python = path / 'bin' / 'python'
    call(
        sys.executable,
        '-m',
        'pip',
        '--python',
        python,
        'install',
        '--quiet',
        '--no-deps',
        '--no-index',
        *wheels,
        cwd=path.parent,
    )

    return python


def check_import(python: Path, cwd: Path, where: Path) -> None:
    """Import each module that needs no driver, from anywhere, and see that it comes from there."""
    code = '\n'.join(
        [
            'import importlib.metadata, os, sys',
            'import gcp, gcp.threading, gcp.asyncio, gcp.contrib.socket, gcp.dropin',
            'from generic_connection_pool.threading import ConnectionPool',
            'assert ConnectionPool is gcp.threading.ConnectionPool',
            'assert importlib.metadata.version("gcpool") == gcp.__version__',
            'where = os.path.realpath(sys.argv[1])',
            'for name, module in list(sys.modules.items()):',
            '    if name.split(".")[0] == "gcp":',
            '        assert os.path.realpath(module.__file__).startswith(where), (name, module.__file__)',
        ]
    )
    call(python, '-I', '-W', 'error', '-c', code, where, cwd=cwd)


def test_wheel_has_every_module_once_and_no_source_of_the_core(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        names = wheel.namelist()
    installed = [name for name in names if '.dist-info/' not in name]

    assert len(names) == len(set(names))
    assert set(installed) == modules() | {name for name in installed if name.endswith('.so')}
    assert len([name for name in installed if name.startswith('gcp/_core.') and name.endswith('.so')]) == 1
    assert {'gcp/py.typed', 'gcp/_core.pyi', 'gcp/contrib/__init__.py', 'gcp/contrib/socket.py'} <= set(installed)
    assert f'gcpool-{gcp.__version__}.dist-info/licenses/LICENSE' in names


def test_wheel_has_nothing_that_only_developers_run(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        names = wheel.namelist()

    assert {name.partition('/')[0] for name in names} == {'gcp', f'gcpool-{gcp.__version__}.dist-info'}
    only_for_developers = re.compile(r'generate|panels|alerts|picture|tools|bench|tests/|\.(c|md|png|px[di]|pyx|svg)$')
    assert [name for name in names if '.dist-info/' not in name and only_for_developers.search(name)] == []
    data = {name for name in names if name.startswith('gcp/observe/grafana/')}
    assert {Path(name).name for name in data} == {'__init__.py', 'dashboard.json', 'rules.yml', 'rules_test.yml'}


def test_wheel_needs_only_what_telemetry_is_told_with(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        metadata = wheel.read(f'gcpool-{gcp.__version__}.dist-info/METADATA').decode().partition('\n\n')[0].splitlines()

    needed = [line for line in metadata if line.startswith('Requires-Dist:') and 'extra ==' not in line]
    assert [re.split('[ <>=]+', line)[1] for line in needed] == ['opentelemetry-api', 'prometheus-client']
    extras = {line.partition(': ')[2] for line in metadata if line.startswith('Provides-Extra:')}
    drivers = {'asyncpg', 'http', 'mysql', 'psycopg', 'psycopg2', 'redis'}
    assert extras == {*drivers, 'demo', 'django', 'sqlalchemy', 'top'}


def test_sdist_has_what_a_clone_has(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as sdist:
        members = sdist.getmembers()
    names = [member.name.partition('/')[2] for member in members if not member.isdir()]

    assert len(names) == len(set(names))
    assert not [name for name in names if name.startswith(('build/', 'gcp/contrib')) or name.endswith(('.c', '.so'))]
    made_by_setuptools = {name for name in names if '.egg-info/' in name} | {'PKG-INFO', 'setup.cfg'}
    only_for_clones = {'.gitignore', 'gcp/contrib'}
    assert set(names) - made_by_setuptools == {path.as_posix() for path in cloned_files()} - only_for_clones


def test_installed_wheel_works(archives: tuple[Path, Path], tmp_path: Path) -> None:
    python = make_environment(tmp_path / 'venv', archives[1])
    check_import(python, tmp_path, tmp_path / 'venv')


def test_the_first_minute_is_as_the_readme_says(archives: tuple[Path, Path], tmp_path: Path) -> None:
    """From a bare environment, with no compiler to be found: the command and the first program of the README."""
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    program = re.search(r'^```python\n(.*?)^```', readme, re.MULTILINE | re.DOTALL)
    assert program and '\n$ pip install gcpool ' in readme
    (tmp_path / 'first.py').write_text(program[1], encoding='utf-8')
    began = time.monotonic()
    call(sys.executable, '-m', 'venv', 'venv', cwd=tmp_path)
    programs = tmp_path / 'venv' / 'bin'
    # its two dependencies are downloaded, and nothing is compiled
    quietly = ('--quiet', '--disable-pip-version-check', '--only-binary', ':all:')
    call(programs / 'pip', 'install', *quietly, archives[1], cwd=tmp_path, PATH=str(programs))
    said = call(programs / 'python', '-W', 'error', 'first.py', cwd=tmp_path, PATH=str(programs))
    took = time.monotonic() - began
    assert said.startswith('(42,)\n')
    assert 'gcpool_acquires_total{pool="shop",pool_endpoint="orders",result="created"} 1.0' in said
    assert took < 60.0


@pytest.mark.parametrize('mode', ['lenient', 'strict'])
def test_editable_install_works(mode: str, project: Path, tmp_path: Path) -> None:
    copy = tmp_path / 'project'
    shutil.copytree(project, copy, symlinks=True)
    code = 'import build, sys; build.ProjectBuilder(sys.argv[1]).build("editable", ".", {"editable_mode": sys.argv[2]})'
    call(sys.executable, '-c', code, copy, mode, cwd=tmp_path, **UNOPTIMISED)
    (wheel,) = tmp_path.glob('*.whl')
    python = make_environment(tmp_path / 'venv', wheel)
    check_import(python, tmp_path, tmp_path)

    # an edit is seen
    with (copy / 'contrib' / 'socket.py').open('a') as file:
        file.write('\nEDITED = True\n')
    call(python, '-I', '-c', 'import gcp.contrib.socket; assert gcp.contrib.socket.EDITED', cwd=tmp_path)


# --- the release ---


@pytest.fixture(scope='module')
def release(project: Path, archives: tuple[Path, Path]) -> tuple[Path, str]:
    """Run `make wheels`' program for this Python; return the folder of what it built, and what it said."""
    for name in ('auditwheel', 'check_wheel_contents', 'twine') if sys.platform == 'linux' else ('twine',):
        pytest.importorskip(name)
    out = project.parent / 'release'
    folders = ('--dist', out, '--work', project.parent / 'work')
    said = call(
        *(sys.executable, '-m', 'tools.wheels', '--pythons', sys.executable, *folders), cwd=project, **UNOPTIMISED
    )

    return out, said


def test_a_release_has_a_repaired_wheel_and_an_sdist_that_passed_their_tests(release: tuple[Path, str]) -> None:
    out, said = release
    (wheel,) = out.glob('*.whl')
    (sdist,) = out.glob('*.tar.gz')
    if sys.platform == 'linux':
        assert re.search(r'(many|musl)linux_\d+_\d+_\w+\.whl$', wheel.name)
    rows = [re.split('  +', line) for line in said.splitlines() if line.endswith('quickstart runs')]
    assert [row[1] for row in rows] == [wheel.name, sdist.name]
    assert {row[-1] for row in rows} == {'9 passed, 0 failed; quickstart runs'}
    # it is downloaded with the two packages that it needs, and nothing is compiled: seconds, on a busy machine, too
    assert float(rows[0][5].removesuffix(' s')) < 60.0


def test_a_release_says_that_the_address_is_not_set(release: tuple[Path, str], project: Path) -> None:
    is_set = 'repository = ""' not in (project / 'pyproject.toml').read_text()
    assert ('[tool.gcpool] repository is not set' in release[1]) is not is_set


def test_the_address_reaches_the_metadata(project: Path, tmp_path: Path) -> None:
    copy = tmp_path / 'project'
    shutil.copytree(project, copy, symlinks=True)
    pyproject = copy / 'pyproject.toml'
    address = 'https://code.example/owner/gcpool'
    edited, count = re.subn(r'(?m)^repository = ".*"$', f'repository = "{address}"', pyproject.read_text())
    assert count == 1
    pyproject.write_text(edited)
    call(sys.executable, '-m', 'build', '--sdist', '--no-isolation', '--outdir', tmp_path, copy, cwd=tmp_path)
    (sdist,) = tmp_path.glob('*.tar.gz')
    with tarfile.open(sdist) as archive:
        (member,) = [name for name in archive.getnames() if name.count('/') == 1 and name.endswith('/PKG-INFO')]
        file = archive.extractfile(member)
        assert file is not None
        metadata = file.read().decode()
    assert f'Project-URL: Homepage, {address}\n' in metadata
    assert f'({address}/blob/v{gcp.__version__}/docs/pool.md)' in metadata


@pytest.mark.parametrize('platform', ['linux', 'macos'])
def test_cibuildwheel_builds_for_each_python_and_platform(platform: str) -> None:
    pytest.importorskip('cibuildwheel')
    builds = call(
        *(sys.executable, '-m', 'cibuildwheel', '--platform', platform, '--print-build-identifiers'),
        *('--archs', 'x86_64,aarch64' if platform == 'linux' else 'x86_64,arm64', ROOT),
        cwd=ROOT,
    ).split()
    kinds = {build.partition('-')[2] for build in builds}
    if platform == 'linux':
        assert kinds == {f'{kind}linux_{arch}' for kind in ('many', 'musl') for arch in ('x86_64', 'aarch64')}
    else:
        assert kinds == {'macosx_x86_64', 'macosx_arm64'}
    # the free-threaded 3.13 is built by an older cibuildwheel
    expected = {f'cp3{minor}' for minor in range(10, 16)} | {'cp314t'}
    assert all({build.partition('-')[0] for build in builds if build.endswith(kind)} >= expected for kind in kinds)


def test_symlink_is_what_a_clone_has() -> None:
    link = ROOT / 'gcp' / 'contrib'
    assert link.is_symlink()
    assert os.readlink(link) == os.path.join('..', 'contrib')
