"""Text and picture search on Milvus, from a file on this machine to a cluster (paper §3.2: any engine will do).

    text = world_text_search(load_world(), "world.db")            # Milvus Lite, in a file: pip install 'mmsr[milvus]'
    text = world_text_search(load_world(), "http://milvus:19530") # the same on a server or a cluster
    text.search("Kenya capital", k=5)[0].id == "ke/capital"

One setting, an address: a file that ends in .db, or http(s)://host:port, whose token, if it needs one, is read from
MILVUS_TOKEN. Results are those of the local engines. A page is the sparse vector of its words' BM25 weights (k1, b and
words as in `tools.text`) and a query that of its word counts, so their inner product is the BM25 score; a picture is
the vector of `tools.image`. The words' frequencies are those of the pages at indexing: index anew for other pages.

Indexes here are exact: SPARSE_INVERTED_INDEX for text, FLAT for pictures. On a cluster the first stays exact at any
size; for pictures give `index_pictures` HNSW (M 32, efConstruction 200) from about a million vectors, and IVF_SQ8
(nlist 4·√n) where memory is short. Milvus Lite is for one process and small corpora, above all from its version 3 on,
which is written in Python; what a size costs is measured by `python -m mmsr.live.milvus_measure`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmsr.live.limits import Unavailable
from mmsr.tools.base import Hit, ToolError
from mmsr.tools.image import embed, flag_vectors
from mmsr.tools.text import K1, B, page_words, words
from mmsr.world.snapshot import Page, World

if TYPE_CHECKING:
    from pymilvus import MilvusClient

SECONDS, BUILDING = 30.0, 1800.0  # for one call; for one that makes the server build something
CANNOT_CONNECT = 2  # pymilvus's code for it
KEEPALIVE = 300_000  # milliseconds: a busy Milvus Lite takes pymilvus's pings every ten seconds for an attack
BATCH_BYTES = 4_000_000  # of an insert; a server takes 64 MB in one message
TIES = 20  # asked for beyond k, so that equals at the end of a list are ordered as the local engines order them
TEXT_INDEX = {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "IP", "params": {}}
FLAT = {"index_type": "FLAT", "metric_type": "IP", "params": {}}
VARCHAR_BYTES = 65_535  # Milvus's limit for a text


@dataclass(frozen=True)
class Picture:
    """One entry of a picture index; `vector` is of unit length."""

    id: str
    title: str
    vector: np.ndarray


# --- searching --------------------------------------------------------------------------------------------------------


class MilvusTextSearch:
    """`base.TextSearch` over a collection that `index_pages` made. Safe between threads."""

    def __init__(self, uri: str, collection: str) -> None:
        self.uri, self.collection = uri, collection
        load(uri, collection)
        _ask(uri, collection, {0: 1.0}, 1, BUILDING)  # Milvus Lite builds its lists of pages when it is first asked

    def search(self, query: str, k: int) -> list[Hit]:
        """The `k` best pages that share a word with the query, best first. Raises Unavailable or ToolError."""
        vector = {dimension(word): float(count) for word, count in Counter(words(query)).items()}
        return search_vector(self.uri, self.collection, vector, k) if vector else []


class MilvusImageSearch:
    """`base.ImageSearch` over a collection that `index_pictures` made. Safe between threads."""

    def __init__(self, uri: str, collection: str) -> None:
        self.uri, self.collection = uri, collection
        load(uri, collection)

    def search(self, picture: Image.Image, k: int) -> list[Hit]:
        """The `k` most similar pictures, best first; the score is the cosine. Raises Unavailable or ToolError."""
        return search_vector(self.uri, self.collection, embed(picture), k)


def world_text_search(world: World, uri: str) -> MilvusTextSearch:
    """The world's pages on the Milvus at `uri`; they are put there first where it has not got them."""
    pages = list(world.pages.values())
    name = "pages_" + _digest(repr((K1, B)), *map(repr, pages))
    if not has(uri, name):
        index_pages(uri, name, pages)
    return MilvusTextSearch(uri, name)


