#!/bin/sh
# sh cluster/kubernetes/secrets.sh | kubectl apply --filename -
# Makes new passwords and prints the secrets that hold them, each with what its pods need and no more. Run it once: run again it
# prints other passwords, which the database and MLflow do not know.
set -eu

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

postgres=$(random)
mlflow_admin=$(random)
flask=$(random)
sweeps_password=$(random)
sweeps_key=$(random)
mlflow_key=$(random)
administrator_key=$(random)

secret() { # name; the keys and values follow on standard input, indented by two
    echo "---"
    echo "apiVersion: v1"
    echo "kind: Secret"
    echo "metadata: {name: $1, namespace: pointsweep}"
    echo "type: Opaque"
    echo "stringData:"
    cat
}

secret pointsweep-worker <<END
  AWS_ACCESS_KEY_ID: sweeps
  AWS_SECRET_ACCESS_KEY: $sweeps_key
  MLFLOW_TRACKING_USERNAME: sweeps
  MLFLOW_TRACKING_PASSWORD: $sweeps_password
END
secret pointsweep-mlflow <<END
  AWS_ACCESS_KEY_ID: mlflow
  AWS_SECRET_ACCESS_KEY: $mlflow_key
  POSTGRES_PASSWORD: $postgres
  MLFLOW_AUTH_ADMIN_PASSWORD: $mlflow_admin
  MLFLOW_FLASK_SERVER_SECRET_KEY: $flask
END
secret pointsweep-postgres <<END
  POSTGRES_PASSWORD: $postgres
END
secret pointsweep-administrator <<END
  AWS_ACCESS_KEY_ID: administrator
  AWS_SECRET_ACCESS_KEY: $administrator_key
  MLFLOW_AUTH_ADMIN_PASSWORD: $mlflow_admin
  SWEEPS_USERNAME: sweeps
  SWEEPS_PASSWORD: $sweeps_password
END
secret pointsweep-objects <<END
  s3.json: |
    {
      "identities": [
        {"name": "administrator", "credentials": [{"accessKey": "administrator", "secretKey": "$administrator_key"}],
         "actions": ["Admin", "Read", "Write", "List"]},
        {"name": "sweeps", "credentials": [{"accessKey": "sweeps", "secretKey": "$sweeps_key"}],
         "actions": ["Read:pointsweep", "Write:pointsweep", "List:pointsweep"]},
        {"name": "mlflow", "credentials": [{"accessKey": "mlflow", "secretKey": "$mlflow_key"}],
         "actions": ["Read:mlflow", "Write:mlflow", "List:mlflow"]}
      ]
    }
END
