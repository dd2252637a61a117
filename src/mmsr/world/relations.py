"""What can be asked about a country: where the answer stands, and how people word it.

A relation reads its gold answer out of a page with one pattern, so every gold answer is literally in the corpus. `noun`
is the page's own word; `hard` says the same without it, so that a query made of it fails and must be refined. Some
relations have no hard wording, the held-out ones among them.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from mmsr.world.snapshot import Page, World


@dataclass(frozen=True)
class Relation:
    """One attribute of a country: page slug, page word, hard wording, answer pattern, held out or not."""

    key: str
    slug: str
    noun: str
    hard: str
    pattern: str
    held_out: bool = False

    def read(self, page: Page | None) -> str | None:
        """The answer as it stands on the page, or None where the page does not give it."""
        match = re.search(self.pattern, page.text) if page else None
        answer = match.group(1).strip(' "') if match else ""
        return answer if answer and answer.lower() not in {"none", "na"} and len(answer) <= 48 else None


_FIRST = r"^([^,;:(%\d]+?)(?= *(?:[,;(]|\d|$))"
_PERCENT = r"(-?[\d.]+%)"

RELATIONS: dict[str, Relation] = {
    relation.key: relation
    for relation in (
        Relation("capital", "capital", "capital", "seat of power", r"name: ([^;(,]+)"),
        Relation("currency", "exchange-rates", "currency", "money", r"Currency: ([^(;]+?) \("),
        Relation("highest_point", "elevation", "highest point", "tallest peak", r"highest point: (.+?) -?[\d,.]+ m\b"),
        Relation("internet_code", "internet-country-code", "internet country code", "web suffix", r"(\.[a-z]{2})\b"),
        Relation(
            "independence", "independence", "date of independence", "day it became free", r"^(\d{1,2} [A-Z]\w+ \d{4})"
        ),
        Relation("government", "government-type", "government type", "political system", r"^([^;(,]+)"),
        Relation("anthem", "national-anthem", "national anthem", "official song", r'title: "([^"]+)"'),
        Relation("religion", "religions", "main religion", "first faith", _FIRST),
        Relation("adjective", "nationality", "nationality", "word for its people", r"adjective: ([^;(,]+)"),
        Relation("export_partner", "export-partners", "main export partner", "best customer abroad", _FIRST),
        Relation("crop", "agricultural-products", "main agricultural product", "greatest crop", _FIRST),
        Relation("coastline", "coastline", "coastline", "length of its shore", r"^([\d,.]+ km)"),
        Relation("area", "area", "total area", "size of its territory", r"total: ([\d,.]+ sq km)"),
        Relation("population", "population", "population", "count of inhabitants", r"total: ([\d,]+)"),
        Relation("median_age", "median-age", "median age", "typical number of birthdays", r"total: ([\d.]+ years)"),
        Relation("growth", "population-growth-rate", "population growth rate", "yearly gain of inhabitants", _PERCENT),
        Relation("airports", "airports", "number of airports", "count of landing fields", r"^(\d[\d,]*)"),
        Relation("electricity", "electricity-access", "electricity access", "part of homes with power", _PERCENT),
        Relation("internet", "internet-users", "share of internet users", "part that is online", _PERCENT),
        Relation("military", "military-expenditures", "military expenditure", "cost of its army", _PERCENT),
        Relation("particulates", "particulate-matter", "particulate matter emission", "dust in its air", r"^([\d.]+)"),
        Relation("language", "languages", "main language", "", r"^Languages: ([^,;:(%\d]+?)(?= *(?:[,;(]|\d|$))"),
        Relation("ethnic_group", "ethnic-groups", "main ethnic group", "", _FIRST),
        Relation("resource", "natural-resources", "main natural resource", "", _FIRST),
        Relation("hazard", "natural-hazards", "main natural hazard", "", _FIRST),
        Relation("import_partner", "import-partners", "main import partner", "", _FIRST),
        Relation("location", "location", "location", "", r"^([^,;:(%\d]+)"),
        Relation("terrain", "terrain", "terrain", "", r"^([^,;:(%\d]+)"),
        Relation("birth_rate", "birth-rate", "birth rate", "", r"^([\d.]+) births"),
        Relation(
            "mobile", "mobile-telephones", "mobile telephone subscriptions", "", r"subscriptions: ([\d.,]+ million)"
        ),
        Relation("lowest_point", "elevation", "lowest point", "", r"lowest point: (.+?) -?[\d,.]+ m\b", True),
        Relation("mean_elevation", "elevation", "mean elevation", "", r"mean elevation: ([\d,]+ m)", True),
        Relation("legislature", "legislative-branch", "legislature name", "", r"legislature name: ([^;(,]+)", True),
        Relation("climate", "climate", "climate", "", r"^([^,;:(%\d]+)", True),
        Relation("law", "legal-system", "legal system", "", r"^([^;(,]+)", True),
        Relation("holiday", "national-holiday", "national holiday", "", r"^([^,;:(%\d]+)", True),
    )
}


@dataclass(frozen=True)
class Edge:
    """A step from one country to another; `noun` is what a query for it says."""

    key: str
    slug: str
    noun: str
    phrase: str
    pattern: str

    def follow(self, world: World, iso: str) -> str | None:
        """The ISO code of the country this edge leads to, or None."""
        page = world.page(iso, self.slug)
        match = re.search(self.pattern, page.text) if page else None
        country = world.by_name(match.group(1)) if match else None
        return country.iso if country and country.iso != iso else None


EDGES: dict[str, Edge] = {
    edge.key: edge
    for edge in (
        Edge(
            "neighbour",
            "land-boundaries",
            "land boundaries",
            "the country that shares the longest land border with the country of {ref}",
            r"border countries: ([^;,:\d]+?) [\d,.]+ km",
        ),
        Edge(
            "partner",
            "export-partners",
            "main export partner",
            "the largest export partner of the country of {ref}",
            r"^([^,;:(%\d]+?) \d",
        ),
    )
}


def aliases(answer: str) -> tuple[str, ...]:
    """Other ways to write the same answer: without accents, without its unit, without the word "the"."""
    plain = unicodedata.normalize("NFKD", answer).encode("ascii", "ignore").decode()
    found = [plain, re.sub(r"^(the|The) ", "", plain)]
    number = re.match(r"^(-?[\d,.]+)(%| km| sq km| years)$", answer)
    if number:
        found.append(number.group(1))
    return tuple(dict.fromkeys(other for other in found if other and other != answer))
