"""Flask under gunicorn: one pool for each process, made when the module is imported.

gunicorn --workers 2 --threads 8 flask_app:app   PGHOST, PGUSER, PGDATABASE, PGPASSWORD say where the server is"""

import atexit

from flask import Flask, jsonify
from flask.typing import ResponseReturnValue
from prometheus_client import make_wsgi_app
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import gcp.debug
from gcp import AcquireTimeoutError, Retry
from gcp.contrib.psycopg import DbConnectionManager
from gcp.threading import ConnectionPool

# No connection is opened before the first request. So with `--preload` each worker opens its own after the fork.
pool = ConnectionPool(
    DbConnectionManager({'orders': {}}), name='orders', max_size=4, acquire_timeout=5.0, connect_retry=Retry()
)
atexit.register(pool.close, timeout=5.0)

app = Flask(__name__)
pages = {'/metrics': make_wsgi_app(), '/debug/pools': gcp.debug.wsgi()}
app.wsgi_app = DispatcherMiddleware(app.wsgi_app, pages)  # type: ignore[method-assign]


@app.get('/orders/<int:customer>')
def orders(customer: int) -> ResponseReturnValue:
    with pool.connection('orders') as conn:
        rows = conn.execute('SELECT generate_series(1, %s::int)', [customer]).fetchall()
    return jsonify([row[0] for row in rows])


@app.errorhandler(AcquireTimeoutError)
def busy(error: Exception) -> ResponseReturnValue:
    """Tell the client to come back, instead of an error 500."""
    return {'error': 'no connection in time'}, 503, {'Retry-After': '1'}
