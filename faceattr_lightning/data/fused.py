"""Several data sets as one: the union of their attributes, missing labels left out, sampled by weight."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from faceattr_lightning.attributes import canonical_attribute
from faceattr_lightning.data.dataset import FaceSource
from faceattr_lightning.data.module import FaceDataModule
from faceattr_lightning.data.order import Mix
from faceattr_lightning.data.table import FaceTable, Slice
from faceattr_lightning.errors import ConfigError, DataError
from faceattr_lightning.instantiate import build


class FusedSource:
    """Takes each row from the data set that it belongs to.

    Args:
        sources: of the data sets, whose rows stand one data set behind the other.
        starts: int64 (D,), the first row of each.
        landmarks: number of landmarks L; data sets with none give L that are not valid.
    """

    def __init__(self, sources: Sequence[FaceSource], starts: NDArray[np.int64], landmarks: int) -> None:
        self._sources, self._starts, self._landmarks = sources, starts, landmarks

    def images(self, rows: NDArray[np.int64]) -> Tensor:
        split = self._split(rows)
        merged = torch.cat([source.images(rows[place] - start) for place, source, start in split])
        back = np.concatenate([place for place, _, _ in split]).argsort()
        return merged[torch.from_numpy(back)].contiguous(memory_format=torch.channels_last)

    def landmarks(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        points = torch.zeros(len(rows), self._landmarks, 2)
        valid = torch.zeros(len(rows), self._landmarks, dtype=torch.bool)
        for place, source, start in self._split(rows):
            found, known = source.landmarks(rows[place] - start)
            if found.shape[1]:
                points[place], valid[place] = found, known
        return points, valid

    def _split(self, rows: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], FaceSource, np.int64]]:
        """Return for each data set among ``rows`` the places where it stands."""
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        return [
            (np.flatnonzero(owner == index), self._sources[index], self._starts[index]) for index in np.unique(owner)
        ]


class Fused(FaceDataModule):
    """Any list of data sets, each cropped its own way to one size.

    An attribute is the same in two data sets if `canonical_attribute` says so; what a data set does not label is -1. In
    training a data set's share of an epoch goes with its weight, not with its size: a small one is seen more than once,
    a large one in part, another part each epoch.

    Args:
        sets: names of the data sets, as of ``members``.
        members: for each name the node of its data module; the keys of this one (image_size, seed, ...) take the place
            of theirs.
        weights: share of each data set in training, in any unit; ``None`` takes the square root of its size.
        age_groups: the data set whose age groups count, where several have different ones; those of the others are
            then left out.
        image_size: see `FaceDataModule`, like the arguments after it.

    Raises:
        ConfigError: unknown or no sets, or weights that do not fit them.
    """

    name = "fused"

    def __init__(
        self,
        sets: Sequence[str],
        members: dict[str, dict[str, Any]],
        weights: dict[str, float] | None = None,
        age_groups: str | None = None,
        image_size: int = 128,
        batch_size: int = 64,
        num_workers: int | None = None,
        attributes: Sequence[str] | None = None,
        train_fraction: float = 1.0,
        augmentation: dict[str, float] | None = None,
        seed: int = 0,
        prepared: bool = True,
        cache_dir: str | None = None,
    ) -> None:
        self.sets, self.weights, self.age_groups = list(sets), weights, age_groups
        self._check(members)
        self.members: list[FaceDataModule] = []
        for name in sets:
            with _named(name):
                shared = {"image_size": image_size, "seed": seed, "prepared": prepared, "cache_dir": cache_dir}
                self.members.append(build(members[name], attributes=None, augmentation=None, **shared))
        self.age_group_names = self._age_groups()
        # The crop of a fused data set is its first member's.
        self.source_size = self.members[0].source_size
        super().__init__(
            image_size=image_size,
            crop=self.members[0].crop,
            batch_size=batch_size,
            num_workers=num_workers,
            attributes=attributes,
            train_fraction=train_fraction,
            augmentation=augmentation,
            seed=seed,
            # Its members are, each by itself.
            prepared=False,
        )
        self._starts = np.zeros(0, dtype=np.int64)

    def prepare_data(self) -> None:
        for name, member in zip(self.sets, self.members, strict=True):
            with _named(name):
                member.prepare_data()

    def find_data(self) -> None:
        for name, member in zip(self.sets, self.members, strict=True):
            with _named(name):
                member.find_data()

    def read_table(self) -> FaceTable:
        for name, member in zip(self.sets, self.members, strict=True):
            with _named(name):
                member.setup()
        tables = [member.table for member in self.members]
        self._starts = np.cumsum([0, *map(len, tables[:-1])]).astype(np.int64)
        names = self._union(tables)
        count = self._landmark_count(tables)
        attributes = np.full((sum(map(len, tables)), len(names)), -1, dtype=np.int8)
        # Each member's own are in pixels of its own images; `source` has them as fractions.
        landmarks = np.full((len(attributes), count, 2), np.nan, dtype=np.float32)
        for table, start in zip(tables, self._starts, strict=True):
            rows = slice(start, start + len(table))
            columns = [names.index(canonical_attribute(name)) for name in table.attribute_names]
            attributes[rows, columns] = table.attributes
        return FaceTable(
            name=self.name,
            root=tables[0].root.parent,
            files=[f"{table.name}/{file}" for table in tables for file in table.files],
            attribute_names=tuple(names),
            attributes=attributes,
            split=np.concatenate([table.split for table in tables]),
            image_size=tables[0].image_size,
            landmarks=landmarks,
            identity=_distinct([table.identity for table in tables]),
            age_groups=self.age_group_names,
            age_group=np.concatenate(
                [
                    table.age_group if table.age_groups == self.age_group_names else np.full(len(table), -1)
                    for table in tables
                ]
            ),
            databases=tuple(self.sets),
            database=np.repeat(np.arange(len(tables)), [len(table) for table in tables]),
            slices=_fused_slices(tables),
            notes=[f"{table.name}: {note}" for table in tables for note in table.notes],
        )

    def source(self) -> FaceSource:
        landmarks = self.table.landmarks.shape[1]
        return FusedSource([member.source() for member in self.members], self._starts, landmarks)

    def source_images(self, rows: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        return [
            self.members[index].source_images(np.array([row - self._starts[index]]))[0]
            for row, index in zip(rows, self.table.database[rows], strict=True)
        ]

    def mix(self, rows: NDArray[np.int64]) -> Mix:
        database = self.table.database[rows]
        sizes = np.bincount(database, minlength=len(self.sets)).astype(np.float64)
        weights = np.sqrt(sizes) if self.weights is None else np.array([self.weights[name] for name in self.sets])
        weights = np.where(sizes > 0, weights, 0.0)
        return Mix(database, weights / weights.sum())

    def landmark_count(self) -> int:
        return max(member.landmark_count() for member in self.members)

    def _template(self) -> tuple[tuple[float, float], ...]:
        templates = (member._template() for member in self.members)
        return next(filter(None, templates), ())

    def _union(self, tables: Sequence[FaceTable]) -> list[str]:
        """Return the attributes of all tables, the first one's first."""
        by_table = [{canonical_attribute(name): name for name in table.attribute_names} for table in tables]
        for table, own in zip(tables, by_table, strict=True):
            if len(own) < len(table.attribute_names):
                lost = [name for name in table.attribute_names if name not in own.values()]
                raise DataError(
                    f"{table.root}: '{lost[0]}' and '{own[canonical_attribute(lost[0])]}' mean the same attribute; "
                    "leave one of them out."
                )
        names = list(dict.fromkeys(name for own in by_table for name in own))
        for index, own in enumerate(by_table):
            others = set().union(*(other for place, other in enumerate(by_table) if place != index))
            if len(tables) > 1 and not others & set(own):
                raise ConfigError(
                    [
                        f"data.sets: {self.sets[index]} shares no attribute with "
                        f"{', '.join(name for place, name in enumerate(self.sets) if place != index)}; they can't be "
                        "learned as one. Leave it out, or rename its attributes."
                    ]
                )
        return names

    def _landmark_count(self, tables: Sequence[FaceTable]) -> int:
        counts = {name: table.landmarks.shape[1] for name, table in zip(self.sets, tables, strict=True)}
        found = {count for count in counts.values() if count}
        if len(found) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
            raise ConfigError([f"data.sets: the data sets have different numbers of landmarks: {listed}."])
        return found.pop() if found else 0

    def _age_groups(self) -> tuple[str, ...]:
        named = zip(self.sets, self.members, strict=True)
        by_name = {name: member.age_group_names for name, member in named if member.age_group_names}
        if self.age_groups is not None:
            if self.age_groups not in by_name:
                having = ", ".join(by_name) or "none of the sets"
                raise ConfigError([f"data.age_groups: '{self.age_groups}' has no age groups; {having} has."])
            return by_name[self.age_groups]
        if len(set(by_name.values())) > 1:
            listed = "; ".join(f"{name} {', '.join(groups)}" for name, groups in by_name.items())
            raise ConfigError(
                [
                    f"data.age_groups: the age groups differ ({listed}), and an age in one is outside every group of "
                    f"the other. Choose whose ages to learn: data.age_groups={next(iter(by_name))}."
                ]
            )
        return next(iter(by_name.values()), ())

    def _check(self, members: dict[str, dict[str, Any]]) -> None:
        known = ", ".join(members)
        problems = [f"data.sets: there is no '{name}'; known: {known}." for name in self.sets if name not in members]
        problems += [f"data.sets: '{name}' is given twice." for name in set(self.sets) if self.sets.count(name) > 1]
        if not self.sets:
            problems.append(f"data.sets: the list is empty; choose from {known}.")
        for name in (self.weights or {}).keys() ^ set(self.sets) if self.weights is not None else ():
            problems.append(f"data.weights: expected a weight for each of {', '.join(self.sets)}; see '{name}'.")
        problems += [
            f"data.members.{name}.train_fraction: it is not used; set data.train_fraction for all."
            for name in self.sets
            if members.get(name, {}).get("train_fraction", 1) != 1
        ]
        problems += [
            f"data.weights.{name}: expected a positive number, found {weight}."
            for name, weight in (self.weights or {}).items()
            if weight <= 0
        ]
        if problems:
            raise ConfigError(sorted(problems))


