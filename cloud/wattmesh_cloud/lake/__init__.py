"""The data lake: stored samples as Parquet, partitioned by site and day, with a manifest; a folder or an S3 bucket.

``samples/site=SITE/day=YYYY-MM-DD/part.parquet`` holds one site's day, a row group an hour, ordered by point and time. The
manifest names every file that is whole; what it does not name does not exist for a reader. A day is written again when late
samples came: what the lake has and what the store has are put together, and what is in both is kept once.
"""

from wattmesh_cloud.lake.lake import FileEntry, Lake
from wattmesh_cloud.lake.query import QueryError, QueryLimits
from wattmesh_cloud.lake.storage import FolderStorage, LakeStorage

__all__ = ["FileEntry", "FolderStorage", "Lake", "LakeStorage", "QueryError", "QueryLimits"]
