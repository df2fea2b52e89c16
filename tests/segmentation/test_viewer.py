"""What is served: only this machine, only below the token, only the folders, ranges and all."""

import http.client
import json
from urllib.parse import urlsplit

import numpy as np
import pytest
import tensorstore as ts

from densejax.segmentation.rendering import subjects, viewer


@pytest.fixture(scope="module")
def prediction(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prediction")
    subjects.write_demo(folder, shape=(8, 64, 64))
    (folder / "secret.txt").write_text("not for you")
    return folder


@pytest.fixture(scope="module")
def served(prediction):
    shown = viewer.shown(subjects.open_prediction(prediction))
    running = viewer.serve(shown, page=False)
    yield running
    running.close()


def ask(served, path, *, method="GET", headers=None):
    place = urlsplit(served.data_url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=10)
    connection.request(method, path, headers=headers or {})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def token(served):
    return urlsplit(served.data_url).path


def test_a_file_is_served_whole_and_in_parts(served, prediction):
    path = f"{token(served)}/labels/zarr.json"
    expected = (prediction / "labels.zarr" / "zarr.json").read_bytes()
    answer, body = ask(served, path)
    assert (answer.status, body) == (200, expected)
    assert answer.getheader("Access-Control-Allow-Origin") == "*"
    for asked, part in (("bytes=2-9", expected[2:10]), ("bytes=-7", expected[-7:])):
        answer, body = ask(served, path, headers={"Range": asked})
        assert (answer.status, body) == (206, part)
        assert answer.getheader("Content-Range").endswith(f"/{len(expected)}")
    answer, body = ask(served, path, headers={"Range": "bytes=5-"})
    assert (answer.status, body) == (206, expected[5:])
    answer, _ = ask(served, path, headers={"Range": f"bytes={len(expected)}-"})
    assert answer.status == 416
    answer, body = ask(served, path, method="HEAD")
    assert (answer.status, body) == (200, b"")
    assert int(answer.getheader("Content-Length")) == len(expected)


@pytest.mark.parametrize(
    "path",
    [
        "/labels/zarr.json",
        "/wrong/labels/zarr.json",
        "{token}/secret.txt",
        "{token}/labels/../secret.txt",
        "{token}/labels/%2e%2e/secret.txt",
        "{token}/labels/..%2fsecret.txt",
        "{token}/labels//etc/passwd",
        "{token}/labels/%00",
        "{token}/labels",
        "{token}",
        "/",
    ],
)
def test_nothing_else_is_there(served, path):
    answer, body = ask(served, path.format(token=token(served)))
    assert (answer.status, body) == (404, b"")


def test_it_binds_this_machine_alone(served):
    assert served._server.server_address[0] == "127.0.0.1"
    assert len(token(served)) > 25
    assert f"-L {served.ports[0]}:127.0.0.1:{served.ports[0]}" in served.words()


def test_another_reader_opens_the_layers_over_http(served, prediction):
    store = ts.open(
        {"driver": "zarr3", "kvstore": f"{served.data_url}/labels/0/"}, read=True
    ).result()
    expected = subjects.open_prediction(prediction).labels[0].array[...]
    np.testing.assert_array_equal(store.read().result(), expected)


def test_the_state_names_each_layer_with_its_colours_and_place(served, prediction):
    state = served.state
    assert [layer["name"] for layer in state["layers"]] == [
        "image",
        "labels",
        "entropy",
        "disagreement",
    ]
    labels = state["layers"][1]
    assert labels["type"] == "segmentation"
    assert labels["segments"] == [str(number) for number in range(1, 7)]
    assert labels["segmentColors"]["2"] == "#0072B2"
    assert state["dimensions"]["z"] == [pytest.approx(50e-9), "m"]
    assert state["position"] == [32, 32, 4]
    assert json.loads(served.words().splitlines()[-1]) == state
    _, body = ask(served, f"{token(served)}/class_names/info")
    held = json.loads(body)["inline"]
    assert held["properties"][0]["values"][1] == "mitochondrion" and held["ids"][1] == "2"


def test_a_port_that_is_taken_and_a_folder_that_is_gone_are_named(served, prediction, tmp_path):
    shown = viewer.shown(subjects.open_prediction(prediction))
    with pytest.raises(OSError, match=rf"port {served.ports[0]} of 127\.0\.0\.1"):
        viewer.serve(shown, port=served.ports[0], page=False)
    gone = viewer.Shown({"labels": tmp_path / "no"}, ("a", "b"), (1, 1, 1), (2, 2, 2))
    with pytest.raises(FileNotFoundError, match="the layer labels"):
        viewer.serve(gone, page=False)


def test_neuroglancers_page_has_a_token_too(prediction):
    pytest.importorskip("neuroglancer", reason="the page needs the package neuroglancer")
    subject = subjects.open_prediction(prediction)
    shown = viewer.shown(subject)
    folders = {name: path for name, path in shown.folders.items() if name != "image"}
    assert subject.image is not None
    local = viewer.Shown(
        folders, shown.class_names, shown.voxel_nm, shown.shape, image=subject.image.array
    )
    running = viewer.serve(local)
    try:
        place = urlsplit(running.url)
        assert place.hostname == "127.0.0.1" and len(running.ports) == 2
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=10)
        connection.request("GET", place.path)
        answer = connection.getresponse()
        assert answer.status == 200 and b"neuroglancer" in answer.read().lower()
        connection.request("GET", "/v/wrong/")
        assert connection.getresponse().status == 404
        connection.close()
        state = running._viewer.state.to_json()
        assert [layer["name"] for layer in state["layers"]][:2] == ["image", "labels"]
        assert running.url in running.words()
    finally:
        running.close()
