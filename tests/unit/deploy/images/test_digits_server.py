"""The digits server's protocol, over a model of our own: no scikit-learn and no container."""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx2
import pytest

from deploy.images.digits import batch, protocol
from deploy.images.digits.dataset import DatasetError, read_dataset
from deploy.images.digits.model import ModelSlot, ModelUnreadableError, Predictor
from deploy.images.digits.protocol import PIXELS, Prediction, Row
from deploy.images.digits.server import MAX_BODY_BYTES, build_app

INFER = "/v2/models/digits/infer"
LOAD = "/v2/repository/models/digits/load"
UNLOAD = "/v2/repository/models/digits/unload"
READY = "/v2/models/digits/ready"


class FirstPixel:
    """Says that a digit is its first pixel."""

    def predict(self, rows: Sequence[Row]) -> list[Prediction]:
        return [Prediction(int(row[0]), 0.5) for row in rows]


class Loader:
    """Counts how often the model was read."""

    def __init__(self) -> None:
        self.reads = 0
        self.fails = False

    def __call__(self) -> Predictor:
        self.reads += 1
        if self.fails:
            raise ModelUnreadableError("The model file cannot be loaded: it is torn.")
        return FirstPixel()


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
async def client(loader: Loader) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(build_app(ModelSlot(loader)), raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://digits") as client:
        yield client


def digit(first_pixel: float) -> Row:
    return [first_pixel] + [0.0] * (PIXELS - 1)


def infer_body(*rows: Row, **changes: object) -> dict[str, object]:
    tensor: dict[str, object] = {
        "name": "pixels",
        "datatype": "FP64",
        "shape": [len(rows), PIXELS],
        "data": [pixel for row in rows for pixel in row],
    }
    return {"inputs": [tensor | changes]}


def write_dataset(folder: Path, *rows: Row, labels: Sequence[int] | None = None) -> Path:
    columns = [f"pixel_{index}" for index in range(PIXELS)]
    lines = [",".join(columns + (["label"] if labels else []))]
    for index, row in enumerate(rows):
        cells = [str(value) for value in row]
        lines.append(",".join(cells + ([str(labels[index])] if labels else [])))
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    return folder


async def test_the_server_is_live_but_not_ready_before_load(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/v2/health/live")).status_code == 200
    assert (await client.get("/v2/health/ready")).status_code == 400
    not_ready = await client.get(READY)
    assert (not_ready.status_code, not_ready.json()["ready"]) == (400, False)


async def test_infer_before_load_is_refused(client: httpx2.AsyncClient) -> None:
    answer = await client.post(INFER, json=infer_body(digit(3)))
    assert answer.status_code == 400
    assert answer.json() == {"error": "The model is not loaded."}


async def test_a_second_load_reads_nothing_and_a_load_after_unload_reads_again(
    client: httpx2.AsyncClient, loader: Loader
) -> None:
    for _ in range(2):
        assert (await client.post(LOAD)).status_code == 200
    assert loader.reads == 1
    assert (await client.get(READY)).json() == {"name": "digits", "ready": True}
    assert (await client.get("/v2/health/ready")).status_code == 200
    for _ in range(2):
        assert (await client.post(UNLOAD)).status_code == 200
    assert (await client.get(READY)).status_code == 400
    await client.post(LOAD)
    assert loader.reads == 2


async def test_a_model_that_cannot_be_read_fails_the_load_with_its_reason(
    client: httpx2.AsyncClient, loader: Loader
) -> None:
    loader.fails = True
    answer = await client.post(LOAD)
    assert answer.status_code == 500
    assert "torn" in answer.json()["error"]
    assert (await client.get(READY)).status_code == 400


async def test_infer_answers_each_row_with_label_and_probability(
    client: httpx2.AsyncClient,
) -> None:
    await client.post(LOAD)
    body = infer_body(digit(3), digit(7)) | {"id": "mine"}
    answer = await client.post(INFER, json=body)
    assert answer.status_code == 200
    assert answer.json() == {
        "model_name": "digits",
        "model_version": "1",
        "id": "mine",
        "outputs": [
            {"name": "label", "shape": [2], "datatype": "INT64", "data": [3, 7]},
            {"name": "probability", "shape": [2], "datatype": "FP64", "data": [0.5, 0.5]},
        ],
    }


async def test_data_may_be_one_list_for_each_row(client: httpx2.AsyncClient) -> None:
    await client.post(LOAD)
    body = infer_body(digit(1), digit(2), data=[digit(1), digit(2)])
    assert (await client.post(INFER, json=body)).json()["outputs"][0]["data"] == [1, 2]


async def test_only_the_outputs_asked_for_are_answered(client: httpx2.AsyncClient) -> None:
    await client.post(LOAD)
    answer = await client.post(INFER, json=infer_body(digit(1)) | {"outputs": [{"name": "label"}]})
    assert [output["name"] for output in answer.json()["outputs"]] == ["label"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param(infer_body(digit(1), shape=[1, 63]), "[rows, 64]", id="other width"),
        pytest.param(infer_body(digit(1), shape=[64]), "[rows, 64]", id="one dimension"),
        pytest.param(infer_body(digit(1), shape=[True, 64]), "[rows, 64]", id="true is no row"),
        pytest.param(infer_body(digit(1), shape=[2, 64]), "asks for 128", id="too few numbers"),
        pytest.param(infer_body(digit(1), shape=[0, 64]), "between 1 and", id="no rows"),
        pytest.param(infer_body(digit(1), shape=[10**9, 64]), "between 1 and", id="too many rows"),
        pytest.param(infer_body(digit(1), shape=None), "[rows, 64]", id="no shape"),
        pytest.param(infer_body(digit(1), data=[[1.0]]), "not 1 rows of 64", id="ragged rows"),
        pytest.param(infer_body(digit(1), data="1"), "list of numbers", id="text as data"),
        pytest.param(infer_body(digit(1), data=["1"] * 64), "must hold numbers", id="words"),
        pytest.param(infer_body(digit(1), data=[True] * 64), "must hold numbers", id="booleans"),
        pytest.param(infer_body(digit(1), data=[10**400] * 64), "finite", id="beyond a float"),
        pytest.param(infer_body(digit(1), datatype="BYTES"), "FP32, FP64", id="other datatype"),
        pytest.param(infer_body(digit(1), datatype=["FP32"]), "FP32, FP64", id="odd datatype"),
        pytest.param(infer_body(digit(1), name=None), "'name'", id="no name"),
        pytest.param({"inputs": []}, "exactly one", id="no input"),
        pytest.param({}, "'inputs' must be a list", id="nothing"),
        pytest.param({"inputs": [7]}, "must be a JSON object", id="a number as tensor"),
        pytest.param([], "must be a JSON object, not a list", id="a list"),
        pytest.param(infer_body(digit(1)) | {"id": 7}, "'id'", id="odd id"),
        pytest.param(infer_body(digit(1)) | {"parameters": 7}, "'parameters'", id="odd parameters"),
        pytest.param(
            infer_body(digit(1)) | {"outputs": [{"name": ["label"]}]}, "label", id="odd output"
        ),
        pytest.param(
            infer_body(digit(1)) | {"parameters": {"dataset": "/data"}}, "not both", id="both"
        ),
        pytest.param({"parameters": {"dataset": ""}, "inputs": []}, "a path", id="empty path"),
        pytest.param(
            {"parameters": {"dataset": "/not/there"}, "inputs": []}, "no dataset", id="no dataset"
        ),
        pytest.param(
            {"parameters": {"dataset": "a\0b"}, "inputs": []}, "dataset", id="NUL in a path"
        ),
    ],
)
async def test_a_wrong_request_is_a_400_that_says_what_is_wrong(
    client: httpx2.AsyncClient, body: object, says: str
) -> None:
    await client.post(LOAD)
    answer = await client.post(INFER, json=body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"{", id="torn"),
        pytest.param(b"\xff", id="not UTF-8"),
        pytest.param(b'{"inputs": NaN}', id="NaN"),
        pytest.param(b"[" * 200_000, id="too deep"),
        pytest.param(b'{"inputs": ' + b"9" * 5000 + b"}", id="a huge number"),
    ],
)
async def test_a_body_that_is_not_json_is_a_400(client: httpx2.AsyncClient, raw: bytes) -> None:
    answer = await client.post(INFER, content=raw)
    assert answer.status_code == 400
    assert answer.json()["error"]


