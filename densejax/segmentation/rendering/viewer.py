"""Looking at a prediction in Neuroglancer: its files served on this machine alone, and the layers.

Files are served on 127.0.0.1 below a random token, with ranges (Zarr 3 keeps many chunks in one
file) and with the header by which a Neuroglancer page from elsewhere may read them. The page itself
comes from the package ``neuroglancer`` (extra ``render``) on a second port; without it the layers
are printed for a page that the user has.
"""

import json
import mimetypes
import os
import re
import secrets
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from densejax.data.levels import is_image
from densejax.plots import style
from densejax.segmentation.rendering.subjects import LAYERS, Subject

HOST = "127.0.0.1"
PIECE = 2**20  # bytes sent at once
NAMES = "class_names"  # the virtual folder of the classes' names
SHADER = (
    "#uicontrol invlerp normalized(range=[0, 255])\n"
    "void main() { float v = normalized(); emitRGBA(vec4(colormapJet(v), v)); }"
)


@dataclass(frozen=True)
class Shown:
    """What a viewer shows.

    Attributes:
      folders: folders that are served, by the name under which their layer appears; ``labels`` and
        ``instances`` are segmentations, ``image`` grey, all others heat maps.
      class_names: of ``labels``.
      voxel_nm: (z, y, x).
      shape: of the labels, (z, y, x).
      offset: (z, y, x), voxels from the origin.
      image: anything that slices, [z, y, x], where the image is none of the folders: only the page
        of the package shows it. Or None.
    """

    folders: Mapping[str, Path]
    class_names: Sequence[str]
    voxel_nm: tuple[float, float, float]
    shape: tuple[int, int, int]
    offset: tuple[int, int, int] = (0, 0, 0)
    image: Any = None


@dataclass
class Served:
    """A viewer that is running.

    Attributes:
      data_url: below which the files lie, with the token.
      state: Neuroglancer's state with all layers, as JSON can hold it.
      url: of the page, or empty where the package is not installed.
      ports: that must be forwarded from another machine.
    """

    data_url: str
    state: dict[str, Any]
    url: str
    ports: list[int]
    _server: ThreadingHTTPServer = field(repr=False)
    _viewer: Any = field(default=None, repr=False)

    def words(self) -> str:
        """What to tell the user."""
        forwards = " ".join(f"-L {port}:{HOST}:{port}" for port in self.ports)
        lines = [f"serving on {HOST} until Ctrl-C; from another machine first:"]
        lines.append(f"  ssh -N {forwards} {os.environ.get('USER', 'USER')}@{socket.gethostname()}")
        if self.url:
            return "\n".join([*lines, f"open  {self.url}"])
        lines.append(
            "the page itself needs the package neuroglancer (pip install 'densejax[render]'); or "
            "paste this as the state of a Neuroglancer page that you have:"
        )
        return "\n".join([*lines, json.dumps(self.state)])

    def wait(self) -> None:
        """Serve until the process is interrupted."""
        threading.Event().wait()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        if self._viewer is not None:
            import neuroglancer

            neuroglancer.stop()


def shown(subject: Subject) -> Shown:
    """What there is to show of a prediction or of files: those that are OME-Zarr are served."""
    folders: dict[str, Path] = {}
    image = None if subject.image is None else subject.image.array
    if is_image(subject.image_path):
        folders["image"], image = Path(subject.image_path), None
    if subject.folder is not None:
        for name in ("labels", *LAYERS, "instances"):
            if is_image(subject.folder / f"{name}.zarr"):
                folders[name] = subject.folder / f"{name}.zarr"
    elif is_image(subject.labels_path):
        folders["labels"] = Path(subject.labels_path)
    else:
        raise ValueError(
            f"{subject.labels_path} is no OME-Zarr image, which Neuroglancer needs of labels"
        )
    finest = subject.labels[0]
    offset = np.rint(np.array(finest.origin_nm) / np.array(finest.voxel_nm)).astype(int).tolist()
    return Shown(
        folders,
        subject.class_names,
        subject.voxel_nm,
        finest.array.shape,
        (offset[0], offset[1], offset[2]),
        image,
    )


def serve(shown: Shown, *, port: int = 0, page: bool = True) -> Served:
    """Serve a prediction's layers, and Neuroglancer's page where its package is installed.

    Args:
      shown: what.
      port: of the files, the page takes the next one; 0 takes any that are free.
      page: False leaves the page out.

    Returns:
      The running viewer.

    Raises:
      OSError: the port is taken; the message names it.
      FileNotFoundError: a folder is not there.
    """
    for name, folder in shown.folders.items():
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder, the layer {name}")
    token = secrets.token_urlsafe(24)
    handler = type("Handler", (_Handler,), {"token": token, "shown": shown})
    try:
        server = ThreadingHTTPServer((HOST, port), handler)
    except OSError as error:
        raise OSError(f"port {port} of {HOST} cannot be used: {error}") from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    number = server.server_address[1]
    data_url = f"http://{HOST}:{number}/{token}"
    state = layers(shown, data_url)
    served = Served(data_url, state, "", [number], server)
    if page:
        _open_page(served, shown, port + 1 if port else 0)
    return served


