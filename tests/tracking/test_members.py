"""The administrator's password, in a real database of MLflow's users."""

import pytest

from tasks.errors import TrackingError
from tasks.tracking import members

pytest.importorskip("flask_wtf", reason="MLflow's authentication comes with regraft[servers]")


@pytest.fixture
def store(tmp_path):
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    found = SqlAlchemyStore()
    found.init_db(f"sqlite:///{tmp_path}/users.db")
    return found


def test_a_changed_password_replaces_the_former_and_no_others(store, tmp_path):
    database = f"sqlite:///{tmp_path}/users.db"
    assert not members.set_password(database, "a-long-password-1"), "MLflow makes its first user itself"
    assert not store.has_user("admin")
    store.create_user("admin", "a-long-password-1", is_admin=True)
    store.create_user("ann", "a-long-password-9")
    assert not members.set_password(database, "a-long-password-1")
    assert members.set_password(database, "a-long-password-2")
    assert store.authenticate_user("admin", "a-long-password-2")
    assert not store.authenticate_user("admin", "a-long-password-1")
    assert store.authenticate_user("ann", "a-long-password-9")
    assert store.get_user("admin").is_admin


def test_a_file_that_is_no_database_is_a_sentence(tmp_path):
    (tmp_path / "users.db").write_text("not a database, but long enough to be taken for one" * 10)
    with pytest.raises(TrackingError, match="database of MLflow's users cannot be opened"):
        members.set_password(f"sqlite:///{tmp_path}/users.db", "a-long-password-2")
