"""Where MLflow keeps its runs."""

from __future__ import annotations

import os

from pipeline.errors import ParamsError
from pipeline.files import root

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http", "https", "databricks", "databricks-uc")


def tracking_uri(stated: str | None) -> str:
    """Where MLflow keeps its runs: as stated, else $MLFLOW_TRACKING_URI, else mlflow.db in the project.

    Relative SQLite paths are of the project (a DVC experiment runs in a temporary directory).

    Raises:
        ParamsError: no kind of store that MLflow has.
    """
    where, uri = "tracking.tracking_uri", stated
    if not uri:
        where, uri = "MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return f"sqlite:///{root().resolve() / 'mlflow.db'}"
    scheme = uri.split(":", 1)[0].lower() if ":" in uri else uri.lower()
    kind = scheme.split("+")[0]
    if kind == "sqlite":
        head, slashes, path = uri.partition(":///")
        if not slashes or not path:
            raise ParamsError(f"{where}: '{uri}' names no file; wanted sqlite:///mlflow.db or sqlite:////absolute/mlflow.db")
        return uri if path.startswith(("/", ":memory:", "file:")) else f"{head}:///{root().resolve() / path}"
    if kind in DATABASES or scheme in SERVERS or _is_plugin(scheme):
        return uri
    if ":" not in uri or kind == "file":
        raise ParamsError(f"{where}: '{uri}' is a directory, which MLflow no longer keeps runs in; wanted sqlite:///mlflow.db")
    known = ", ".join([*DATABASES, *SERVERS])
    raise ParamsError(f"{where}: '{uri}' has no scheme that MLflow knows (known: {known})")


def _is_plugin(scheme: str) -> bool:
    from importlib.metadata import entry_points

    return any(point.name == scheme for point in entry_points(group="mlflow.tracking_store"))