def world_image_search(world: World, uri: str) -> MilvusImageSearch:
    """The world's flags on the Milvus at `uri`; they are put there first where it has not got them."""
    vectors = flag_vectors(world)
    name = "pictures_" + _digest(*map(repr, world.flags), data=vectors.tobytes())
    if not has(uri, name):
        flags = zip(world.flags, vectors)
        index_pictures(uri, name, (Picture(flag.iso, flag.title, v) for flag, v in flags), vectors.shape[1])
    return MilvusImageSearch(uri, name)


def _digest(*parts: str, data: bytes = b"") -> str:
    return hashlib.sha256("\n".join(parts).encode() + data).hexdigest()[:16]


def search_vector(uri: str, collection: str, vector: Any, k: int) -> list[Hit]:
    """The best `k` by inner product; equals in the order in which they were indexed, as the local engines have them."""
    found = _ask(uri, collection, vector, k + TIES, SECONDS)
    best = sorted(found, key=lambda hit: (-hit["distance"], hit["entity"]["n"]))[:k]
    pages = [(hit["entity"], round(float(hit["distance"]), 4)) for hit in best]
    return [Hit(page["name"], page["title"], page["text"], score) for page, score in pages]


def _ask(uri: str, collection: str, vector: Any, limit: int, seconds: float) -> list[dict[str, Any]]:
    """Milvus's answer to one query: distance and fields of each hit."""
    with _told(uri):
        [found] = connect(uri).search(
            collection,
            data=[vector],
            anns_field="vector",
            limit=limit,
            output_fields=["n", "name", "title", "text"],
            search_params={"metric_type": "IP"},
            timeout=seconds,
        )
    return found


# --- indexing ---------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2**18)
def dimension(word: str) -> int:
    """The word's place in a sparse vector, from its hash: no vocabulary has to be kept anywhere."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big") % (2**32 - 1)


@dataclass(frozen=True)
class Frequencies:
    """What BM25 knows of a corpus: pages, words per page on average, and how many pages have each word."""

    pages: int
    length: float
    holding: Mapping[str, int]

    @classmethod
    def of(cls, pages: Iterable[Page]) -> Frequencies:
        """Counted in one pass; memory grows with the vocabulary alone."""
        number, total, holding = 0, 0, Counter()
        for page in pages:
            found = page_words(page)
            number, total = number + 1, total + len(found)
            holding.update(set(found))
        return cls(number, total / max(1, number), holding)

    def weigh(self, page: Page) -> dict[int, float]:
        """The page as a sparse vector: BM25's weight of each of its words (Lucene's variant, as bm25s's default)."""
        found = page_words(page)
        counts = Counter(found)
        tf = np.fromiter(counts.values(), np.float32, len(counts))
        idf = np.log1p([(self.pages - n + 0.5) / (n + 0.5) for n in map(self.holding.__getitem__, counts)])
        weights = idf.astype(np.float32) * (tf / (K1 * ((1 - B) + B * len(found) / self.length) + tf))
        return dict(zip(map(dimension, counts), weights.tolist()))


def index_pages(uri: str, collection: str, pages: Iterable[Page]) -> None:
    """Make a collection of pages, which are read twice: for the words' frequencies, then to be put in, in batches.

    An interrupted indexing leaves no collection of that name. Raises Unavailable or ToolError.
    """
    frequencies = Frequencies.of(pages)
    rows = (
        {"name": page.id, "title": page.title, "text": page.text, "vector": frequencies.weigh(page)} for page in pages
    )
    _fill(uri, collection, {"datatype": _types().SPARSE_FLOAT_VECTOR}, TEXT_INDEX, rows)


def index_pictures(
    uri: str, collection: str, pictures: Iterable[Picture], dim: int, index: Mapping[str, Any] = FLAT
) -> None:
    """Make a collection of pictures with vectors of `dim` numbers, put in in batches; `index` as in the module's head.

    An interrupted indexing leaves no collection of that name. Raises Unavailable or ToolError.
    """
    rows = ({"name": picture.id, "title": picture.title, "text": "", "vector": picture.vector} for picture in pictures)
    _fill(uri, collection, {"datatype": _types().FLOAT_VECTOR, "dim": dim}, index, rows)


