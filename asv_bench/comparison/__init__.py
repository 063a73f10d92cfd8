"""gcp beside other pools and queues: one run, all in turn, a table and a chart.

measure         what is measured, and how it is kept fair
figures         how a figure is written
table           the table in the terminal, and the one in docs/performance.md
chart           the picture in docs/
machine         the machine and the versions that were measured
"""
