"""Engines for a cloud that several operators or several machines share: refs in etcd, blobs in an S3 store."""
