#!/bin/sh
# backup.sh: writes the server's two databases and its artifacts into a new folder of $BACKUP_FOLDER (/backups).
# backup.sh FOLDER: puts back what such a folder holds, in place of what is there now.
# PostgreSQL's own variables say where the databases are: PGHOST, PGPORT, PGUSER, PGPASSWORD.
set -eu
backups=${BACKUP_FOLDER:-/backups}
artifacts=${ARTIFACTS:-/artifacts}
umask 077

say() { echo "backup: $*"; }

write() {
    name=$(date -u +%Y%m%dT%H%M%SZ)
    new="$backups/.$name.part"
    mkdir "$new"
    for database in mlflow mlflow_auth; do
        pg_dump --format=custom --file="$new/$database.dump" --dbname="$database"
    done
    # Artifacts after the databases: what a run of the dump names is there.
    case $artifacts in
        *://*) say "artifacts lie at $artifacts, which is not copied: turn on the bucket's versioning" ;;
        *) tar -C "$artifacts" -cf "$new/artifacts.tar" . ;;
    esac
    (cd "$new" && sha256sum -- * >SHA256SUMS)
    mv "$new" "$backups/$name"
    say "wrote $backups/$name"
}

restore() {
    (cd "$1" && sha256sum --check --quiet SHA256SUMS)
    for database in mlflow mlflow_auth; do
        pg_restore --clean --if-exists --no-owner --exit-on-error --single-transaction \
            --dbname="$database" "$1/$database.dump"
    done
    if [ -f "$1/artifacts.tar" ]; then
        find "$artifacts" -mindepth 1 -delete
        tar -C "$artifacts" -xpf "$1/artifacts.tar"
    fi
    say "restored $1"
}

if [ $# -eq 0 ]; then
    write
else
    restore "$1"
fi
