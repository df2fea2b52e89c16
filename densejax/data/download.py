"""Fetch published data with checksums; a folder is either whole or not there."""

import hashlib
import shutil
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import pooch
import requests

from densejax.io import publishing

PLATELET_URL = "https://www.dropbox.com/s/68yclbraqq1diza/platelet_data_1219.zip?dl=1"
PLATELET_MD5 = "253310093ee2c00304fbabdb0c7e3a4a"
PLATELET_FOLDER = "platelet_data"
PLATELET_FILES = {
    "train-images.tif": "940ffa25038e9e9ca0ae86bc7e75553c",
    "train-labels.tif": "dc72be0033f8ce409cac0202928873ba",
    "train-error-weights.tif": "dd30e90f77b2141dd01ab7b76e238163",
    "eval-images.tif": "0fd6642cd7cf0a1e758d7d48b3ac5b57",
    "eval-labels.tif": "abec7b896c2b57ebfc6bccac77cdcd2f",
    "test-images.tif": "d3f296cbedb7c3240e6be0e9e7217f3a",
    "test-labels.tif": "dd21ca5031d74b6f8be9f954e8fe7eac",
}


def fetch_platelets(folder: str | Path) -> Path:
    """Fetch the platelet data set (189 MB) into ``folder/platelet_data`` and return that path.

    Source: Guay et al., Scientific Reports 2021, doi 10.1038/s41598-021-81590-0.

    Raises:
        ConnectionError: no answer; the message gives the URL and what to do without a network.
        ValueError: a checksum is wrong, or an incomplete ``platelet_data`` is in the way.
    """
    return fetch_zip(
        folder, PLATELET_FOLDER, url=PLATELET_URL, md5=PLATELET_MD5, files=PLATELET_FILES
    )


def fetch_zip(
    folder: str | Path, name: str, *, url: str, md5: str, files: Mapping[str, str]
) -> Path:
    """Fetch an archive, check it and each file in it, and publish ``folder/name`` by a rename.

    An archive that already lies in ``folder`` under its own name is used and no network is needed.
    The archive is kept. A folder that is already complete is checked and left as it is.

    Args:
        folder: where the archive and the result go; made if missing.
        name: the folder of the files, in the archive and in ``folder``.
        url: the archive.
        md5: its checksum.
        files: file name to MD5; anything else in the archive is left out.

    Raises:
        ConnectionError: no answer from the URL.
        ValueError: a checksum is wrong, a file is missing from the archive, or ``folder/name`` is
            there without being whole. Nothing that exists is changed.
    """
    folder = Path(folder)
    target = folder / name
    if target.exists():
        wrong = wrong_files(target, files)
        if wrong:
            raise ValueError(f"{target}: {'; '.join(wrong)}. Move the folder away to fetch it anew")
        return target
    folder.mkdir(parents=True, exist_ok=True)
    archive = fetch_file(folder, url, md5)
    with publishing(target) as made:
        _unpack(archive, made, files)
        wrong = wrong_files(made, files)
        if wrong:
            raise ValueError(f"{archive}: {'; '.join(wrong)}")
    return target


def wrong_files(folder: str | Path, files: Mapping[str, str]) -> list[str]:
    """Return one sentence for each file that is missing or whose MD5 is not the expected one."""
    found = []
    for file, md5 in files.items():
        path = Path(folder) / file
        if not path.is_file():
            found.append(f"{file} is missing")
        elif (got := md5_of(path)) != md5:
            found.append(f"{file} has md5 {got}, expected {md5}")
    return found


def md5_of(path: str | Path) -> str:
    """Return the MD5 of a file as 32 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def fetch_file(folder: Path, url: str, md5: str) -> Path:
    """Fetch one file into an existing folder under the name it has in the URL; return its path.

    A file that is already there is checked and used, and no network is needed.

    Raises:
        ConnectionError: no answer from the URL; the message says where to put the file.
        ValueError: the checksum is wrong. A file that exists is not changed.
    """
    archive = folder / PurePosixPath(url.split("?")[0]).name
    # Checked here because the fetching library would replace a file with another checksum.
    if archive.exists():
        got = md5_of(archive)
        if got != md5:
            raise ValueError(f"{archive}: md5 {got}; expected {md5}. Move it away to fetch it anew")
        return archive
    progress = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=60)
    try:
        pooch.retrieve(url, f"md5:{md5}", archive.name, folder, downloader=progress)
    except (OSError, requests.RequestException) as error:
        raise ConnectionError(
            f"{url} cannot be fetched ({error}). Without a network, fetch it elsewhere and put it "
            f"at {archive} (md5 {md5}), then run this again"
        ) from error
    except ValueError as error:
        raise ValueError(f"{url}: what came is not the file expected ({error})") from error
    return archive


def _unpack(archive: Path, folder: Path, files: Mapping[str, str]) -> None:
    """Write the wanted files, found by their last name, and no other path of the archive."""
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            file = PurePosixPath(member.filename).name
            # Archives made on a Mac carry a shadow of each file under __MACOSX.
            if file in files and not member.filename.startswith("__MACOSX"):
                with opened.open(member) as source, open(folder / file, "wb") as out:
                    shutil.copyfileobj(source, out)
