"""Which student is in place, and whether a new one takes its place.

    new student -> candidate -> judged beside the current one, on the same queries
                -> current (the one before it is retired), or rejected

Data moves on between two trainings, so the current student is judged again on the datasets as they
are now; queries that it was trained on, or whose group it was, do not count.

Legend: N rows, Q of them held out.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from b3_core.artifacts import Address, Draft
from b3_core.config import EvalSpec, PromoteSpec, TrainSpec
from b3_core.dataset_stage import PairsRef
from b3_core.evaluate import compare, retrieval
from b3_core.groups import identities
from b3_core.learn import Evaluation, Judge
from b3_core.pairs import read_known
from b3_core.progress import Progress
from b3_core.stage import Stage, generator
from b3_core.store import ArtifactStore

Status = Literal["candidate", "current", "rejected", "retired"]

_REMEMBERED = 100  # decisions
_VERSION = 2


@dataclass(frozen=True)
class Standing(Stage):
    """How the student in place does on datasets as they are now."""

    student: Address
    refs: tuple[PairsRef, ...]
    spec: EvalSpec
    name: ClassVar[str] = "standing"
    version: ClassVar[int] = 10 * retrieval.VERSION + _VERSION

    @property
    def dataset(self) -> str:  # noqa: D102 - the base class says it
        return self.student.dataset

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return self.spec.settings

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        pairs = {ref.spec.name: f"{ref.digest} {ref.heldout_digest}" for ref in self.refs}
        return {"student": self.student.fingerprint, **pairs}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        record = store.get(self.student).record
        known = TrainSpec.model_fields.keys() & record["settings"].keys()
        train = TrainSpec(**{name: record["settings"][name] for name in known})
        # The prompts that it was trained with, not those that CONFIG has now.
        names = [entry["name"] for entry in trained_on(self.student, store)["datasets"]]
        own = record["settings"].get("prompts") or []
        prompts = {
            name: (query, positive) for name, (query, positive) in zip(names, own, strict=bool(own))
        }
        judge = Judge(self.student, record["lineage"]["manifest"], train, prompts)
        judge.evaluate(self.refs, store, draft, progress=progress, reverse=self.spec.reverse)


@dataclass(frozen=True)
class Promotion:
    """The place of one CONFIG's current student, in CONFIG's store.

    Parameters
    ----------
    pipeline
        CONFIG's name.
    """

    store: ArtifactStore
    pipeline: str
    rule: PromoteSpec

    @property
    def current(self) -> Address | None:
        """The student in place, None before the first."""
        found = self._noted()["current"]
        return None if found is None else Address(*found)

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was decided, oldest first: student, manifest, status, and why."""
        decisions: list[dict[str, Any]] = self._noted()["history"]
        return decisions

    def standing(self, evaluation: Evaluation) -> Standing | None:
        """Return what judges the current student beside a candidate; None if there is no other."""
        current = self.current
        if current is None or current == evaluation.student.address:
            return None
        return Standing(current, evaluation.student.manifest.refs, evaluation.spec)

    def decided(self, evaluation: Evaluation) -> bool:
        """Tell whether a student was compared and what came of it stands: it was not replaced."""
        marks = _marks(self.history, evaluation)
        return bool(marks) and marks[-1]["status"] in ("current", "rejected")

    def last(self, evaluation: Evaluation) -> dict[str, Any]:
        """Return what was decided last about a student, as :meth:`decide` says it."""
        mark = _marks(self.history, evaluation)[-1]
        return self._said(evaluation, mark["status"], mark["why"])

    def nominate(self, evaluation: Evaluation) -> None:
        """Mark a student as candidate, unless it is marked already."""
        if not _marks(self.history, evaluation):
            self._mark(evaluation, "candidate", "trained, not compared yet")

    def decide(self, evaluation: Evaluation) -> dict[str, Any]:
        """Mark a candidate as current or rejected; both must have been judged.

        Returns
        -------
        dict
            ``student`` and ``manifest`` as URIs, ``status``, ``why``, and ``difference`` (mean,
            low, high of MRR, new - current, and ``queries``) where there was one to compare with.
        """
        standing = self.standing(evaluation)
        if standing is None:
            first = self.current is None
            why = "the first" if first else "in place already"
            return self._mark(evaluation, "current", why)
        fair_T = self._unseen(standing)
        unfair = not any(fair_Q.any() for fair_Q in fair_T)
        if unfair:
            fair_T = [np.ones_like(fair_Q) for fair_Q in fair_T]
        found, queries = self._difference(evaluation, standing, fair_T)
        bar = self.rule.margin if self.rule.rule == "better" else -self.rule.margin
        promoted = found.low > bar
        why = (
            f"MRR {found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}] against the one in "
            f"place; rule {self.rule.rule!r} asks for more than {bar:+.4f}"
        )
        if unfair:
            why += "; it was trained on the group of every query, so that all count, in its favour"
        difference = {"mean": found.mean, "low": found.low, "high": found.high}
        difference["queries"] = queries
        status: Status = "current" if promoted else "rejected"
        return self._mark(evaluation, status, why) | {"difference": difference}

    def _difference(
        self, evaluation: Evaluation, standing: Standing, fair_T: Sequence[npt.NDArray[np.bool_]]
    ) -> tuple[compare.Interval, int]:
        """Return new - current in MRR, and how many queries tell so."""
        new, old = (self.store.get(stage.address) for stage in (evaluation, standing))
        tasks: list[compare.Task] = []
        reciprocal_2TQ: tuple[list[npt.NDArray[np.float64]], ...] = ([], [])
        for task, fair_N in zip(new.counts["tasks"], fair_T, strict=True):
            reports = [retrieval.EvalReport.load(each, task) for each in (new, old)]
            fair_Q = fair_N[reports[0].row_Q]
            if fair_Q.any():
                whole = reports[0].drawn
                tasks.append(compare.Task(whole.unit_Q[fair_Q], whole.stratum))
                for scores, report in zip(reciprocal_2TQ, reports, strict=True):
                    scores.append(1 / report.rank_Q[fair_Q])
        ours_1Q, theirs_1Q = (np.concatenate(scores)[None] for scores in reciprocal_2TQ)
        found = compare.paired_bootstrap(
            ours_1Q, theirs_1Q, rng=generator(0, "promotion"), tasks=tasks
        )
        return found, ours_1Q.size

    def _unseen(self, standing: Standing) -> list[npt.NDArray[np.bool_]]:
        """Tell which held-out queries of each task the current student was not trained on."""
        head = trained_on(standing.student, self.store)
        pairs_of = {
            entry["name"]: self.store.get(Address(entry["name"], "pairs", entry["pairs"]))
            for entry in head["datasets"]
        }
        unseen: list[npt.NDArray[np.bool_]] = []
        for ref in standing.refs:
            now = self.store.get(ref.address)
            heldout, train = (read_known(now, part) for part in ("heldout", "train"))
            fair_Q = np.ones(len(heldout), bool)
            if ref.spec.name in pairs_of:
                trained = read_known(pairs_of[ref.spec.name])
                labelled = ref.spec.task == "classification"
                fair_Q = unseen_rows(heldout, train, trained, labelled=labelled)
            unseen += [fair_Q] * (2 if standing.spec.reverse else 1)
        return unseen

    def _noted(self) -> dict[str, Any]:
        return self.store.note(self._name) or {"current": None, "history": []}

    @property
    def _name(self) -> str:
        return f"promotion/{self.pipeline}"

    def _mark(self, evaluation: Evaluation, status: Status, why: str) -> dict[str, Any]:
        """Write a decision down, unless the last one of this student was the same."""
        student, manifest = evaluation.student.address, evaluation.student.manifest.address
        noted = self._noted()
        history: list[dict[str, Any]] = noted["history"]
        before = _marks(history, evaluation)
        if not before or before[-1]["status"] != status:
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            if status == "current" and noted["current"] is not None:
                retired = {"student": noted["current"], "status": "retired", "why": "replaced"}
                history.append(retired | {"when": when})
            history.append(
                {
                    "student": list(_parts(student)),
                    "manifest": list(_parts(manifest)),
                    "status": status,
                    "why": why,
                    "when": when,
                }
            )
            current = list(_parts(student)) if status == "current" else noted["current"]
            self.store.set_note(self._name, {"current": current, "history": history[-_REMEMBERED:]})
        return self._said(evaluation, status, why)

    def _said(self, evaluation: Evaluation, status: Status, why: str) -> dict[str, Any]:
        student, manifest = evaluation.student.address, evaluation.student.manifest.address
        return {
            "student": self.store.uri(student.path),
            "manifest": self.store.uri(manifest.path),
            "status": status,
            "why": why,
        }


