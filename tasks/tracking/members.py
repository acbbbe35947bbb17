"""The users of an MLflow server with passwords, in their database: MLflow takes the administrator's password
from the environment at its first start alone."""

import sqlalchemy
from mlflow.exceptions import MlflowException

from tasks.errors import TrackingError
from tasks.tracking.server import short

ADMIN = "admin"


def set_password(database: str, password: str) -> bool:
    """Give the administrator `password`, before a server works on `database`; returns whether it had another.

    Where there is no administrator yet, MLflow makes one. Raises TrackingError where the database cannot be
    opened.
    """
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore  # late: a whole server, which takes Flask

    store = SqlAlchemyStore()
    try:
        store.init_db(database)
        if not store.has_user(ADMIN) or store.authenticate_user(ADMIN, password):
            return False
        store.update_user(ADMIN, password=password)
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError) as error:
        raise TrackingError(
            f"the database of MLflow's users cannot be opened: {short(str(error))}; is it there, and of this "
            "version of MLflow?"
        ) from error
    return True