@contextmanager
def _named(member: str) -> Iterator[None]:
    """Let errors name the keys of a member."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError([_renamed(problem, member) for problem in error.problems]) from error
    except DataError as error:
        raise DataError(_renamed(str(error), member)) from error


def _renamed(text: str, member: str) -> str:
    return re.sub(r"\bdata\.(?=[a-z])", f"data.members.{member}.", text)


def _fused_slices(tables: Sequence[FaceTable]) -> dict[str, Slice]:
    """Return the slices of all tables with the union of their sides; images of a table without one have -1 in it."""
    fused = {}
    for name in dict.fromkeys(name for table in tables for name in table.slices):
        sides = tuple(
            dict.fromkeys(side for table in tables if name in table.slices for side in table.slices[name].sides)
        )
        codes = []
        for table in tables:
            own = table.slices.get(name, Slice((), np.full(len(table), -1)))
            # The last entry is that of -1.
            codes.append(np.array([*map(sides.index, own.sides), -1], dtype=np.int64)[own.code])
        fused[name] = Slice(sides, np.concatenate(codes))
    return fused


def _distinct(identities: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the identities of all data sets with numbers of their own; -1 stays."""
    shifted, start = [], 0
    for identity in identities:
        shifted.append(np.where(identity >= 0, identity + start, -1))
        start += int(identity.max(initial=-1)) + 1
    return np.concatenate(shifted)
