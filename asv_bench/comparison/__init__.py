"""gcp beside the pools and queues that people use today: one run, all in turn, a table and a chart.

measure         what is measured, and how it is kept fair
figures         how a figure is told
table           the table in the terminal, and the one in docs/performance.md
chart           the picture in docs/
machine         what it was measured on
"""