def layers(shown: Shown, data_url: str) -> dict[str, Any]:
    """Neuroglancer's state: dimensions, position and one layer a folder."""
    made: list[dict[str, Any]] = []
    for name in shown.folders:
        source = f"zarr://{data_url}/{name}"
        if name == "image":
            made.insert(0, {"type": "image", "name": name, "source": source})
        elif name == "labels":
            made.append(_labels_layer(shown, source, data_url))
        elif name == "instances":
            made.append({"type": "segmentation", "name": name, "source": source, "visible": False})
        else:
            heat = {"type": "image", "name": name, "source": source, "opacity": 0.6}
            made.append(heat | {"shader": SHADER, "visible": False})
    sizes = dict(zip("zyx", shown.voxel_nm, strict=True))
    middle = [o + n / 2 for o, n in zip(shown.offset, shown.shape, strict=True)]
    return {
        "dimensions": {axis: [sizes[axis] * 1e-9, "m"] for axis in "xyz"},
        "position": middle[::-1],
        "crossSectionScale": max(shown.shape[1:]) / 600,
        "projectionScale": 1.5 * max(shown.shape[1:]),
        "layers": made,
        "layout": "4panel",
    }


def _labels_layer(shown: Shown, source: str, data_url: str) -> dict[str, Any]:
    numbers = [str(number) for number in range(1, len(shown.class_names))]
    colours = style.class_colours(len(shown.class_names))[1:]
    return {
        "type": "segmentation",
        "name": "labels",
        "source": [source, f"precomputed://{data_url}/{NAMES}"],
        "segments": numbers,
        "segmentColors": dict(zip(numbers, colours, strict=True)),
        "selectedAlpha": 0.35,
    }


def _open_page(served: Served, shown: Shown, port: int) -> None:
    """Start Neuroglancer's own server, if its package is there."""
    try:
        import neuroglancer
    except ImportError:
        return
    neuroglancer.set_server_bind_address(HOST, bind_port=port)
    viewer = neuroglancer.Viewer(token=secrets.token_urlsafe(24), allow_credentials=False)
    viewer.set_state(served.state)
    if shown.image is not None:
        dimensions = neuroglancer.CoordinateSpace(
            names=["z", "y", "x"], units=["nm"] * 3, scales=list(shown.voxel_nm)
        )
        local = neuroglancer.LocalVolume(
            shown.image, dimensions, volume_type="image", voxel_offset=list(shown.offset)
        )
        with viewer.txn() as state:
            others = [(layer.name, layer.layer) for layer in state.layers]
            state.layers.clear()
            state.layers["image"] = neuroglancer.ImageLayer(source=local)
            for name, layer in others:
                state.layers[name] = layer
    served._viewer = viewer
    served.url = viewer.get_viewer_url()
    served.ports.append(int(urlsplit(served.url).port or 0))


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of files below the token; everything else is not there."""

    protocol_version = "HTTP/1.1"
    token: str
    shown: Shown

    def do_GET(self) -> None:
        """Answer with a file, or a part of it."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Answer as GET without the file."""
        self._answer(body=False)

    def do_OPTIONS(self) -> None:
        """What a page from elsewhere may ask for."""
        self._head(HTTPStatus.NO_CONTENT, 0)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests would bury what the console says."""
        del format, args

    def _answer(self, *, body: bool) -> None:
        found = self._found()
        if found is None:
            self._head(HTTPStatus.NOT_FOUND, 0)
            return
        size = found.stat().st_size if isinstance(found, Path) else len(found)
        span = _span(self.headers.get("Range"), size)
        if span is None:
            self._head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, f"bytes */{size}")
            return
        start, stop = span
        part = self.headers.get("Range") is not None
        self._head(
            HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK,
            stop - start,
            f"bytes {start}-{stop - 1}/{size}" if part else "",
            mimetypes.guess_type(self.path)[0] or "application/octet-stream",
        )
        if not body:
            return
        try:
            if isinstance(found, bytes):
                self.wfile.write(found[start:stop])
                return
            with found.open("rb") as file:
                file.seek(start)
                while start < stop:
                    piece = file.read(min(PIECE, stop - start))
                    self.wfile.write(piece)
                    start += len(piece)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _found(self) -> Path | bytes | None:
        """The file that is asked for; nothing outside the served folders."""
        token, *parts = [unquote(part) for part in urlsplit(self.path).path.split("/")[1:]]
        known = secrets.compare_digest(token.encode(), self.token.encode())
        if not known or not parts or "\0" in "".join(parts):
            return None
        if parts == [NAMES, "info"]:
            return _names_file(self.shown.class_names)
        folder = self.shown.folders.get(parts[0])
        if folder is None:
            return None
        root = folder.resolve()
        path = root.joinpath(*parts[1:]).resolve()
        return path if path.is_relative_to(root) and path.is_file() else None

    def _head(self, status: HTTPStatus, size: int, span: str = "", kind: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(size))
        if kind:
            self.send_header("Content-Type", kind)
        if span:
            self.send_header("Content-Range", span)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
        self.send_header("Access-Control-Allow-Headers", "Range")
        self.send_header("Access-Control-Allow-Private-Network", "true")
        self.send_header("Access-Control-Expose-Headers", "Content-Range, Content-Length")
        self.send_header("Cache-Control", "no-cache")
        self.end_headers()


def _span(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and the one behind the last of a Range header; None where it cannot be met."""
    if header is None:
        return 0, size
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if match is None or match.group(1) == match.group(2) == "":
        return None
    first, last = match.groups()
    if not first:
        return max(size - int(last), 0), size
    stop = min(int(last) + 1, size) if last else size
    return (int(first), stop) if int(first) < stop else None


def _names_file(names: Sequence[str]) -> bytes:
    """The classes' names in Neuroglancer's format of segment properties."""
    values = list(names)[1:]
    return json.dumps(
        {
            "@type": "neuroglancer_segment_properties",
            "inline": {
                "ids": [str(number) for number in range(1, len(names))],
                "properties": [{"id": "label", "type": "label", "values": values}],
            },
        }
    ).encode()
