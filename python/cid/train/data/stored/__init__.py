"""Images that are read as they are needed, by worker processes: data larger than memory.

A source has random access: what an epoch shows is a function of (seed, epoch, step) here as for images in memory.
"""