async def test_a_body_over_the_cap_is_a_413(client: httpx2.AsyncClient) -> None:
    answer = await client.post(INFER, content=b" " * (MAX_BODY_BYTES + 1))
    assert answer.status_code == 413


async def test_another_model_path_or_method_is_refused_as_json(client: httpx2.AsyncClient) -> None:
    for path in (INFER, LOAD, UNLOAD):
        answer = await client.post(path.replace("digits", "letters"))
        assert answer.status_code == 404
        assert "'letters'" in answer.json()["error"]
    assert (await client.get("/v2/models/letters")).status_code == 404
    assert (await client.get("/else")).json() == {"error": "Not Found."}
    wrong_method = await client.get(INFER)
    assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "POST")


async def test_the_index_says_whether_the_model_is_ready(client: httpx2.AsyncClient) -> None:
    index = "/v2/repository/index"
    assert (await client.post(index)).json()[0]["state"] == "UNAVAILABLE"
    assert (await client.post(index, json={"ready": True})).json() == []
    await client.post(LOAD)
    assert (await client.post(index, json={"ready": True})).json()[0]["state"] == "READY"
    assert (await client.post(index, json={"ready": "yes"})).status_code == 400


async def test_metadata_tells_the_tensors(client: httpx2.AsyncClient) -> None:
    assert "model_repository" in (await client.get("/v2")).json()["extensions"]
    model = (await client.get("/v2/models/digits")).json()
    assert model["inputs"] == [{"name": "pixels", "datatype": "FP64", "shape": [-1, 64]}]


