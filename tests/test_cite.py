"""BibTeX of what stands here: everything that rests on a paper has its entry."""

import re

import pytest
import yaml

import attention_zoo
import backbones
from harness import datasets
from reports import cite, paper_table

ENTRIES = cite.entries()


def keys(name):
    return [entry.key for entry in cite.chosen(ENTRIES, [name])]


@pytest.mark.parametrize("scheme", attention_zoo.schemes.names())
def test_every_scheme_has_its_paper(scheme):
    assert keys(scheme)


@pytest.mark.parametrize("model", backbones.names())
def test_every_model_has_its_paper(model):
    assert keys(model)


@pytest.mark.parametrize("table", paper_table.names())
def test_every_published_table_has_its_paper(table):
    assert keys(table)


@pytest.mark.parametrize("name", sorted({*datasets.names()} - {"csv", "folder"}))  # these are formats of one's own
def test_every_data_set_has_its_paper(name):
    assert keys(name)


def test_a_model_has_the_entry_of_the_longest_beginning_of_its_name():
    assert keys("mvit_v2_small_16f") == ["li2022mvitv2"]
    assert keys("rvit_small") == ["yang2022rvit"]
    assert keys("block_topk") == ["mikhailov2025nabla", "xu2025xattention", "zhang2025sla", "zhang2025sparge"]


def test_what_is_printed_is_bibtex_with_a_link(capsys):
    assert cite.main(["divided"]) == 0
    printed = capsys.readouterr().out
    (again,) = cite.read(printed)
    assert again.key == "bertasius2021timesformer"
    assert again.fields["url"] == "https://arxiv.org/abs/2102.05095"
    assert printed.count("{") == printed.count("}")
    assert cite.main([]) == 0
    every = capsys.readouterr().out
    assert len(cite.read(every)) == len(ENTRIES)
    assert not re.search(r"^  (data|alias) =", every, flags=re.M)


def test_an_unknown_name_is_told_the_nearest(capsys):
    assert cite.main(["divded"]) == 2
    assert "error: nothing is called 'divded'; did you mean 'divided'?" in capsys.readouterr().err


def test_entries_are_in_order_and_whole():
    known = cite.read(cite.PAPERS.read_text(encoding="utf-8"))
    assert len(known) == cite.PAPERS.read_text(encoding="utf-8").count("\n@")
    assert [entry.key for entry in known] == sorted(entry.key for entry in known)
    assert all({"title", "author", "year"} <= entry.fields.keys() and entry.link for entry in known)
    unused = [entry.key for entry in ENTRIES if not entry.of]
    assert not unused, "an entry on which nothing rests"


def test_citation_cff_refers_to_the_same_papers():
    references = yaml.safe_load(cite.CITATION.read_text(encoding="utf-8"))["references"]
    known = cite.read(cite.PAPERS.read_text(encoding="utf-8"))
    assert [reference["year"] for reference in references] == [int(entry.fields["year"]) for entry in known]
    assert [reference.get("url") for reference in references] == [entry.link for entry in known]
