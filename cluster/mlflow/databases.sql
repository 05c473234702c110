-- The server's tables and its users lie apart; PostgreSQL's image runs this once, on an empty disk.
CREATE DATABASE mlflow_auth;
