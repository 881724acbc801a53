#!/bin/sh
# The S3 gateway: JuiceFS over the volume at /data, with one bucket.
set -eu
export MINIO_ROOT_USER="$AWS_ACCESS_KEY_ID" MINIO_ROOT_PASSWORD="$AWS_SECRET_ACCESS_KEY"
meta=sqlite3:///data/meta.db
# --no-update: a volume that is there already stays as it is.
juicefs format --no-update "$meta" b3-lake --storage file --bucket /data/objects/
# The objects are on this disk: a cache of them would be a second copy.
exec juicefs gateway "$meta" 0.0.0.0:9000 --no-usage-report --no-banner --cache-size 0
