"""Who decides which node is primary: one small interface and its implementations.

The values are in cluster/lease.py; what a node does about them in node/keeper.py.
"""
