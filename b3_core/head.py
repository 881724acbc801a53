"""The head of a manifest, ``manifest.json``, read strictly: everything else is read by it.

    bytes -> schema version -> keys and types -> what follows from the settings -> address

Nothing but the head itself is looked at, so whoever opens a manifest does all of this.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from b3_core.artifacts import Address, Artifact
from b3_core.config import BatchSpec, MiningSpec, Name
from b3_core.errors import CorruptArtifactError, InputError

SCHEMA = 6

_Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{20}$")]


class _Strict(BaseModel):
    """Types are taken as they are, and a key that is not known is an error."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Layout(_Strict):
    file_batches: PositiveInt
    group_batches: PositiveInt


class _Settings(_Strict):
    mining: MiningSpec
    batches: BatchSpec
    weights: list[float]
    order: list[Name] = Field(default_factory=list)
    seed: int
    leg: NonNegativeInt = 0


class _Dataset(_Strict):
    name: Name
    rows: PositiveInt
    digest: str
    places: str
    pairs: _Fingerprint
    communities: list[_Fingerprint]
    ranks: _Fingerprint
    p: NonNegativeInt
    m: PositiveInt
    teacher: dict[str, Any]
    quality: list[dict[str, Any]]
    earlier: dict[str, Any] = Field(default_factory=dict)


class _Head(_Strict):
    schema_version: int = Field(alias="schema")
    version: int
    batch_size: PositiveInt
    k: PositiveInt
    batches: PositiveInt
    layout: _Layout
    left_out: NonNegativeInt
    duplicates: NonNegativeInt
    negatives: NonNegativeInt
    negatives_short: NonNegativeInt
    settings: _Settings
    variant_of_epoch: list[int]
    datasets: list[_Dataset] = Field(min_length=1)
    lineage: dict[str, dict[str, list[Any]]]
    libraries: dict[str, str | None]


def read(artifact: Artifact) -> dict[str, Any]:
    """Read a manifest's head.

    Raises
    ------
    InputError
        It is of another schema version.
    CorruptArtifactError
        It contradicts itself, or the address it is at; the key is named.
    """
    body = artifact.path("manifest.json").read_bytes()
    try:
        head = json.loads(body)
    except ValueError as error:
        raise _corrupt(artifact, f"is no JSON: {error}") from error
    if not isinstance(head, dict):
        raise _corrupt(artifact, "is no JSON object")
    if head.get("schema") != SCHEMA:
        raise InputError(
            f"manifest {artifact.uri} has schema version {head.get('schema')!r}",
            expected=f"version {SCHEMA}",
            remedy="mine again with this version of b3",
        )
    try:
        parsed = _Head.model_validate(head)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _corrupt(artifact, f"has a wrong {where!r}: {first['msg']}") from error
    same(artifact.uri, _stated(parsed), _following(parsed))
    _check_address(artifact, head)
    return head


def same(where: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compare what is stated with what must be, by name.

    Raises
    ------
    CorruptArtifactError
        The first difference.
    """
    for name, value in expected.items():
        if found[name] != value:
            raise CorruptArtifactError(
                f"{where}: {name} is {_short(found[name])}",
                expected=_short(value),
                remedy="mine again",
            )


def _stated(head: _Head) -> dict[str, Any]:
    found: dict[str, Any] = head.model_dump(
        include={"batch_size", "k", "negatives", "variant_of_epoch"}
    )
    found["layout"] = head.layout.file_batches % head.layout.group_batches
    found["datasets"] = len({entry.name for entry in head.datasets})
    found["settings.weights"] = len(head.settings.weights)
    found["settings.order"] = head.settings.order
    for entry in head.datasets:
        found[f"m of {entry.name}"], found[f"p of {entry.name}"] = entry.m, entry.p
        found[f"communities of {entry.name}"] = len(entry.communities)
    return found


def _following(head: _Head) -> dict[str, Any]:
    """Say what the figures of ``_stated`` must be, by the settings."""
    mining, batches = head.settings.mining, head.settings.batches
    expected: dict[str, Any] = {
        "batch_size": batches.batch_size,
        "k": mining.k,
        "negatives": batches.negatives,
        "variant_of_epoch": mining.variant_of_epoch(batches),
        "layout": 0,  # files of whole row groups
        "datasets": len(head.datasets),  # each once
        "settings.weights": len(head.datasets),
        "settings.order": [entry.name for entry in head.datasets if len(head.datasets) > 1],
    }
    for entry in head.datasets:
        expected[f"m of {entry.name}"] = mining.m
        expected[f"communities of {entry.name}"] = len(mining.variants(batches))
        if mining.p is not None:
            expected[f"p of {entry.name}"] = mining.p
    return expected


def _check_address(artifact: Artifact, head: Mapping[str, Any]) -> None:
    """Refuse the manifest of other settings, datasets or communities, sound though it may be."""
    belongs = Address.of(
        artifact.address.dataset,
        artifact.address.stage,
        version=head["version"],
        settings=head["settings"],
        inputs={f"{entry['name']}/places": entry["places"] for entry in head["datasets"]}
        | {
            f"{entry['name']}/{variant}": fingerprint
            for entry in head["datasets"]
            for variant, fingerprint in enumerate(entry["communities"])
        },
    )
    if belongs != artifact.address:
        raise CorruptArtifactError(
            f"{artifact.uri} holds the manifest of other settings, datasets or communities",
            expected=f"it at {belongs.path}",
            remedy="delete that folder and mine again",
        )


def _corrupt(artifact: Artifact, problem: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"{artifact.uri}: manifest.json {problem}", remedy="delete that folder and mine again"
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
