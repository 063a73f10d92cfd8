"""The benchmarks, in chapters. Times mean nothing by themselves: compare two commits, or two lines of one run.

managers        connections that cost nothing, or as long as they are told
turns           contenders that run in turn, so that their ratios hold on a busy machine
adapters        the pools and queues that people use today, behind one face
loads           workers that compete for connections, and what they saw
idle_hit        the fast path, beside a bare deque
contention      threads and tasks that wait in line: how many are served, how evenly
endpoints       one endpoint, and a hundred thousand
total_cap       endpoints that compete for the pool's total cap
expiry          what an expired connection costs the pool
"""
