"""Text and picture search on Milvus, from a file on this machine to a cluster (paper §3.2: any engine will do).

    text = world_text_search(load_world(), "world.db")            # Milvus Lite, in a file: pip install 'mmsr[milvus]'
    text = world_text_search(load_world(), "http://milvus:19530") # a server or a cluster; its token is in MILVUS_TOKEN
    text.search("Kenya capital", k=5)[0].id == "ke/capital"

Results are those of the local engines. A page is the sparse vector of its words' BM25 weights, a query that of its word
counts, so their inner product is the BM25 score; a picture is the vector of `tools.image`. The words' frequencies are
those of the pages at indexing: index anew for other pages. Indexes here are exact; on a cluster give `fill` HNSW (M 32,
efConstruction 200) from about a million pictures, and IVF_SQ8 (nlist 4·√n) where memory is short.
All that asks Milvus raises Unavailable where it does not answer, and ToolError where it refuses.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsr.live.door import short
from mmsr.live.limits import Unavailable
from mmsr.tools.base import Corpus, Hit, ToolError
from mmsr.tools.text import K1, B, page_words, words
from mmsr.world.snapshot import Page

if TYPE_CHECKING:
    from pymilvus import MilvusClient

SECONDS, BUILDING = 30.0, 1800.0  # for one call; for one that makes the server build something
CANNOT_CONNECT = 2  # pymilvus's code for it
KEEPALIVE = {"grpc.keepalive_time_ms": 300_000}  # a busy Milvus Lite takes pings every ten seconds for an attack
BATCH = 500  # entries of an insert, which fit the 64 MB of a message even where each text is as long as it may be
TIES = 20  # asked for beyond k, so that ties at the end of a list are ordered as the local engines order them
INVERTED = {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "IP", "params": {}}
FLAT = {"index_type": "FLAT", "metric_type": "IP", "params": {}}
TEXTS = ("name", "title", "text")  # fields of an entry, beside its number `n` and its vector
VARCHAR_BYTES = 65_535  # Milvus's limit for a text
LITE = "its folder must exist, and only one process may have it open (others ask a milvus-lite server); delete one "
LITE += "that is broken or is something else"

Row = tuple[str, str, str, Any]  # name, title, text, vector


@functools.cache
def _connected(uri: str) -> MilvusClient:
    """One client for the whole process."""
    from pymilvus import MilvusClient

    for name in ("pymilvus", "milvus_lite"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they log what they raise
    return MilvusClient(uri, token=os.environ.get("MILVUS_TOKEN", ""), timeout=SECONDS, grpc_options=KEEPALIVE)


@contextlib.contextmanager
def client(uri: str) -> Iterator[MilvusClient]:
    """The client of the Milvus at `uri`; its errors within the block become one sentence: what, where, what to do."""
    try:
        import grpc
        from pymilvus.exceptions import ConnectionConfigException, MilvusException
    except ImportError:
        raise ToolError("Milvus needs its client: pip install 'mmsr[milvus]'.") from None
    try:
        yield _connected(uri)
    except ConnectionConfigException as error:
        remedy = LITE if uri.endswith(".db") else "give a file that ends in .db, or http://host:port"
        raise ToolError(f"The Milvus at {uri} cannot be opened ({short(error.message)}): {remedy}.") from None
    except (MilvusException, grpc.RpcError) as error:
        own = isinstance(error, MilvusException)
        code, said = (error.code, error.message) if own else (error.code(), f"{error.code().name}: {error.details()}")
        if code in (CANNOT_CONNECT, grpc.StatusCode.DEADLINE_EXCEEDED) or (own and isinstance(code, grpc.StatusCode)):
            remedy = "check the address, and that it runs"
            raise Unavailable(f"The Milvus at {uri} does not answer ({short(said)}): {remedy}.") from None
        raise ToolError(f"The Milvus at {uri} refused ({short(said)}).") from None


@functools.lru_cache(maxsize=2**18)
def dimension(word: str) -> int:
    """The word's place in a sparse vector, from its hash: no vocabulary has to be kept anywhere."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big") % (2**32 - 1)


def word_counts(query: str) -> dict[int, float]:
    """A query as a sparse vector."""
    return {dimension(word): float(count) for word, count in Counter(words(query)).items()}


