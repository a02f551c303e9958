"""Snapshots of volumes: taken while their process runs, restored on any host."""