def unseen_rows(
    heldout: pa.Table, train: pa.Table, trained: pa.Table, *, labelled: bool
) -> npt.NDArray[np.bool_]:
    """Tell of which held-out rows nothing was trained on.

    A group holds together what answers the same queries, and is held out whole; but which are held
    out is said by a hash of their rows, so that one row more can put a group in the other part. A
    row is seen if any of its group was trained on, by its key or by its positive.

    Parameters
    ----------
    heldout, train
        Rows as they are now, as :func:`b3_core.pairs.read_known` reads them.
    trained
        Those that the student was trained on.
    labelled
        Whether positives are labels, which all parts share: then a row is seen by its own key.

    Returns
    -------
    ndarray of shape (Q,), bool
    """
    if labelled:
        return ~_among(heldout["key"], trained["key"])
    known_N = trained["key"], identities(trained)
    seen_Gs = []
    for rows in (heldout, train):
        seen_N = _among(rows["key"], known_N[0]) | _among(identities(rows), known_N[1])
        seen_Gs.append(rows["group"].to_numpy()[seen_N])
    return np.isin(heldout["group"].to_numpy(), np.concatenate(seen_Gs), invert=True)


def _among(value_N: pa.ChunkedArray, known: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    # The distinct texts of a large dataset outgrow the 2 GiB that a string array can address.
    wide = pa.large_string()
    found: npt.NDArray[np.bool_] = pc.is_in(value_N.cast(wide), known.cast(wide)).to_numpy()
    return found


def trained_on(student: Address, store: ArtifactStore) -> dict[str, Any]:
    """Return the head of the manifest that a student was trained on, of whatever schema.

    A student in place outlives versions of b3, and its manifest cannot be mined again; all of them
    name datasets and pairs alike.
    """
    made = store.get(student).record["lineage"]["manifest"]
    body = store.get(Address(student.dataset, "manifest", made)).path("manifest.json").read_bytes()
    head: dict[str, Any] = json.loads(body)
    return head


def _marks(history: Sequence[dict[str, Any]], evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return what was decided about a student, oldest first."""
    student = list(_parts(evaluation.student.address))
    return [each for each in history if each["student"] == student]


def _parts(address: Address) -> Sequence[str]:
    return address.dataset, address.stage, address.fingerprint
