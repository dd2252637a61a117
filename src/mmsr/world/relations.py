"""What can be asked about a country: where the answer stands, and how people word it (assets/world/questions.toml).

A relation reads its gold answer out of a page with one pattern, so every gold answer is literally in the corpus. `noun`
is the page's own word; `hard` says the same without it, so that a query made of it fails and must be refined. Some
relations have no hard wording, those of one split among them.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from dataclasses import dataclass

from mmsr.world.snapshot import ASSETS, Page, World


@dataclass(frozen=True)
class Relation:
    """One attribute of a country: page slug, page word, answer pattern, hard wording, the only split asking for it."""

    key: str
    slug: str
    noun: str
    pattern: str
    hard: str = ""
    only: str = ""

    def read(self, page: Page | None) -> str | None:
        """The answer as it stands on the page, or None where the page does not give it."""
        match = re.search(self.pattern, page.text) if page else None
        answer = match.group(1).strip(' "') if match else ""
        return answer if answer and answer.lower() not in {"none", "na"} and len(answer) <= 48 else None


@dataclass(frozen=True, kw_only=True)
class Edge(Relation):
    """A relation whose answer is a country: a step to it. A query says its `noun`, a question its `phrase`."""

    phrase: str

    def follow(self, world: World, iso: str) -> str | None:
        """The ISO code of the country this edge leads to, or None."""
        country = world.by_name(self.read(world.page(iso, self.slug)) or "")
        return country.iso if country and country.iso != iso else None


ASKED: dict[str, dict] = tomllib.loads((ASSETS / "questions.toml").read_text(encoding="utf-8"))
RELATIONS: dict[str, Relation] = {key: Relation(key, **values) for key, values in ASKED["relations"].items()}
EDGES: dict[str, Edge] = {key: Edge(key, **values) for key, values in ASKED["edges"].items()}


def aliases(answer: str) -> tuple[str, ...]:
    """Other ways to write the same answer: without accents, without its unit, without the word "the"."""
    plain = unicodedata.normalize("NFKD", answer).encode("ascii", "ignore").decode()
    found = [plain, re.sub(r"^(the|The) ", "", plain)]
    number = re.match(r"^(-?[\d,.]+)(%| km| sq km| years)$", answer)
    if number:
        found.append(number.group(1))
    return tuple(dict.fromkeys(other for other in found if other and other != answer))
