"""Which files of a local folder are its text: what the `datasets` library would read, found without importing it.

1. Hidden files, folders that begin with a dot or two underscores, and what stands beside data (README, LICENSE, ...) are
   no text.
2. A split is told by names: `data/<split>-00000-of-00001.*`, else folders, else files that are named train, validation or test
   (or as the library's synonyms); where no name tells, every file is of the split train.
3. Of the files of a split those of the commonest form are read, so that a list of words beside Parquet files is no text.

Unlike the library, linked folders are followed and suffixes may be upper case. A folder whose README.md states
`configs` is read as the library says.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError, unknown_name
from pipeline.foreign import reading

FORMS = {".txt": "text", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet"}
_UNREAD_FORMS = {".csv": "csv", ".tsv": "csv", ".arrow": "arrow"}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
WANTED = ".txt, .jsonl, .ndjson, .json (each also .gz, .bz2, .xz, .zst) or .parquet"
# The last of those that are equally common is read, as the library has it.
_PREFERRED = ("text", "csv", "json", "arrow", "parquet")
_BESIDE = re.compile(r"licen[cs]e([-_.]\w+)*|(readme|copying|notice|authors|changelog|requirements)(\.\w+)*", re.IGNORECASE)
_SHARDED = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*")
_EDGE = "[-._ 0-9]"
_KEYWORDS = {
    "train": "train|training",
    "validation": "validation|valid|dev|val",
    "test": "test|testing|eval|evaluation",
}
_NAMED = {split: re.compile(f"(?:^|{_EDGE})(?:{words})(?:{_EDGE}|$)") for split, words in _KEYWORDS.items()}
_MOST_NAMES = 3


def holds_text(path: Path) -> bool:
    """Whether a path may be that of text: a directory, or a file of a known form."""
    return (
        path.is_dir() or Path(path.name.removesuffix(path.suffix) if path.suffix in COMPRESSED else path.name).suffix in FORMS
    )


@dataclass(frozen=True)
class TextFiles:
    """The files that are read, and what was left.

    Attributes:
        path: the file or folder that was asked for.
        base: folder that names are relative to.
        form: "text", "json" or "parquet".
        names: files that are read, sorted.
        left: files and folders that are not.
        split: which they are of.
    """

    path: Path
    base: Path
    form: str
    names: tuple[str, ...]
    left: tuple[str, ...] = ()
    split: str = "train"

    def lines(self) -> list[str]:
        """What was read and what was left, in a line each."""
        found = [f"{self.path}: split {self.split}: {_counted(self.names)} read"]
        why = f"of a folder the files of one form are read, the commonest of {WANTED}"
        if any(_form(name) == self.form for name in self.left):
            why = f"a name with the word train, test or validation tells a split, and names without are not read then; {why}"
        return found + ([f"{self.path}: left unread: {_counted(self.left)}; {why}"] if self.left else [])


def suffix_of(name: str) -> tuple[str, str]:
    """(suffix, suffix of the compression or "") in lower case: ("", "") without one, (".jsonl", ".gz")."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        return (suffixes[-2] if len(suffixes) > 1 else ""), suffixes[-1]
    return (suffixes[-1] if suffixes else ""), ""


def text_files(path: Path, split: str, config_name: str | None) -> TextFiles:
    """The files of a local text: the file itself, or those of a folder.

    Raises:
        DataError: no such split or configuration, no file of a known form, or a name that is not UTF-8.
    """
    if path.is_file():
        suffix, compression = suffix_of(path.name)
        if suffix not in FORMS or (compression and FORMS[suffix] == "parquet"):
            raise DataError(f"{path}: dataset.dataset_name_or_path: unknown form '{suffix}{compression}'; wanted {WANTED}")
        if split != "train":
            raise DataError(f"{path}: dataset.split: {unknown_name('split', split, ['train'])}; one file is one split")
        _check_names(path.parent, [path.name])
        return TextFiles(path, path.parent, FORMS[suffix], (path.name,))
    if _states_configs(path):
        return _as_stated(path, split, config_name)
    if config_name is not None:
        raise DataError(f"{path}: dataset.config_name '{config_name}': no README.md here states `configs`; set it to null")
    names, left = _walk(path)
    known = {name: form for name in names if (form := _form(name)) is not None}
    if not known:
        raise DataError(f"{path}: dataset.dataset_name_or_path: no file of the form {WANTED} in this directory")
    splits = _splits(sorted(known))
    if split not in splits:
        raise DataError(
            f"{path}: dataset.split: {unknown_name('split', split, sorted(splits))}, as the names of the files say: the "
            "word train, test or validation in one tells its split, and names without are left; set dataset.split, or rename"
        )
    return _of_one_form(path, splits[split], sorted({*names, *left}), split)


