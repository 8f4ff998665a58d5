"""BibTeX of what stands behind a scheme, a model, a data set, a published table or an ablation's folder.

`python -m reports.cite` prints all; `python -m reports.cite divided dualformer_tiny kinetics400 results/x/kinetics`
what these rest on. Entries are those of `papers.bib`; which one belongs to what is read where it is stated: in the
docstring of a scheme, the `Origin` of models, the `paper` of a table. A scheme or model whose paper is not among the
entries is cited by its source in words. This project itself comes first, from CITATION.cff.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from records.record import MANIFEST, read_records, slug
from records.terminal import until_closed
from reports import paper_table, table
from reports.text import nearest

ROOT = Path(__file__).resolve().parents[1]
PAPERS = ROOT / "reports" / "papers.bib"
CITATION = ROOT / "CITATION.cff"
OWN = "data", "alias"  # fields of papers.bib that say what an entry is of, no part of BibTeX
ARXIV = re.compile(r"arXiv:\s?(\d{4}\.\d{4,5})")
KINDS = ("scheme", "models", "data set", "table")


@dataclass
class Entry:
    """One of BibTeX; `of` names what rests on it."""

    kind: str
    key: str
    fields: dict[str, str]
    of: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        named = {kind: [name for k, name in self.of if k == kind] for kind in KINDS}
        lines = [f"% {kind}: {', '.join(names)}" for kind, names in named.items() if names]
        printed = {key: value for key, value in self.fields.items() if key not in OWN}
        if "eprint" in printed:
            printed |= {"archiveprefix": "arXiv", "url": self.link}
        body = [f"  {key} = {{{value}}}," for key, value in printed.items()]
        return "\n".join([*lines, f"@{self.kind}{{{self.key},", *body, "}"])

    @property
    def link(self) -> str | None:
        eprint = self.fields.get("eprint")
        return f"https://arxiv.org/abs/{eprint}" if eprint else self.fields.get("url")

    @property
    def title(self) -> str:
        """As it is said in words: without the braces that keep capitals."""
        return re.sub(r"[{}$\\]", "", self.fields["title"])

    def named_in(self, text: str) -> bool:
        words = [self.fields[key] for key in ("eprint", "alias") if key in self.fields]
        return any(word in text for word in words) or self.title.lower() in text.lower()


def read(text: str) -> list[Entry]:
    """The entries of a file in which each field has a line of its own."""
    parsed = []
    for kind, key, body in re.findall(r"^@(\w+)\{([^,]+),\n(.*?)^\}", text, flags=re.M | re.S):
        parsed.append(Entry(kind, key, dict(re.findall(r"^  (\w+) = \{(.*)\},$", body, flags=re.M))))
    return parsed


def schemes() -> dict[str, str]:
    """Registered name and docstring, which states the source, of each scheme of this project."""
    classes = (node for tree in _trees("attention_zoo") for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    return {name: " ".join((ast.get_docstring(node) or "").split()) for node in classes for name in _registered(node)}


def models() -> dict[str, str]:
    """The beginning of models' names, and the paper that their `Origin` states."""
    papers = {}
    for tree in _trees("backbones"):
        for node in ast.walk(tree):
            for key, value in zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ():
                if isinstance(value, ast.Call) and ast.unparse(value.func) == "Origin":
                    papers[key.value] = value.args[0].value
    return papers


def data_sets() -> list[str]:
    """The names under which files of data sets register one."""
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / "harness" / "datasets").glob("*.py"))
    return sorted({name for text in texts for name in re.findall(r'^@?register\w*\(\s*"(\w+)"', text, flags=re.M)})


def _trees(room: str) -> Iterator[ast.Module]:
    for path in sorted((ROOT / room).glob("*.py")):
        yield ast.parse(path.read_text(encoding="utf-8"))


def _registered(node: ast.ClassDef) -> Iterator[str]:
    for call in node.decorator_list:
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "register":
            yield call.args[0].value


def entries() -> list[Entry]:
    """All of them, each with what rests on it; at their head this project, on which every measured number does."""
    papers = read(PAPERS.read_text(encoding="utf-8"))
    stated = [("scheme", name, text) for name, text in schemes().items()]
    stated += [("models", f"{name}*", text) for name, text in models().items()]
    stated += [("table", name, paper_table.load(name).paper) for name in paper_table.names()]
    for kind, name, text in stated:
        behind = [entry for entry in papers if entry.named_in(text)]
        for entry in behind:
            entry.of.append((kind, name))
        if not behind and ARXIV.search(text):
            eprint = ARXIV.search(text)[1]
            title = text.partition("Source: ")[2].partition(". ")[0] or f"The source of {name}"
            fields = {"title": title, "year": f"20{eprint[:2]}", "eprint": eprint}
            papers.append(Entry("misc", slug(name), fields, [(kind, name)]))
    for entry in papers:
        entry.of += [("data set", name) for name in entry.fields.get("data", "").split(", ") if name]
    own = [project()] if CITATION.is_file() else []  # not there where only the packages are installed
    return [*own, *sorted(papers, key=lambda entry: entry.key)]


def project() -> Entry:
    """This project, as CITATION.cff says; the built-in data sets are its own."""
    cff = yaml.safe_load(CITATION.read_text(encoding="utf-8"))
    names = " and ".join(f"{{{author['name']}}}" for author in cff["authors"])
    fields = {"title": cff["title"], "author": names, "year": str(cff["date-released"].year)}
    fields |= {"note": f"Version {cff['version']}"} | ({"url": cff["url"]} if "url" in cff else {})
    own = [("data set", name) for name in data_sets() if name.startswith("motion")]
    return Entry("software", "attention_zoo", fields, own)


def chosen(papers: list[Entry], names: list[str]) -> list[Entry]:
    """The entries behind some names. Raises: KeyError for a name that nothing here has."""
    sought: list[tuple[str | None, str]] = []
    for name in names:
        if (Path(name) / MANIFEST).is_file():
            sought += _behind_folder(Path(name))
        else:
            sought.append((None, name))
    kept = {}
    for kind, name in sought:
        behind = [entry for entry in papers if any(_is(name, *pair) and kind in (None, pair[0]) for pair in entry.of)]
        if not behind and kind is None:
            allowed = dict.fromkeys(stated for entry in papers for _, stated in entry.of)
            raise KeyError(f"nothing is called {name!r}; {nearest(name, allowed)}")
        kept |= {entry.key: entry for entry in behind}
    return [entry for entry in papers if entry.key in kept]


def _is(name: str, kind: str, stated: str) -> bool:
    return name.startswith(stated[:-1]) if kind == "models" else name == stated


def _behind_folder(folder: Path) -> list[tuple[str, str]]:
    """What an ablation's folder rests on: its published table, its models, the schemes in them, its data.

    Raises: RecordError for a manifest or record that cannot be used.
    """
    read_records(folder)
    ablation = table.load(folder)
    rests_on = [("table", ablation.paper.name)] if ablation.paper else []
    for row in ablation.measured:
        rests_on += [("models", row.record.case.get("model") or "")]
        rests_on += [("scheme", name) for name in table.schemes(row.record.case)]
        rests_on += [("data set", str(m.details.get("data"))) for m in row.record.measurements.values()]
    return rests_on


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reports.cite", description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="a scheme, model, data set or published table, or the folder of an ablation; none: all",
    )
    names, papers = parser.parse_args(arguments).names, entries()
    try:
        cited = chosen(papers, names) if names else papers
    except (KeyError, *table.UNREADABLE) as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        return 2
    print("\n\n".join(map(str, cited)))
    return 0


if __name__ == "__main__":
    sys.exit(until_closed(main))
