"""The compiled core and how it is compiled. Everything else about the package is in pyproject.toml,
and ``tools/metadata.py`` makes what it says of the project's pages from one address there.

Environment variables change the build:

``GCP_SANITIZE=address,undefined``: instrument the core for these sanitizers; the first finding ends the process.
``GCP_CYTHON_ANNOTATE=1``: write ``build/cython/gcp/_core.html``, which shows where the core enters the interpreter.
``GCP_UNSUPPORTED=1``: build for a Python or a platform that is not supported, too.

An unsupported Python must be able to read this file, down to 3.6: it says what is supported before anything else is
imported.
"""

import os
import platform
import re
import sys
from glob import glob
from pathlib import Path

OLDEST, NEWEST = (3, 10), (3, 15)
PLATFORMS = ('linux', 'darwin')

if os.environ.get('GCP_UNSUPPORTED') != '1' and not (
    sys.implementation.name == 'cpython' and OLDEST <= sys.version_info[:2] <= NEWEST and sys.platform in PLATFORMS
):
    this = f'{platform.python_implementation()} {platform.python_version()} on {sys.platform}'
    sys.exit(
        f'gcp is built for CPython 3.10 to 3.15 on Linux or macOS; this is {this}.\n'
        'GCP_UNSUPPORTED=1 in the environment builds it nevertheless; it may not compile, and no test was run.'
    )

from Cython.Build import cythonize  # noqa: E402
from setuptools import Extension, setup  # noqa: E402

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent

sys.path.insert(0, str(ROOT))  # an isolated build does not have it
try:
    from tools import metadata
finally:
    sys.path.remove(str(ROOT))

DIRECTIVES = {
    'language_level': 3,
    # locks, atomic flags and copies of errors take the GIL's place: see docs/design.md, "Without the GIL"
    'freethreading_compatible': True,
    # the core checks its own indices and divisors
    'boundscheck': False,
    'wraparound': False,
    'initializedcheck': False,
    'cdivision': True,
    # methods that inspect.signature() and mypy.stubtest can read; measured to be called as fast as without
    'binding': True,
    'embedsignature': True,
    'embedsignature.format': 'python',
    # no invented __reduce_cython__: records of C state are not picklable
    'auto_pickle': False,
    'autotestdict': False,
}

# Said here and not left to the interpreter's flags: CFLAGS replaces those, and they differ between distributions.
compile_flags = ['-fwrapv', '-DNDEBUG']
link_flags = []
if '-O' not in os.environ.get('CFLAGS', ''):
    compile_flags.append('-O3')
if sys.platform == 'linux':
    compile_flags.append('-fno-plt')  # an idle hit takes 2 % less time
sanitizers = os.environ.get('GCP_SANITIZE')
if sanitizers:
    compile_flags = ['-fwrapv', '-UNDEBUG', '-O1', '-g', '-fno-omit-frame-pointer', '-fno-sanitize-recover=all']
    link_flags = [f'-fsanitize={sanitizers}']

repository = metadata.repository(tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8')))
(version,) = re.findall(
    r"^__version__ = '(.+)'$", (ROOT / 'gcp' / '__init__.py').read_text(encoding='utf-8'), re.MULTILINE
)

setup(
    project_urls=metadata.project_urls(repository),
    long_description=metadata.description(ROOT, repository, version),
    long_description_content_type='text/markdown',
    ext_modules=cythonize(
        [
            Extension(
                'gcp._core',
                ['gcp/_core.pyx'],
                depends=sorted(glob('gcp/core/*.p[xy][dx]')),
                extra_compile_args=compile_flags + link_flags,
                extra_link_args=link_flags,
            ),
        ],
        # the C goes aside: no generated file in the package, hence none in an sdist or a wheel
        build_dir='build/cython',
        compiler_directives=DIRECTIVES,
        annotate=os.environ.get('GCP_CYTHON_ANNOTATE') == '1',
    ),
)
