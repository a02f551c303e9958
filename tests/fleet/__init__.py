"""A fleet of real agents on this machine, taken through random definitions by the real command, in trouble.

By hand, at full size:

    python -m tests.fleet --agents 20 --definitions 50 --seed 1
"""
