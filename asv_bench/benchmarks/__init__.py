"""The benchmarks, in chapters. Times mean nothing by themselves: compare two commits, or two lines of one run.

idle_hit        the fast path on both fronts, beside a bare deque
hooks           the fast path of a manager that overrides hooks
keys            the fast path by kind of endpoint
contention      threads that wait in line: how many are served, how evenly, how late
fan_in          tasks that wait in line
endpoints       one endpoint, and a hundred thousand
total_cap       endpoints that compete for the pool's total cap
expiry          what an expired connection costs the pool
close           closing a pool of many idle connections
telemetry       what being seen costs the fast path
scrape          asking a pool of many endpoints how it is
memory          bytes for each idle connection and each endpoint
imports         how long it takes to import gcp
spike           fifty requests at once, and five connections
peers           the pools and queues that people use today: the same bodies over each

effort          how much is measured: little, or with GCP_BENCH=full everything
tracks          units, and whether more is better
bodies          a thousand hits, on either front
loads           workers that compete for connections, and what they saw
managers        connections that cost nothing, or as long as they are told
adapters        other pools, each behind one face
turns           contenders that take turns in one run
interpreter     a fresh interpreter for what must not be disturbed
"""
