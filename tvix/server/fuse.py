"""The process that serves the mount of a worker whose store is a cache before a server's: see worker_store.py."""

from tvix.executor.fuse_process import main
from tvix.server.worker_store import open_worker_store

if __name__ == "__main__":
    main(open_blobs=open_worker_store)