@dataclass(frozen=True)
class Collection:
    """A collection of that name on the Milvus at `uri`, already there or yet to be made. Safe between threads.

    It holds pages, as a `base.TextRetriever`, or with `dim` vectors of that many numbers; `vector_of` turns what is
    searched for into a vector. So with `tools.image.embed` it is a `base.ImageRetriever`.
    """

    uri: str
    name: str
    dim: int = 0
    vector_of: Callable[[Any], Any] = word_counts

    def exists(self) -> bool:
        """Whether it is there and complete: the index is made last."""
        with client(self.uri) as milvus:
            return milvus.has_collection(self.name, timeout=SECONDS) and bool(milvus.list_indexes(self.name))

    def load(self) -> Collection:
        """Make it ready for searching. Raises ToolError where there is none of that name."""
        if not self.exists():
            raise ToolError(f"The Milvus at {self.uri} has no collection {self.name!r}: index it first.")
        with client(self.uri) as milvus:
            milvus.load_collection(self.name, timeout=BUILDING)
        if not self.dim:
            self.search("capital", 1, BUILDING)  # Milvus Lite builds its lists of pages when it is first asked
        return self

    def search(self, asked: Any, k: int, seconds: float = 0.0) -> list[Hit]:
        """The best `k` by inner product; ties in the order of indexing, as the local engines have them."""
        vector = self.vector_of(asked)
        if not len(vector):
            return []
        how = {"anns_field": "vector", "output_fields": ["n", *TEXTS], "search_params": {"metric_type": "IP"}}
        with client(self.uri) as milvus:
            found = milvus.search(self.name, [vector], limit=k + TIES, timeout=seconds or SECONDS, **how)[0]
        best = sorted(found, key=lambda hit: (-hit["distance"], hit["entity"]["n"]))[:k]
        return [Hit(*itemgetter(*TEXTS)(hit["entity"]), round(float(hit["distance"]), 4)) for hit in best]

    def fill(self, rows: Iterable[Row], index: Mapping[str, Any] | None = None) -> None:
        """Make it from rows, with `index`, or an exact one where none is given; an interrupted call leaves nothing."""
        entries = ({"n": n, **dict(zip(TEXTS, texts)), "vector": vector} for n, (*texts, vector) in enumerate(rows))
        with client(self.uri) as milvus:
            from pymilvus import DataType

            schema, indexes = milvus.create_schema(auto_id=False), milvus.prepare_index_params()
            schema.add_field("n", DataType.INT64, is_primary=True)
            for name in TEXTS:
                schema.add_field(name, DataType.VARCHAR, max_length=VARCHAR_BYTES)
            dense = {"datatype": DataType.FLOAT_VECTOR, "dim": self.dim}
            schema.add_field("vector", **(dense if self.dim else {"datatype": DataType.SPARSE_FLOAT_VECTOR}))
            indexes.add_index(field_name="vector", **(index or (FLAT if self.dim else INVERTED)))
            milvus.drop_collection(self.name)
            milvus.create_collection(self.name, schema=schema)
            try:
                while batch := list(itertools.islice(entries, BATCH)):
                    milvus.insert(self.name, batch, timeout=BUILDING)
                milvus.flush(self.name, timeout=BUILDING)
                milvus.create_index(self.name, indexes, timeout=BUILDING)
            except BaseException:
                milvus.drop_collection(self.name)
                raise


def page_weights(pages: Iterable[Page]) -> Callable[[Page], dict[int, float]]:
    """What turns one of `pages` into a sparse vector: BM25 weights of its words (Lucene's variant, bm25s's default)."""
    lengths, holding = [], Counter()
    for found in map(page_words, pages):
        lengths.append(len(found))
        holding.update(set(found))
    number, average = len(lengths), sum(lengths) / max(len(lengths), 1)

    def weigh(page: Page) -> dict[int, float]:
        counts = Counter(page_words(page))
        tf = np.fromiter(counts.values(), np.float32, len(counts))
        idf = np.log1p([(number - n + 0.5) / (n + 0.5) for n in map(holding.__getitem__, counts)])
        weights = idf.astype(np.float32) * (tf / (K1 * ((1 - B) + B * (counts.total() / average)) + tf))
        return dict(zip(map(dimension, counts), weights.tolist()))

    return weigh


def index_pages(collection: Collection, pages: Iterable[Page]) -> None:
    """Make a collection of pages, which are read twice: to count words, then to be put in."""
    weigh = page_weights(pages)
    collection.fill((page.id, page.title, page.text, weigh(page)) for page in pages)


def world_text_search(world: Corpus, uri: str) -> Collection:
    """The world's pages on the Milvus at `uri`; they are put there first where it has not got them."""
    pages = list(world.pages.values())
    collection = Collection(uri, "pages_" + _digest([(K1, B), *pages]))
    if not collection.exists():
        index_pages(collection, pages)
    return collection.load()


def world_image_search(world: Corpus, uri: str) -> Collection:
    """The world's pictures on the Milvus at `uri`; they are put there first where it has not got them."""
    local = world.picture_search()
    name = "pictures_" + _digest(world.flags, local.vectors.tobytes())
    collection = Collection(uri, name, local.vectors.shape[1], local.embed)
    if not collection.exists():
        collection.fill((flag.iso, flag.title, "", vector) for flag, vector in zip(world.flags, local.vectors))
    return collection.load()


def _digest(parts: Iterable[Any], data: bytes = b"") -> str:
    return hashlib.sha256("\n".join(map(repr, parts)).encode() + data).hexdigest()[:16]
