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
which is written in Python; what a size costs is measured by `python papermill_runs/measured/measure_milvus.py`.

All that asks Milvus raises Unavailable where it does not answer, and ToolError where it refuses.
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
TEXTS = ("name", "title", "text")  # fields of an entry, beside its number `n` and its vector
VARCHAR_BYTES = 65_535  # Milvus's limit for a text

Picture = tuple[str, str, np.ndarray]  # an entry of a picture index: name, title, vector of unit length

# --- the connection ---------------------------------------------------------------------------------------------------


@functools.cache
def _connected(uri: str) -> MilvusClient:
    """One client for the whole process."""
    from pymilvus import MilvusClient

    for name in ("pymilvus", "milvus_lite"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they log what they raise
    token = os.environ.get("MILVUS_TOKEN", "")
    return MilvusClient(uri, token=token, timeout=SECONDS, grpc_options={"grpc.keepalive_time_ms": KEEPALIVE})


@contextlib.contextmanager
def client(uri: str) -> Iterator[MilvusClient]:
    """The client of the Milvus at `uri`; its errors within the block become one sentence: what, where, what to do."""
    try:
        import grpc
        from pymilvus.exceptions import ConnectionConfigException, MilvusException
    except ImportError:
        raise ToolError("Milvus needs its client: pip install 'mmsr[milvus]'.") from None

    def told(kind: type[ToolError], failed: str, said: str, remedy: str = "") -> ToolError:
        return kind(f"The Milvus at {uri} {failed} ({' '.join(said.split())[:200].rstrip('.')}){remedy}.")

    silent = functools.partial(told, Unavailable, "does not answer", remedy=": check the address, and that it runs")
    try:
        yield _connected(uri)
    except ConnectionConfigException as error:
        lite = ": its folder must exist, and one process alone may have it open (others ask a milvus-lite server)"
        remedy = lite if uri.endswith(".db") else ": give a file that ends in .db, or http://host:port"
        raise told(ToolError, "cannot be opened", error.message, remedy) from None
    except MilvusException as error:
        away = error.code == CANNOT_CONNECT or isinstance(error.code, grpc.StatusCode)
        raise silent(error.message) if away else told(ToolError, "refused", error.message) from None
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            raise silent("time is up") from None
        raise told(ToolError, "refused", f"{error.code().name}: {error.details()}") from None


@dataclass(frozen=True)
class Collection:
    """A collection of that name on the Milvus at `uri`, there or to be made."""

    uri: str
    name: str

    def exists(self) -> bool:
        """Whether it is there, whole."""
        with client(self.uri) as milvus:
            return milvus.has_collection(self.name, timeout=SECONDS) and bool(milvus.list_indexes(self.name))

    def load(self) -> Collection:
        """Make it ready for searching. Raises ToolError where there is none of that name."""
        if not self.exists():
            raise ToolError(f"The Milvus at {self.uri} has no collection {self.name!r}: index it first.")
        with client(self.uri) as milvus:
            milvus.load_collection(self.name, timeout=BUILDING)
        return self

    def drop(self) -> None:
        """Delete it, if it is there."""
        with client(self.uri) as milvus:
            milvus.drop_collection(self.name, timeout=SECONDS)

    def search(self, vector: Any, k: int) -> list[Hit]:
        """The best `k` by inner product; equals in the order of indexing, as the local engines have them."""
        found = self.ask(vector, k + TIES, SECONDS)
        best = sorted(found, key=lambda hit: (-hit["distance"], hit["entity"]["n"]))[:k]
        texts = [[hit["entity"][name] for name in TEXTS] for hit in best]
        return [Hit(*text, round(float(hit["distance"]), 4)) for text, hit in zip(texts, best)]

    def ask(self, vector: Any, limit: int, seconds: float) -> list[dict[str, Any]]:
        """Milvus's answer to one query: distance and fields of each hit."""
        how = {"anns_field": "vector", "output_fields": ["n", *TEXTS], "search_params": {"metric_type": "IP"}}
        with client(self.uri) as milvus:
            return milvus.search(self.name, [vector], limit=limit, timeout=seconds, **how)[0]

    def fill(self, rows: Iterable[tuple[str, str, str, Any]], index: Mapping[str, Any], dim: int = 0) -> None:
        """Make it of (name, title, text, vector) rows, with vectors of `dim` numbers, or sparse ones where that is 0.

        That it has an index means that it is whole. An interrupted filling leaves none of that name.
        """
        with client(self.uri) as milvus:
            from pymilvus import DataType

            schema, indexes = milvus.create_schema(auto_id=False), milvus.prepare_index_params()
            schema.add_field("n", DataType.INT64, is_primary=True)
            for name in TEXTS:
                schema.add_field(name, DataType.VARCHAR, max_length=VARCHAR_BYTES)
            dense = {"datatype": DataType.FLOAT_VECTOR, "dim": dim}
            schema.add_field("vector", **(dense if dim else {"datatype": DataType.SPARSE_FLOAT_VECTOR}))
            indexes.add_index(field_name="vector", **index)
            milvus.drop_collection(self.name)
            milvus.create_collection(self.name, schema=schema)
            try:
                for batch in _batches(rows):
                    milvus.insert(self.name, batch, timeout=BUILDING)
                milvus.flush(self.name, timeout=BUILDING)
                milvus.create_index(self.name, indexes, timeout=BUILDING)
            except BaseException:
                milvus.drop_collection(self.name)
                raise


def _batches(rows: Iterable[tuple[str, str, str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows, numbered, in lists of about BATCH_BYTES, so that memory does not grow with their number."""
    held, size = [], 0
    for n, (*texts, vector) in enumerate(rows):
        held.append({"n": n, **dict(zip(TEXTS, texts)), "vector": vector})
        size += 200 + len(texts[-1]) + 8 * len(vector)
        if size > BATCH_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


# --- indexing ---------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2**18)
def dimension(word: str) -> int:
    """The word's place in a sparse vector, from its hash: no vocabulary has to be kept anywhere."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big") % (2**32 - 1)


class Frequencies:
    """What BM25 knows of a corpus, counted in one pass: pages, their words, and how many pages have each word."""

    def __init__(self, pages: Iterable[Page]) -> None:
        self.pages, self.words, self.holding = 0, 0, Counter()
        for found in map(page_words, pages):
            self.pages += 1
            self.words += len(found)
            self.holding.update(set(found))

    def weigh(self, page: Page) -> dict[int, float]:
        """The page as a sparse vector: BM25's weight of each of its words (Lucene's variant, as bm25s's default)."""
        found = page_words(page)
        counts = Counter(found)
        tf = np.fromiter(counts.values(), np.float32, len(counts))
        idf = np.log1p([(self.pages - n + 0.5) / (n + 0.5) for n in map(self.holding.__getitem__, counts)])
        length = len(found) / (self.words / self.pages)  # as a share of the average
        weights = idf.astype(np.float32) * (tf / (K1 * ((1 - B) + B * length) + tf))
        return dict(zip(map(dimension, counts), weights.tolist()))


def index_pages(collection: Collection, pages: Iterable[Page]) -> None:
    """Make a collection of pages, which are gone through twice: for the words' frequencies, then to be put in."""
    weigh = Frequencies(pages).weigh
    collection.fill(((page.id, page.title, page.text, weigh(page)) for page in pages), TEXT_INDEX)


def index_pictures(
    collection: Collection, pictures: Iterable[Picture], dim: int, index: Mapping[str, Any] = FLAT
) -> None:
    """Make a collection of pictures with vectors of `dim` numbers; `index` as in the module's head."""
    collection.fill(((name, title, "", vector) for name, title, vector in pictures), index, dim)


# --- searching --------------------------------------------------------------------------------------------------------


class MilvusTextSearch:
    """`base.TextRetriever` over a collection that `index_pages` made. Safe between threads."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection.load()
        collection.ask({0: 1.0}, 1, BUILDING)  # Milvus Lite builds its lists of pages when it is first asked

    def search(self, query: str, k: int) -> list[Hit]:
        """The `k` best pages that share a word with the query, best first."""
        vector = {dimension(word): float(count) for word, count in Counter(words(query)).items()}
        return self.collection.search(vector, k) if vector else []


class MilvusImageSearch:
    """`base.ImageRetriever` over a collection that `index_pictures` made. Safe between threads."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection.load()

    def search(self, picture: Image.Image, k: int) -> list[Hit]:
        """The `k` most similar pictures, best first; the score is the cosine."""
        return self.collection.search(embed(picture), k)


def world_text_search(world: World, uri: str) -> MilvusTextSearch:
    """The world's pages on the Milvus at `uri`; they are put there first where it has not got them."""
    pages = list(world.pages.values())
    collection = Collection(uri, "pages_" + _digest(repr((K1, B)), *map(repr, pages)))
    if not collection.exists():
        index_pages(collection, pages)
    return MilvusTextSearch(collection)


def world_image_search(world: World, uri: str) -> MilvusImageSearch:
    """The world's flags on the Milvus at `uri`; they are put there first where it has not got them."""
    vectors = flag_vectors(world)
    collection = Collection(uri, "pictures_" + _digest(*map(repr, world.flags), data=vectors.tobytes()))
    if not collection.exists():
        flags = ((flag.iso, flag.title, vector) for flag, vector in zip(world.flags, vectors))
        index_pictures(collection, flags, vectors.shape[1])
    return MilvusImageSearch(collection)


def _digest(*parts: str, data: bytes = b"") -> str:
    return hashlib.sha256("\n".join(parts).encode() + data).hexdigest()[:16]
