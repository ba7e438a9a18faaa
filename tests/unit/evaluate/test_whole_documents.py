"""Documents that were cut into parts are compared whole. A failure: intervals are narrower than what is known."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from tests.helpers.tokenizers import make_tokenizer
from trainer.config.data import DataConfig, LongDocuments, Packing, SourceConfig
from trainer.data.prepare import prepare
from trainer.data.store.store import DOCUMENTS, META, open_store
from trainer.errors import DataError
from trainer.evaluate.forgetting import ForgettingMeasurement, Texts
from trainer.evaluate.held_out import PieceLosses
from trainer.runtime.seal import read_sealed, sealed_text

LENGTHS = [5, 40, 16, 3, 33, 16, 90]
"""With BOS, EOS and the spaces of none; packs of 16 cut some, and end where some end."""


def prepared(tmp_path, show=None, **options):
    """Prepare documents of one letter each, all of them held out."""
    rows = [{"text": chr(ord("a") + place) * length} for place, length in enumerate(LENGTHS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(path=str(tmp_path / "rows.jsonl"), **options)
    data = DataConfig(
        sources={"s": source},
        seq_len=16,
        validation_frac=0.5,
        num_workers=1,
        cache_dir=str(tmp_path / "cache"),
    )
    source.role = type(source.role).probe  # held out, all of it
    tokenizer = make_tokenizer()
    return (
        data,
        tokenizer,
        prepare(data, tokenizer, lambda: tokenizer, None, Console(file=show or io.StringIO()))["s"],
    )


@pytest.mark.parametrize(
    "options",
    [{"packing": Packing.concat}, {"packing": Packing.best_fit, "long_documents": LongDocuments.split}],
    ids=["concat", "split"],
)
def test_every_piece_says_which_document_it_is_of(tmp_path, options):
    _, tokenizer, store = prepared(tmp_path, **options)
    split = store.validation
    assert split.num_documents == len(LENGTHS) < split.num_pieces
    letters = {}
    for index in range(split.num_packs):
        pack, start = split.pack(index), 0
        documents = split.documents_of(index).tolist()
        assert len(documents) == len(pack.lengths)
        for length, document in zip(pack.lengths, documents, strict=True):
            text = tokenizer.decode(pack.tokens[start : start + length].tolist()).replace("</s>", "")
            letters.setdefault(document, "")
            letters[document] += text
            start += length
    assert sorted(letters) == list(range(len(LENGTHS)))
    assert [letters[place] for place in range(len(LENGTHS))] == [
        chr(ord("a") + place) * length for place, length in enumerate(LENGTHS)
    ]


def test_what_is_not_cut_needs_no_list(tmp_path):
    _, _, store = prepared(tmp_path, packing=Packing.best_fit, long_documents=LongDocuments.drop)
    split = store.validation
    assert f"validation/{DOCUMENTS}" not in store.meta["arrays"]
    documents = np.concatenate([split.documents_of(index) for index in range(split.num_packs)])
    assert sorted(documents.tolist()) == list(range(split.num_documents)) and split.num_documents == 2


def test_a_set_is_compared_by_its_documents(tmp_path):
    data, tokenizer, store = prepared(tmp_path, packing=Packing.concat)
    split = store.validation
    targets_P = np.array(
        [length - 1 for k in range(split.num_packs) for length in split.pack(k).lengths if length > 1]
    )
    base, tuned = (PieceLosses(factor * targets_P.astype(float), targets_P) for factor in (2.0, 1.5))
    measurement, texts = SimpleNamespace(_data=data), Texts({"s": store}, tokenizer)
    found = ForgettingMeasurement._compare_set(measurement, "s", base, tuned, texts)
    assert found.num_documents == len(LENGTHS) < len(targets_P)
    assert found.num_targets == targets_P.sum() and found.change_nats == pytest.approx(-0.5)


def test_a_store_that_does_not_say_it_is_made_again(tmp_path):
    """One that was written before it was noted holds the same tokens, under the same name."""
    _, _, store = prepared(tmp_path, packing=Packing.concat)
    folder = tmp_path / "cache" / "stores" / store.digest
    meta = read_sealed(folder / META)
    del meta["arrays"][f"validation/{DOCUMENTS}"]
    (folder / META).write_text(sealed_text(meta))
    (folder / "validation" / DOCUMENTS).unlink()
    with pytest.raises(DataError, match=f"validation/{DOCUMENTS} is missing"):
        open_store(folder)
    show = io.StringIO()
    _, _, again = prepared(tmp_path, show, packing=Packing.concat)
    assert again.digest == store.digest and "It is made again." in " ".join(show.getvalue().split())
    assert again.validation.documents_of(0).tolist() == store.validation.documents_of(0).tolist()
