"""The domain's vocabulary: attribute names, age groups and groupings. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from faceattr_lightning.errors import ConfigError, did_you_mean

CELEBA_ATTRIBUTES: tuple[str, ...] = (
    "5_o_Clock_Shadow",
    "Arched_Eyebrows",
    "Attractive",
    "Bags_Under_Eyes",
    "Bald",
    "Bangs",
    "Big_Lips",
    "Big_Nose",
    "Black_Hair",
    "Blond_Hair",
    "Blurry",
    "Brown_Hair",
    "Bushy_Eyebrows",
    "Chubby",
    "Double_Chin",
    "Eyeglasses",
    "Goatee",
    "Gray_Hair",
    "Heavy_Makeup",
    "High_Cheekbones",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "Narrow_Eyes",
    "No_Beard",
    "Oval_Face",
    "Pale_Skin",
    "Pointy_Nose",
    "Receding_Hairline",
    "Rosy_Cheeks",
    "Sideburns",
    "Smiling",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
    "Wearing_Necklace",
    "Wearing_Necktie",
    "Young",
)
"""CelebA's forty attributes in the official (alphabetical) order."""

GENDER = "Male"
"""The attribute that holds the gender labels of every data set (1 male, 0 female)."""

ADIENCE_AGE_GROUPS: tuple[str, ...] = ("0-2", "4-6", "8-12", "15-20", "25-32", "38-43", "48-53", "60-100")
"""Adience's eight age groups, in years; there are gaps between them."""

FAIRFACE_AGE_GROUPS: tuple[str, ...] = (
    "0-2",
    "3-9",
    "10-19",
    "20-29",
    "30-39",
    "40-49",
    "50-59",
    "60-69",
    "more than 70",
)
"""FairFace's nine age groups, in years, as its files write them."""

FAIRFACE_RACES: tuple[str, ...] = (
    "Black",
    "East Asian",
    "Indian",
    "Latino_Hispanic",
    "Middle Eastern",
    "Southeast Asian",
    "White",
)
"""FairFace's seven race groups, as its files write them."""

_OBJECTIVE = (
    "5_o_Clock_Shadow",
    "Bald",
    "Bangs",
    "Black_Hair",
    "Blond_Hair",
    "Blurry",
    "Brown_Hair",
    "Double_Chin",
    "Eyeglasses",
    "Goatee",
    "Gray_Hair",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "No_Beard",
    "Receding_Hairline",
    "Sideburns",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
    "Wearing_Necklace",
    "Wearing_Necktie",
)

# The published eight groups of MGMTN; their membership is ours.
_FACE_PARTS = {
    "mouth": ("Big_Lips", "Mouth_Slightly_Open", "Smiling", "Wearing_Lipstick"),
    "ear": ("Wearing_Earrings",),
    "lower_face": (
        "5_o_Clock_Shadow",
        "Double_Chin",
        "Goatee",
        "Mustache",
        "No_Beard",
        "Sideburns",
        "Wearing_Necklace",
        "Wearing_Necktie",
    ),
    "cheeks": ("High_Cheekbones", "Rosy_Cheeks"),
    "nose": ("Big_Nose", "Pointy_Nose"),
    "eyes": ("Arched_Eyebrows", "Bags_Under_Eyes", "Bushy_Eyebrows", "Eyeglasses", "Narrow_Eyes"),
    "hair": (
        "Bald",
        "Bangs",
        "Black_Hair",
        "Blond_Hair",
        "Brown_Hair",
        "Gray_Hair",
        "Receding_Hairline",
        "Straight_Hair",
        "Wavy_Hair",
        "Wearing_Hat",
    ),
    "object": ("Attractive", "Blurry", "Chubby", "Heavy_Makeup", "Male", "Oval_Face", "Pale_Skin", "Young"),
}

# Hand and Chellappa, AAAI 2017; the membership is from memory.
_MCNN_AUX = {
    "gender": ("Male",),
    "nose": ("Big_Nose", "Pointy_Nose"),
    "mouth": ("Big_Lips", "Smiling", "Wearing_Lipstick", "Mouth_Slightly_Open"),
    "eyes": ("Arched_Eyebrows", "Bags_Under_Eyes", "Bushy_Eyebrows", "Narrow_Eyes", "Eyeglasses"),
    "face": ("Attractive", "Blurry", "Oval_Face", "Pale_Skin", "Young", "Heavy_Makeup"),
    "around_head": (
        "Black_Hair",
        "Blond_Hair",
        "Brown_Hair",
        "Gray_Hair",
        "Wearing_Earrings",
        "Wearing_Necklace",
        "Wearing_Necktie",
        "Bald",
        "Receding_Hairline",
        "Bangs",
        "Wearing_Hat",
        "Straight_Hair",
        "Wavy_Hair",
    ),
    "facial_hair": ("5_o_Clock_Shadow", "Mustache", "No_Beard", "Sideburns", "Goatee"),
    "cheeks": ("Rosy_Cheeks", "High_Cheekbones"),
    "fat": ("Chubby", "Double_Chin"),
}

# Cao et al., CVPR 2018: indices into the alphabetical order.
_PS_MCNN = {
    "upper": (1, 3, 4, 5, 8, 9, 11, 12, 15, 17, 23, 28, 35),
    "middle": (7, 19, 27, 29, 30, 34),
    "lower": (6, 14, 16, 21, 22, 24, 36, 37, 38),
    "whole": (0, 2, 10, 13, 18, 20, 25, 26, 31, 32, 33, 39),
}

