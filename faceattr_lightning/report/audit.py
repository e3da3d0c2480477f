"""The label audit's page: the labels of each attribute that a model contradicts, as faces to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape
from typing import Any

from faceattr_lightning.report import charts
from faceattr_lightning.report.charts import decimal, percent, rate
from faceattr_lightning.report.html import Format, number_cell, page, section, sortable_table


@dataclass(frozen=True)
class AuditedLabel:
    """One label on the page.

    Args:
        picture: the face, as `faceattr_lightning.report.grid.thumbnail` returns it: so the page alone is kept.
        file: the image's file name.
        label: 1 present, 0 absent.
        probability: the model's for the label as it stands, in [0, 1].
        issue: whether it is in doubt.
    """

    picture: tuple[str, int, int]
    file: str
    label: int
    probability: float
    issue: bool


@dataclass(frozen=True)
class AuditedAttribute:
    """One attribute on the page.

    Args:
        rates: ``attribute``, its name, and the keys in `RATES`; ``None`` where one is not defined.
        labels: the least probable first.
    """

    rates: Mapping[str, Any]
    labels: Sequence[AuditedLabel]


@dataclass(frozen=True)
class AuditData:
    """Everything on the page.

    Args:
        title: the heading.
        subtitle: the line under it.
        run: facts about the run, shown in this order.
        attributes: in the order of the page.
        notices: sentences that the reader must know.
    """

    title: str
    subtitle: str
    run: dict[str, Any]
    attributes: Sequence[AuditedAttribute]
    notices: Sequence[str] = field(default_factory=tuple)


RATES: dict[str, tuple[str, str, Format]] = {
    "support": ("Labels", "labelled images of the split", partial(decimal, digits=0)),
    "prevalence": ("Positive", "share of the labels that say yes", rate),
    "issues": ("In doubt", "labels that confident learning calls wrong", partial(decimal, digits=0)),
    "issue_rate": ("Share", "share of the labels that are in doubt", rate),
    "issue_rate_present": ("of yes", "share in doubt of the labels that say yes", rate),
    "issue_rate_absent": ("of no", "share in doubt of the labels that say no", rate),
}
"""Key of an attribute's rates to the column's heading, its meaning and how its values are written."""

_SCRIPT = """
const find = document.querySelector("#find"), doubted = document.querySelector("#doubted");
const attributes = [...document.querySelectorAll("details[data-name]")];
function show() {
  for (const one of attributes) one.hidden = !one.dataset.name.includes(find.value.trim().toLowerCase());
  for (const face of document.querySelectorAll(".face[data-settled]")) face.hidden = doubted.checked;
}
function unfold(hash) {
  const one = attributes.find(one => "#" + one.id === hash);
  if (one) { one.hidden = false; one.open = true }
}
find.addEventListener("input", show);
doubted.addEventListener("change", show);
for (const link of document.querySelectorAll("tbody a")) link.addEventListener("click", () => unfold(link.hash));
for (const button of document.querySelectorAll("button[data-open]"))
  button.addEventListener("click", () => {
    for (const one of attributes) if (!one.hidden) one.open = button.dataset.open === "1";
  });
show();
unfold(location.hash);
"""


def render_audit(audit: AuditData) -> str:
    """Return the whole page; it fetches nothing."""
    notices = "".join(f'<p class="notice">{escape(notice)}</p>' for notice in audit.notices)
    sections = [_rates(audit.attributes), _labels(audit.attributes)]
    return page(audit.title, audit.subtitle, audit.run, notices, sections)


def _rates(attributes: Sequence[AuditedAttribute]) -> str:
    heads = [
        ("Attribute", "name of the attribute", False),
        *((name, meaning, True) for name, meaning, _ in RATES.values()),
    ]
    rows = [
        f'<th scope="row">{_name(place, one)}</th>'
        + "".join(number_cell(key, one.rates.get(key), write) for key, (_, _, write) in RATES.items())
        for place, one in enumerate(attributes)
    ]
    lead = (
        "A label is in doubt where confident learning (Northcutt, Jiang, Chuang, JAIR 2021) calls it wrong: the model "
        "holds the other answer for more probable, and for at least as probable as it does on average where that is "
        "the label. In doubt is not wrong: hard faces and attributes that the model has not learnt are among them; and "
        "a label just short of that average may be as wrong: look at the first faces whatever stands below them. "
        "Rates in percent. Choose a heading to sort by it, an attribute to see its labels."
    )
    return section("Share of labels in doubt", lead, sortable_table("Labels in doubt per attribute", heads, rows))


def _name(place: int, one: AuditedAttribute) -> str:
    name = escape(str(one.rates["attribute"]))
    return f'<a href="#attribute-{place}">{name}</a>' if one.labels else name


def _labels(attributes: Sequence[AuditedAttribute]) -> str:
    shown = [(place, one) for place, one in enumerate(attributes) if one.labels]
    lead = (
        "The least probable labels of each attribute, the least probable first. The number is the model’s "
        'probability of the label as it stands, <span class="c0">yes</span> or <span class="c1">no</span>.'
    )
    controls = (
        '<p style="display:flex;flex-wrap:wrap;gap:8px 16px;align-items:center;margin-bottom:12px">'
        '<input type="search" id="find" placeholder="Find an attribute" aria-label="Find an attribute" '
        'style="font:inherit;padding:4px 8px;max-width:100%">'
        '<label><input type="checkbox" id="doubted"> Only labels in doubt</label>'
        '<button type="button" data-open="1">Unfold all</button><button type="button" data-open="0">Fold all</button>'
        "</p>"
    )
    body = "".join(_attribute(place, one, first=place == shown[0][0]) for place, one in shown)
    return section("Labels", lead, f"{controls}{body}<script>{_SCRIPT}</script>")


def _attribute(place: int, one: AuditedAttribute, first: bool) -> str:
    name, rates = str(one.rates["attribute"]), one.rates
    faces = "".join(_face(name, rank, label) for rank, label in enumerate(one.labels, start=1))
    doubt = f"{rates['issues']:,} of {rates['support']:,} labels in doubt, {percent(rates['issue_rate'])}"
    return (
        f'<details id="attribute-{place}" data-name="{escape(name.lower())}"{" open" if first else ""}>'
        f'<summary>{escape(name)} <span class="note" style="font-weight:400">{doubt}</span></summary>'
        f'<div class="faces">{faces}</div></details>'
    )


def _face(attribute: str, rank: int, one: AuditedLabel) -> str:
    uri, width, height = one.picture
    answer, kind = ("yes", "c0") if one.label else ("no", "c1")
    state, mark = ("in doubt", "") if one.issue else ("not in doubt", " data-settled")
    file = escape(one.file)
    return (
        f'<figure class="face"{mark}><img src="{uri}" width="{width}" height="{height}" loading="lazy" '
        f'decoding="async" alt="{file}, {escape(attribute)}: {answer}">'
        f'<figcaption><b title="{file}">{file}</b><ul><li class="{kind}"><span>label {answer}</span> '
        f"{_probability(one.probability)}</li></ul><span>{rank}, {state}</span></figcaption></figure>"
    )


def _probability(value: float) -> str:
    """The least probable labels are those that are looked at: never a bare ``0.00``."""
    return "&lt;0.01" if value < 0.005 else decimal(value) if value == value else charts.NOT_DEFINED
