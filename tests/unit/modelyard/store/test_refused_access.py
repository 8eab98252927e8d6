"""Wrong credentials for MongoDB: a sentence that names the setting, and a store to try again."""

from collections.abc import Iterator

import pytest
from pymongo.errors import OperationFailure

from modelyard.contract.errors import StoreUnavailableError
from modelyard.store.backup import copies
from modelyard.store.connection import MongoConnection

URL = "mongodb://127.0.0.1:1/x"
REFUSED = pytest.mark.parametrize(
    ("code", "said"),
    [
        (18, "MongoDB refuses the user or the password in MODELYARD_MONGO_URL"),
        (13, "MongoDB refuses access to the user in MODELYARD_MONGO_URL.*readWrite"),
    ],
)


@pytest.fixture
def connection() -> Iterator[MongoConnection]:
    made = MongoConnection(URL, name="test", timeout_s=1.0)
    yield made
    made.close()


@REFUSED
async def test_a_user_whom_mongodb_refuses_is_an_unavailable_store(
    connection: MongoConnection, code: int, said: str
) -> None:
    with pytest.raises(StoreUnavailableError, match=said) as raised:
        async with connection.answering():
            raise OperationFailure("not authorized to { insert: secret }", code=code)
    assert "secret" not in raised.value.message


@REFUSED
def test_a_backup_says_that_mongodb_refuses_the_user(code: int, said: str) -> None:
    with pytest.raises(StoreUnavailableError, match=said), copies._database(URL):
        raise OperationFailure("refused", code=code)
