"""The benchmarks, in chapters. Times mean nothing by themselves: compare two commits, or two lines of one run.

idle_hit        the fast path on both fronts, beside a bare deque
hooks           the fast path of a manager that overrides hooks
keys            the fast path by kind of endpoint
contention      threads that wait: how many are served, how evenly, how late
fan_in          tasks that wait
endpoints       one endpoint, and a hundred thousand
total_cap       endpoints that compete for the pool's total cap
expiry          what an expired connection costs the pool
close           closing a pool of many idle connections
telemetry       what telemetry adds to the fast path
scrape          reading the metrics and statistics of a pool of many endpoints
memory          bytes for each idle connection and each endpoint
imports         how long it takes to import gcp
spike           fifty requests at once, and five connections
peers           other pools and queues: the same measurements for each

effort          how much is measured: little, or with GCP_BENCH=full everything
tracks          units, and whether more is better
bodies          a thousand hits, on either front
loads           workers that compete for connections, and what they saw
managers        managers of fake connections, whose creation takes a given time
adapters        other pools behind one interface
turns           contenders that take turns in one run
interpreter     a fresh interpreter for measurements of memory and imports
"""
