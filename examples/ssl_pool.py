"""TLS connections for threads: verified and reused; new ones resume the last TLS session.

    python ssl_pool.py                        starts a server of its own, with a new certificate
    python ssl_pool.py --host example.org     talks to this one

The server's certificate and name are verified, unless the `ssl.SSLContext` says otherwise."""

import argparse
import contextlib
import shutil
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from gcp.contrib.socket import SslEndpoint, SslSocketConnectionManager
from gcp.threading import ConnectionPool

Pool = ConnectionPool[SslEndpoint, ssl.SSLSocket]

REQUESTS = 12
TIMEOUT = 3.0


def fetch(pool: Pool, endpoint: SslEndpoint) -> str:
    host, port = endpoint
    with pool.connection(endpoint, timeout=TIMEOUT) as sock:  # includes the wait, the connect and the handshake
        sock.settimeout(TIMEOUT)  # of each read and write
        spoken = f'{sock.version()}, ALPN {sock.selected_alpn_protocol()}'
        is_reusable = False
        try:
            sock.sendall(f'GET / HTTP/1.1\r\nHost: {host}\r\n\r\n'.encode())
            with HTTPResponse(sock) as response:
                response.begin()
                size = len(response.read())
                is_reusable = not response.will_close
        finally:
            if not is_reusable:
                sock.close()  # the pool does not reuse a closed connection
    return f'{host}:{port} ({spoken}) says {response.status} {response.reason} and {size} bytes'


def use(endpoint: SslEndpoint, certificates: Path | None) -> None:
    context = ssl.create_default_context(cafile=certificates)
    pool: Pool = ConnectionPool(
        SslSocketConnectionManager(context, alpn_protocols=['http/1.1']), max_size=2, acquire_timeout=TIMEOUT
    )
    with ThreadPoolExecutor(8) as threads:
        try:
            for answer in sorted(set(threads.map(lambda _: fetch(pool, endpoint), range(REQUESTS)))):
                print(answer)
            stats = pool.stats()
            print(f'{stats.created} connections served {sum(stats.acquires.values())} acquires')
        finally:
            pool.close(timeout=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description='Eight threads talk to an HTTPS server through one pool.')
    parser.add_argument('--host', help='the server to talk to (default: start one)')
    parser.add_argument('--port', type=int, default=443, help='its port (default: %(default)s)')
    parser.add_argument('--cafile', type=Path, help="certificates to trust (default: the system's)")
    options = parser.parse_args()
    if options.host:
        use((options.host, options.port), options.cafile)
    else:
        with serve() as (endpoint, certificate):
            use(endpoint, certificate)


# --- a server for this example ---


class Web(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while self.rfile.readline():
                while self.rfile.readline().strip():
                    pass
                self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\nHello over the wire')


class TlsServer(socketserver.ThreadingTCPServer):
    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(('127.0.0.1', 0), Web)
        self.socket = context.wrap_socket(self.socket, server_side=True)


@contextlib.contextmanager
def serve() -> Iterator[tuple[SslEndpoint, Path]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(['http/1.1'])
    with tempfile.TemporaryDirectory() as directory:
        trusted = Path(directory, 'trusted.pem')
        context.load_cert_chain(make_certificate(trusted))
        with TlsServer(context) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield ('localhost', server.server_address[1]), trusted
            finally:
                server.shutdown()
                thread.join()


def make_certificate(trusted: Path) -> Path:
    """Write a certificate to trust, and return the file with that of localhost and its key."""
    if shutil.which('openssl'):
        subprocess.run(
            [
                'openssl',
                'req',
                '-x509',
                '-newkey',
                'rsa:2048',
                '-nodes',
                '-days',
                '1',
                '-subj',
                '/CN=localhost',
                '-addext',
                'subjectAltName=DNS:localhost',
                '-addext',
                'keyUsage=digitalSignature,keyCertSign',
                '-keyout',
                trusted,
                '-out',
                trusted,
            ],
            check=True,
            capture_output=True,
        )
        return trusted
    try:
        import trustme
    except ImportError:
        sys.exit('There is neither openssl nor trustme here, to make a certificate with: give a --host.')
    authority = trustme.CA()
    authority.cert_pem.write_to_path(trusted)
    own = trusted.with_name('own.pem')
    authority.issue_cert('localhost').private_key_and_cert_chain_pem.write_to_path(own)
    return own


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, HTTPException) as error:
        sys.exit(f'{type(error).__name__}: {error}')