def _of_one_form(base: Path, names: list[str], every: list[str], split: str) -> TextFiles:
    counted = Counter(form for name in names if (form := _form(name)))
    form = max(counted, key=lambda form: (counted[form], _PREFERRED.index(form)))
    if form not in FORMS.values():
        raise DataError(f"{base}: most files of split '{split}' are {form}, which is not read; convert them to {WANTED}")
    read = sorted(name for name in names if _form(name) == form)
    _check_names(base, read)
    return TextFiles(base, base, form, tuple(read), tuple(sorted(set(every) - set(read))), split)


def _form(name: str) -> str | None:
    if _BESIDE.fullmatch(Path(name).name):
        return None
    suffix, compression = suffix_of(name)
    form = FORMS.get(suffix) or _UNREAD_FORMS.get(suffix)
    return None if compression and form == "parquet" else form


def _splits(names: list[str]) -> dict[str, list[str]]:
    """The splits that the names tell of, by the first rule that any name follows."""
    sharded: dict[str, list[str]] = {}
    for name in names:
        if match := _SHARDED.fullmatch(name):
            sharded.setdefault(match[1], []).append(name)
    if sharded:
        return sharded
    for parts in (lambda name: name.split("/")[:-1], lambda name: name.split("/")[-1:]):
        found = {split: [name for name in names if any(map(form.search, parts(name)))] for split, form in _NAMED.items()}
        if any(found.values()):
            return {split: files for split, files in found.items() if files}
    return {"train": names}


def _walk(base: Path) -> tuple[list[str], list[str]]:
    """(files, what is hidden or no file), relative to `base`; a linked folder is followed once."""
    names: list[str] = []
    left: list[str] = []
    seen = {os.path.realpath(base)}

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})")

    for place, folders, files in os.walk(base, followlinks=True, onerror=refuse):
        inside = os.path.relpath(place, base).replace(os.sep, "/")
        prefix = "" if inside == "." else f"{inside}/"
        entered = []
        for folder in sorted(folders):
            real = os.path.realpath(os.path.join(place, folder))
            if folder.startswith((".", "__")):
                left.append(f"{prefix}{folder}/")
            elif real not in seen:
                seen.add(real)
                entered.append(folder)
        folders[:] = entered
        for file in files:
            is_text = not file.startswith(".") and os.path.isfile(os.path.join(place, file))
            (names if is_text else left).append(prefix + file)
    return names, left


def _check_names(base: Path, names: list[str]) -> None:
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{base}: the file name {os.fsencode(name)!r} is not UTF-8; rename the file") from None


def _states_configs(base: Path) -> bool:
    readme = base / "README.md"
    if not readme.is_file():
        return False
    head = re.match(r"---\r?\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    return head is not None and re.search(r"^configs:", head[1], re.MULTILINE) is not None


def _as_stated(base: Path, split: str, config_name: str | None) -> TextFiles:
    import datasets

    with reading(
        f"{base}/README.md: its configurations cannot be read", "correct them, or remove `configs` (and a loading script)"
    ):
        builder = datasets.load_dataset_builder(str(base), config_name)
    stated = {str(name): files for name, files in (builder.config.data_files or {}).items()}
    if split not in stated:
        raise DataError(f"{base}: dataset.split: {unknown_name('split', split, sorted(stated))}, as README.md says")
    names = [os.path.relpath(str(file), base.resolve()) for file in stated[split]]
    return _of_one_form(base, names, sorted({*names, *(name for found in _walk(base) for name in found)}), split)


def _counted(names: tuple[str, ...]) -> str:
    """`12 files (10 .jsonl, 2 .jsonl.gz: a.jsonl, b.jsonl, c.jsonl, ...)`."""
    kinds = Counter("folder" if name.endswith("/") else "".join(suffix_of(name)) or "without suffix" for name in names)
    kinds_said = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    few = ", ".join(name.encode(errors="backslashreplace").decode() for name in names[:_MOST_NAMES])
    return f"{len(names)} ({kinds_said}: {few}{', ...' if len(names) > _MOST_NAMES else ''})"
