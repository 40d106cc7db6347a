"""An image archive that speaks DICOMweb: what it holds (QIDO), fetched (WADO) and added to (STOW).

Only the address that was given is talked to: no proxy, no redirect, no credentials from other places.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sagittal.core.errors import ArchiveError, InputError, SagittalError
from sagittal.core.files import sha256_file
from sagittal.core.optional import optional_import
from sagittal.workflow._dicom_json import datasets, number, quiet, text, texts
from sagittal.workflow._multipart import boundary_of, write_parts

__all__ = ["Archive", "Series", "Study"]

_GIB = 1024**3
_IDENTITY = {"name": "PatientName", "patient_id": "PatientID", "birth_date": "PatientBirthDate"}
_ANY_SYNTAX = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_REFUSALS = {401: "a user and a password, or a token, that it knows", 403: "a user who may do this"}


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as the archive describes it; ``identity`` is empty unless it was asked for."""

    uid: str
    date: str
    modalities: tuple[str, ...]
    description: str
    series: int | None
    instances: int | None
    identity: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Series:
    """A series as the archive describes it."""

    study_uid: str
    uid: str
    modality: str
    description: str
    instances: int | None


class Archive:
    """A DICOMweb service.

    Args:
        url: Its address, such as ``http://127.0.0.1:8042/dicom-web``.
        user: Name for HTTP basic authentication.
        password: Its password.
        token: Bearer token, in the place of user and password.
        ca_bundle: File of certificates to trust, for a service with one of its own.
        timeout: Seconds to wait for a connection, and for each answer to go on.

    Raises:
        InputError: The address is none, or holds a password; no such file of certificates.
        MissingDependencyError: dicomweb-client is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        user: str = "",
        password: str = "",
        token: str = "",
        ca_bundle: str = "",
        timeout: float = 60.0,
    ) -> None:
        web = optional_import("dicomweb_client.web", "dicomweb")
        requests = optional_import("requests", "dicomweb")
        parts = _checked(url)
        self.url = url.rstrip("/")
        self._where = f"{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path.rstrip('/')}"
        if ca_bundle and not Path(ca_bundle).is_file():
            raise InputError("there is no such file of certificates", source=ca_bundle)
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.max_redirects = 0
        self._session.verify = ca_bundle or True
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"
        elif user:
            self._session.auth = (user.encode(), password.encode())
        self._timeout = timeout
        self._client = web.DICOMwebClient(self.url, session=self._session, timeout=timeout)
        # The client would send a large body again from where it had been read to: from its end.
        self._client.set_http_retry_params(retry=False)

    @classmethod
    def from_environment(cls, url: str, *, timeout: float = 60.0) -> Archive:
        """Take credentials from ``SAGITTAL_DICOMWEB_USER``, ``_PASSWORD``, ``_TOKEN`` and ``_CA``."""
        given = {
            name: os.environ.get(f"SAGITTAL_DICOMWEB_{variable}", "")
            for name, variable in (
                ("user", "USER"),
                ("password", "PASSWORD"),
                ("token", "TOKEN"),
                ("ca_bundle", "CA"),
            )
        }
        return cls(url, timeout=timeout, **given)

    def find_studies(
        self,
        *,
        uid: str = "",
        patient_id: str = "",
        date: str = "",
        modality: str = "",
        description: str = "",
        limit: int = 100,
        offset: int = 0,
        identity: bool = False,
    ) -> list[Study]:
        """Return the studies that match all of what is given, newest first.

        Args:
            uid: Study Instance UID.
            patient_id: Patient ID.
            date: Day, ``YYYYMMDD``, or a range ``YYYYMMDD-YYYYMMDD``.
            modality: A modality in the study, such as ``MR``.
            description: Study Description; ``*`` stands for anything.
            limit: Most studies to return.
            offset: Studies to skip, in the archive's order.
            identity: Also return name, identifier and birth date.

        Raises:
            ArchiveError: The archive cannot be reached, refuses, or answers no DICOM.
        """
        filters = {
            "StudyInstanceUID": uid,
            "PatientID": patient_id,
            "StudyDate": date,
            "ModalitiesInStudy": modality,
            "StudyDescription": description,
        }
        found = self._query(
            lambda: self._client.search_for_studies(
                limit=limit,
                offset=offset,
                fields=["StudyDescription", "ModalitiesInStudy"],
                search_filters={name: value for name, value in filters.items() if value},
            )
        )
        studies = [
            Study(
                uid=text(one, "StudyInstanceUID"),
                date=text(one, "StudyDate"),
                modalities=texts(one, "ModalitiesInStudy"),
                description=text(one, "StudyDescription"),
                series=number(one, "NumberOfStudyRelatedSeries"),
                instances=number(one, "NumberOfStudyRelatedInstances"),
                identity={key: text(one, name) for key, name in _IDENTITY.items()} if identity else {},
            )
            for one in found
        ]
        return sorted(studies, key=lambda study: (study.date, study.uid), reverse=True)

    def find_series(self, study_uid: str) -> list[Series]:
        """Return the series of a study.

        Raises:
            ArchiveError: There is no such study, or as :meth:`find_studies`.
        """
        _require_uid(study_uid, "study")
        found = self._query(
            lambda: self._client.search_for_series(study_uid, fields=["SeriesDescription"]), missing=study_uid
        )
        if not found:
            raise ArchiveError("the archive has no such study", source=self._where, value=study_uid)
        return [
            Series(
                study_uid=study_uid,
                uid=text(one, "SeriesInstanceUID"),
                modality=text(one, "Modality"),
                description=text(one, "SeriesDescription"),
                instances=number(one, "NumberOfSeriesRelatedInstances"),
            )
            for one in found
        ]

    def fetch(
        self,
        series: Series,
        folder: Path,
        *,
        max_instances: int = 20_000,
        max_bytes: int = 16 * _GIB,
    ) -> list[Path]:
        """Fetch a series to ``folder`` as it is stored, one file an instance, in its transfer syntax.

        An instance that comes twice is kept once.

        Raises:
            ArchiveError: No such series, an answer that breaks off or is something else, instances of
                another series, fewer instances than the archive lists, two that differ under one UID.
            StorageError: The disk is full, read-only or forbidden.
        """
        _require_uid(series.study_uid, "study")
        _require_uid(series.uid, "series")
        address = f"{self.url}/studies/{series.study_uid}/series/{series.uid}"
        kept: dict[str, Path] = {}
        with self._errors(missing=series.uid):
            response = self._session.get(
                address, headers={"Accept": _ANY_SYNTAX}, stream=True, timeout=self._timeout
            )
            with response:
                response.raise_for_status()
                boundary = boundary_of(response.headers.get("Content-Type", ""), source=self._where)
                parts = write_parts(
                    response.iter_content(1 << 20),
                    boundary,
                    folder,
                    source=self._where,
                    max_parts=max_instances,
                    max_bytes=max_bytes,
                )
                for part in parts:
                    self._keep(part, series, kept)
        if series.instances is not None and len(kept) < series.instances:
            raise ArchiveError(
                "the archive sent fewer instances than it lists",
                source=self._where,
                value=len(kept),
                expected=f"{series.instances} of series {series.uid}",
            )
        if not kept:
            raise ArchiveError("the archive sent no instance", source=self._where, value=series.uid)
        return [kept[uid] for uid in sorted(kept)]

    def instance(self, dataset: Any) -> Any | None:
        """Return the archive's own copy of an instance, or None where it has none under these UIDs."""
        uids = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
        try:
            with self._errors(missing=str(uids[2])):
                listed = self._client.search_for_instances(
                    *uids[:2], search_filters={"SOPInstanceUID": str(uids[2])}
                )
                if not any(text(one, "SOPInstanceUID") == uids[2] for one in datasets(listed)):
                    return None
                return self._client.retrieve_instance(*uids, media_types=(("application/dicom", "*"),))
        except _MissingError:
            return None

    def store(self, dataset: Any) -> None:
        """Send one instance; that the archive says yes does not show that it is there.

        Raises:
            ArchiveError: The archive refuses it; the message holds the reason's number.
        """
        with self._errors(), quiet():
            try:
                answer = self._client.store_instances([dataset])
            except optional_import("requests").HTTPError as error:
                if error.response is None or error.response.status_code != 409:
                    raise
                answer = _failures(error.response)
        if failed := answer.get("FailedSOPSequence"):
            reasons = {f"0x{int(item.get('FailureReason') or 0):04X}" for item in failed}
            raise ArchiveError(
                "the archive did not store an instance",
                source=self._where,
                value=f"{dataset.SOPInstanceUID}, failure reason {', '.join(sorted(reasons))}",
            )

    def _keep(self, part: Path, series: Series, kept: dict[str, Path]) -> None:
        header = _header(part, self._where)
        uid = str(header.get("SOPInstanceUID", ""))
        _require_uid(uid, "instance")
        if str(header.get("SeriesInstanceUID", "")) != series.uid:
            raise ArchiveError(
                "the archive sent an instance of another series", source=self._where, value=uid
            )
        if uid not in kept:
            kept[uid] = part.replace(part.with_name(f"{part.name.removeprefix('part-')}.dcm"))
            return
        if sha256_file(part) != sha256_file(kept[uid]):
            raise ArchiveError(
                "the archive sent two different instances under one UID", source=self._where, value=uid
            )
        part.unlink()

    def _query(self, ask: Any, missing: str = "") -> list[Any]:
        with self._errors(missing=missing):
            return datasets(ask())

    @contextlib.contextmanager
    def _errors(self, *, missing: str = "") -> Iterator[None]:
        """Say what went wrong; the libraries' own words are left out, for they hold the whole query."""
        requests = optional_import("requests")
        try:
            yield
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status == 404 and missing:
                raise _MissingError(
                    "the archive has no such thing", source=self._where, value=missing
                ) from None
            raise ArchiveError(
                "the archive refuses",
                source=self._where,
                value=f"HTTP status {status}",
                expected=_REFUSALS.get(status, "the address of a DICOMweb service"),
            ) from None
        except requests.TooManyRedirects:
            raise ArchiveError(
                "the archive sends elsewhere, and only the address given is talked to", source=self._where
            ) from None
        except requests.exceptions.SSLError:
            raise ArchiveError(
                "the archive's certificate is not trusted",
                source=self._where,
                expected="its own certificate in SAGITTAL_DICOMWEB_CA",
            ) from None
        except requests.Timeout:
            raise ArchiveError(
                "the archive does not answer", source=self._where, value=f"{self._timeout:g} s"
            ) from None
        except requests.exceptions.JSONDecodeError:
            raise ArchiveError(
                "the answer is not DICOM JSON",
                source=self._where,
                expected="the address of a DICOMweb service",
            ) from None
        except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError):
            raise ArchiveError("the answer ends in the middle", source=self._where) from None
        except requests.RequestException as error:
            raise ArchiveError(
                "the archive cannot be reached",
                source=self._where,
                value=type(error).__name__,
                expected="a service that runs at this address",
            ) from None
        except SagittalError:
            raise
        except (ValueError, KeyError, IndexError, optional_import("pydicom").errors.InvalidDicomError):
            raise ArchiveError("the answer is not what DICOMweb allows", source=self._where) from None