GROUPINGS: dict[str, dict[str, tuple[str, ...]]] = {
    # Ours: a reading of DMM-CNN's split, not the paper's table.
    "objective_subjective": {
        "objective": _OBJECTIVE,
        "subjective": tuple(name for name in CELEBA_ATTRIBUTES if name not in _OBJECTIVE),
    },
    "face_parts": _FACE_PARTS,
    "mcnn_aux": _MCNN_AUX,
    "ps_mcnn": {group: tuple(CELEBA_ATTRIBUTES[index] for index in indices) for group, indices in _PS_MCNN.items()},
}
"""Named groupings over `CELEBA_ATTRIBUTES`, each a partition of them."""

ALIASES: dict[str, str] = {
    "gender": GENDER,
    "Grey_Hair": "Gray_Hair",
    "Moustache": "Mustache",
    "Glasses": "Eyeglasses",
    "Wearing_Glasses": "Eyeglasses",
    "Lipstick": "Wearing_Lipstick",
    "Makeup": "Heavy_Makeup",
}
"""Other spellings of an attribute to ours, beside those that differ in case, spaces and punctuation alone.

Only names that mean the same: LFWA's ``Attractive_Man`` is not CelebA's ``Attractive``.
"""


@dataclass(frozen=True)
class Rule:
    """Attributes of which at most one can be true of a face.

    Attributes:
        attributes: two names or more.
        reason: why, in a sentence.
    """

    attributes: tuple[str, ...]
    reason: str


LOGICAL_RULES: tuple[Rule, ...] = (
    Rule(("No_Beard", "Goatee"), "A goatee is a beard."),
    Rule(("Bald", "Bangs"), "Bangs are hair that falls over the forehead, where a bald head has none."),
    Rule(("Straight_Hair", "Wavy_Hair"), "Hair that waves is not straight."),
    Rule(
        ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair"),
        "Each names the one colour of the hair as a whole. Highlights and hair that turns grey are in between.",
    ),
)
"""What the names themselves rule out. Ours.

Only contradictions, nothing that is merely rare (Male with Wearing_Lipstick) or matters of degree. Left out on purpose:
No_Beard with Mustache, since hair above the lip alone is no beard (in CelebA's labels it mostly is one, and Wu et al.,
WACV 2025, take it so); No_Beard with 5_o_Clock_Shadow or Sideburns, since stubble and whiskers need be none either;
Bald with Receding_Hairline or a hair colour, since a head may be bald on top alone.
"""


def _folded(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


_CANONICAL = {_folded(name): name for name in CELEBA_ATTRIBUTES} | {
    _folded(alias): name for alias, name in ALIASES.items()
}


def canonical_attribute(name: str) -> str:
    """Return the one spelling under which data sets share an attribute.

    CelebA's where it has the attribute, whatever the case, the spaces and the punctuation (``5 o'Clock Shadow``), or
    that of `ALIASES`; else the name itself with underscores for spaces and without apostrophes.
    """
    return _CANONICAL.get(_folded(name), "_".join(name.replace("'", "").split()))


def resolve_attributes(
    requested: Sequence[str] | None, available: Sequence[str], key: str = "data.attributes"
) -> list[str]:
    """Return the requested attributes in the order asked for, or all available ones for ``None``.

    Raises:
        ConfigError: a name that is not available (with the nearest one that is) or that is given twice.
    """
    if requested is None:
        return list(available)
    problems = [
        f"{key}: '{name}' is not an attribute of this data set.{did_you_mean(name, available)}"
        for name in requested
        if name not in available
    ]
    problems += [
        f"{key}: '{name}' is given twice." for name in sorted(set(requested)) if list(requested).count(name) > 1
    ]
    if not requested:
        problems.append(f"{key}: the list is empty; leave it out (null) to take every attribute.")
    if problems:
        raise ConfigError(problems)
    return list(requested)


def resolve_groups(
    groups: str | Mapping[str, Sequence[str]] | None, attribute_names: Sequence[str], key: str = "model.groups"
) -> dict[str, list[str]]:
    """Return a grouping in which each of ``attribute_names`` stands exactly once.

    Args:
        groups: the name of one of `GROUPINGS`, a mapping from group name to attribute names, or ``None`` for one
            group of all. A named grouping is cut down to ``attribute_names``; those that it does not have
            form the group ``other``.
        attribute_names: the attributes to be covered.
        key: the configuration key that an error names.

    Raises:
        ConfigError: an unknown grouping or attribute, an attribute in no group or in two, or an empty group.
    """
    if groups is None:
        return {"all": list(attribute_names)}
    if isinstance(groups, str):
        if groups not in GROUPINGS:
            raise ConfigError(
                [
                    f"{key}: there is no grouping "
                    f"'{groups}'.{did_you_mean(groups, GROUPINGS)} Known: {', '.join(GROUPINGS)}."
                ]
            )
        named = {
            group: [name for name in members if name in attribute_names] for group, members in GROUPINGS[groups].items()
        }
        named["other"] = [name for name in attribute_names if not any(name in members for members in named.values())]
        resolved = {group: members for group, members in named.items() if members}
    else:
        resolved = {str(group): list(members) for group, members in groups.items()}

    problems = [f"{key}: group '{group}' is empty." for group, members in resolved.items() if not members]
    seen: dict[str, str] = {}
    for group, members in resolved.items():
        for name in members:
            if name not in attribute_names:
                problems.append(
                    f"{key}.{group}: '{name}' is not among the model's attributes.{did_you_mean(name, attribute_names)}"
                )
            elif name in seen:
                problems.append(f"{key}: '{name}' is in '{seen[name]}' and in '{group}'; it must be in one group.")
            seen[name] = group
    missing = [name for name in attribute_names if name not in seen]
    if missing:
        shown = ", ".join(f"'{name}'" for name in missing[:5]) + (", ..." if len(missing) > 5 else "")
        problems.append(f"{key}: {len(missing)} of the attributes are in no group; add each to one: {shown}.")
    if problems:
        raise ConfigError(problems)
    return resolved
