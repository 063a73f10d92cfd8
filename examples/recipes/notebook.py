"""A notebook, with one cell after each `# %%`: the pool is made in the first one, and is there for the others."""

# %%
from gcp.contrib.psycopg import DbConnectionManager
from gcp.threading import ConnectionPool

try:
    pool.close(timeout=1.0)  # type: ignore[has-type, used-before-def]  # this cell was run before
except NameError:
    pass
pool = ConnectionPool(DbConnectionManager({'orders': {}}), name='notebook', max_size=2, idle_timeout=300.0)

# %%
with pool.connection('orders') as conn:  # not left open at the end of a cell: the server sees no idle transaction
    rows = conn.execute('SELECT generate_series(1, 3)').fetchall()
print(rows)

# %%
print(pool)  # and pool.holders(), when a cell hangs
pool.close()
