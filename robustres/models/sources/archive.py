"""Zip archives of networks, read with little more memory than their size on disk."""

import zipfile
from pathlib import Path

from robustres.errors import ModelError

# torch compresses only the code of a network.
LARGEST_COMPRESSED = 2**26
ENCRYPTED = 1  # flag of a member


class Archive:
    """The members of a zip file below its only top-level folder; raises ModelError if it is damaged.

    torch stores weights uncompressed. Members that would unpack to an implausible size are refused without reading
    them.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind
        try:
            self._file = zipfile.ZipFile(path)
            infos = [info for info in self._file.infolist() if not info.is_dir()]
        except Exception as error:  # a reader of untrusted files may raise anything
            raise self.unreadable(str(error) or type(error).__name__) from error
        if any(info.flag_bits & ENCRYPTED for info in infos):
            raise self.unreadable("it is encrypted; unpack it and pack it again without a password")
        packed = sum(info.file_size for info in infos if info.compress_type != zipfile.ZIP_STORED)
        if packed > LARGEST_COMPRESSED:
            raise self.unreadable(f"its compressed members would unpack to {packed} bytes; torch stores weights as is")
        if sum(info.compress_size for info in infos) > path.stat().st_size:
            raise self.unreadable("its members overlap")
        tops = {info.filename.partition("/")[0] for info in infos}
        if len(tops) != 1:
            raise self.unreadable("it must hold one folder")
        self._top = tops.pop()
        self.names = [info.filename.partition("/")[2] for info in infos]

    def read(self, name: str) -> bytes:
        """One member, with its checksum verified."""
        try:
            return self._file.read(f"{self._top}/{name}")
        except Exception as error:
            raise self.unreadable(str(error) or type(error).__name__) from error

    def require_intact(self) -> None:
        """Raise ModelError if the content of a member does not match its checksum, which torch does not verify."""
        try:
            damaged = self._file.testzip()
        except Exception as error:
            raise self.unreadable(str(error) or type(error).__name__) from error
        if damaged is not None:
            raise self.unreadable(f"{damaged} is damaged: its checksum is another")

    def unreadable(self, reason: str) -> ModelError:
        """The error for this file, with its cause."""
        return ModelError(f"cannot read {self.path} as {self.kind} ({reason.strip()}); save the network again")