def _fill(
    uri: str, collection: str, vector: Mapping[str, Any], index: Mapping[str, Any], rows: Iterable[dict[str, Any]]
) -> None:
    """Make and fill a collection, then index it: that it has an index means that it is whole."""
    client, types = connect(uri), _types()
    schema = client.create_schema(auto_id=False)
    schema.add_field("n", types.INT64, is_primary=True)
    for name in ("name", "title", "text"):
        schema.add_field(name, types.VARCHAR, max_length=VARCHAR_BYTES)
    schema.add_field("vector", **vector)
    indexes = client.prepare_index_params()
    indexes.add_index(field_name="vector", **index)
    with _told(uri):
        client.drop_collection(collection)
        client.create_collection(collection, schema=schema)
        try:
            for batch in batches({"n": n} | row for n, row in enumerate(rows)):
                client.insert(collection, batch, timeout=BUILDING)
            client.flush(collection, timeout=BUILDING)
            client.create_index(collection, indexes, timeout=BUILDING)
        except BaseException:
            client.drop_collection(collection)
            raise


def batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows in lists of about BATCH_BYTES, so that memory does not grow with their number."""
    held, size = [], 0
    for row in rows:
        held.append(row)
        size += 200 + len(row["text"]) + 8 * len(row["vector"])
        if size > BATCH_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


# --- the connection ---------------------------------------------------------------------------------------------------


def _types() -> Any:
    from pymilvus import DataType

    return DataType


@functools.cache
def connect(uri: str) -> MilvusClient:
    """The client of the Milvus at `uri`, one for the whole process. Raises Unavailable or ToolError."""
    try:
        from pymilvus import MilvusClient
    except ImportError:
        raise ToolError("Milvus needs its client: pip install 'mmsr[milvus]'.") from None
    for name in ("pymilvus", "milvus_lite"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they log what they raise
    with _told(uri):
        token = os.environ.get("MILVUS_TOKEN", "")
        return MilvusClient(uri, token=token, timeout=SECONDS, grpc_options={"grpc.keepalive_time_ms": KEEPALIVE})


def has(uri: str, collection: str) -> bool:
    """Whether there is a collection of that name, whole. Raises Unavailable or ToolError."""
    client = connect(uri)
    with _told(uri):
        return client.has_collection(collection, timeout=SECONDS) and bool(client.list_indexes(collection))


def load(uri: str, collection: str) -> None:
    """Make a collection ready for searching. Raises Unavailable, or ToolError where there is none of that name."""
    if not has(uri, collection):
        raise ToolError(f"The Milvus at {uri} has no collection {collection!r}: index it first.")
    with _told(uri):
        connect(uri).load_collection(collection, timeout=BUILDING)


def drop(uri: str, collection: str) -> None:
    """Delete a collection, if there is one of that name. Raises Unavailable or ToolError."""
    with _told(uri):
        connect(uri).drop_collection(collection, timeout=SECONDS)


@contextlib.contextmanager
def _told(uri: str) -> Iterator[None]:
    """Milvus's errors as one sentence of ours: what was wrong, where, and what to do."""
    import grpc
    from pymilvus.exceptions import ConnectionConfigException, MilvusException

    try:
        yield
    except ConnectionConfigException as error:
        lite = "its folder must exist, and one process alone may have it open (others ask a milvus-lite server)"
        remedy = lite if uri.endswith(".db") else "give a file that ends in .db, or http://host:port"
        raise ToolError(f"The Milvus at {uri} cannot be opened ({_short(error.message)}): {remedy}.") from None
    except MilvusException as error:
        if error.code != CANNOT_CONNECT and not isinstance(error.code, grpc.StatusCode):
            raise ToolError(f"The Milvus at {uri} refused ({_short(error.message)}).") from None
        said = _short(error.message)
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
            raise ToolError(f"The Milvus at {uri} refused ({error.code().name}: {_short(error.details())}).") from None
        said = "time is up"
    else:
        return
    raise Unavailable(f"The Milvus at {uri} does not answer ({said}): check the address, and that it runs.")


def _short(message: str) -> str:
    return " ".join(message.split())[:200].rstrip(".")