class _MissingError(ArchiveError):
    """The archive says 404 for something that was named."""


def _checked(url: str) -> Any:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or "[" in url:
        raise InputError(
            "not the address of an archive", value=url, expected="such as http://127.0.0.1:8042/dicom-web"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            "the address holds more than an address",
            source=parts.hostname,
            expected="credentials in SAGITTAL_DICOMWEB_USER and SAGITTAL_DICOMWEB_PASSWORD, no query",
        )
    return parts


def _require_uid(uid: str, what: str) -> None:
    pydicom = optional_import("pydicom")
    if not pydicom.uid.UID(uid, validation_mode=pydicom.config.IGNORE).is_valid:
        raise InputError(f"not a UID of a {what}", value=uid, expected="digits and dots, at most 64")


def _header(path: Path, source: str) -> Any:
    pydicom = optional_import("pydicom")
    try:
        with quiet():
            return pydicom.dcmread(path, specific_tags=["SOPInstanceUID", "SeriesInstanceUID"])
    except Exception:  # arbitrary bytes make pydicom raise almost anything
        with path.open("rb") as stream:
            start = stream.read(16)
        raise ArchiveError(
            "the archive sent something that is not DICOM", source=source, value=f"first bytes {start!r}"
        ) from None


def _failures(response: Any) -> Any:
    try:
        return datasets([response.json()])[0]
    except ValueError:
        raise ArchiveError("the archive refuses", value="HTTP status 409, without a reason") from None