async def test_a_dataset_is_predicted_whole_with_its_accuracy(
    client: httpx2.AsyncClient, tmp_path: Path
) -> None:
    await client.post(LOAD)
    rows = [digit(index % 10) for index in range(600)]
    labels = [index % 10 for index in range(600)]
    labels[0] = 9
    folder = write_dataset(tmp_path, *rows, labels=labels)
    body = {"parameters": {"dataset": str(folder)}, "inputs": []}
    answer = (await client.post(INFER, json=body)).json()
    assert answer["parameters"] == {"count": 600, "accuracy": pytest.approx(599 / 600, abs=1e-6)}
    assert answer["outputs"][0]["data"] == [index % 10 for index in range(600)]


async def test_a_dataset_without_labels_has_no_accuracy(
    client: httpx2.AsyncClient, tmp_path: Path
) -> None:
    await client.post(LOAD)
    body = {"parameters": {"dataset": str(write_dataset(tmp_path, digit(4)))}, "inputs": []}
    assert (await client.post(INFER, json=body)).json()["parameters"] == {"count": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no columns"),
        ("a,b\n1,2\n", "no columns"),
        (",".join(f"pixel_{i}" for i in range(64)) + "\n", "no rows"),
        (",".join(f"pixel_{i}" for i in range(64)) + "\n1,2\n", "line 2: pixel_2"),
        (",".join(f"pixel_{i}" for i in range(64)) + "\nsecret" + ",1" * 63 + "\n", "pixel_0"),
    ],
)
def test_a_faulty_dataset_is_named_by_line_without_its_content(
    tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(DatasetError, match=says) as caught:
        read_dataset(tmp_path)
    assert "secret" not in str(caught.value)


def test_a_folder_without_csv_files_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no \.csv file"):
        read_dataset(tmp_path)


def test_batch_prints_the_answer_last_and_writes_the_same_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "load_predictor", lambda _file: FirstPixel())
    folder = write_dataset(tmp_path, digit(1), digit(2), labels=[1, 5])
    batch.run(folder, tmp_path / "model", tmp_path / "answer.json")
    lines = capsys.readouterr().out.splitlines()
    answer = json.loads(lines[-1])
    assert answer["parameters"] == {"count": 2, "accuracy": 0.5}
    assert answer["outputs"][0]["data"] == [1, 2]
    assert "predicted 2/2" in lines
    assert json.loads((tmp_path / "answer.json").read_text()) == answer


def test_an_empty_body_is_an_empty_object() -> None:
    assert protocol.decode(b" \n") == {}
