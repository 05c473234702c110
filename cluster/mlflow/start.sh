#!/bin/sh
# The MLflow server with users of its own. Secrets come by the environment and reach no file but auth.ini, which only this user reads.
set -eu
: "${POSTGRES_PASSWORD:?}" "${MLFLOW_AUTH_ADMIN_PASSWORD:?at least 12 characters}" "${MLFLOW_FLASK_SERVER_SECRET_KEY:?}"
artifacts=${ARTIFACTS:-/artifacts}
case $artifacts in
    *://*) ;;
    *)
        # Without this the first artifact of the first run fails, and its client with it.
        if ! touch "$artifacts/.writable" 2>/dev/null; then
            echo "pointsweep-mlflow: $artifacts cannot be written by uid $(id -u); give the folder to it: chown -R $(id -u) FOLDER" >&2
            exit 2
        fi
        rm -f "$artifacts/.writable"
        ;;
esac
database="postgresql+psycopg2://mlflow:${POSTGRES_PASSWORD}@${POSTGRES_HOST:-postgres}:5432"
umask 077
settings=$(mktemp -d)
cat >"$settings/auth.ini" <<END
[mlflow]
default_permission = READ
database_uri = ${database}/mlflow_auth
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
END
export MLFLOW_AUTH_CONFIG_PATH="$settings/auth.ini" MLFLOW_BACKEND_STORE_URI="${database}/mlflow"
exec mlflow server --app-name basic-auth --host 0.0.0.0 --port 5000 --workers "${MLFLOW_WORKERS:-4}" \
    --artifacts-destination "$artifacts" --allowed-hosts "${ALLOWED_HOSTS:-localhost:*,127.0.0.1:*,mlflow:*}"
