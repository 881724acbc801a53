"""The demo's corpus, read from tiny site-packages folders whose every pair is known."""

import gzip
import hashlib
import json
import sysconfig
import warnings
from pathlib import Path
from textwrap import dedent

import pytest

from b3_core.corpus import KINDS, Part, corpus_fingerprint, part_of, prose, read_corpus
from b3_core.corpus.code import list_sources, read_functions
from b3_core.corpus.parts import Pair
from b3_core.errors import InputError

Parts = dict[Part, list[tuple[str, ...]]]

TEST, VALIDATION, TRAIN = ("pandas", "networkx"), ("gamma", "delta"), ("torch", "alpha")


def function(name: str, *, doc: str | None = None, value: str | None = None) -> str:
    doc = doc or f"Compute the {name} value."
    return (
        f'def f_{name}():\n    """{doc}"""\n    x = {value or name!r}\n    return x + "........"\n'
    )


def body(value: str) -> str:
    return f'x = {value!r}\nreturn x + "........"'


def install(root: Path, name: str, files: dict[str, str | bytes], *, listed: str = "") -> None:
    """Lay out a distribution as pip does."""
    record = listed
    for path, text in files.items():
        content = text.encode() if isinstance(text, str) else text
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
        record += f"{path},sha256={hashlib.sha256(content).hexdigest()[:43]},{len(content)}\n"
    info = root / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"{record}{info.name}/RECORD,,\n")


def install_all(root: Path, *, files: int = 1, functions: int = 3) -> None:
    for package in (*TEST, *VALIDATION, *TRAIN):
        install(
            root,
            package,
            {
                f"{package}/m{i}.py": "\n".join(
                    function(f"{package}_{i}_{j}") for j in range(functions)
                )
                for i in range(files)
            },
        )


def read(root: Path, pairs: int = 100, **options: int) -> tuple[Parts, int]:
    made = read_corpus(KINDS["code"], pairs, root=root, **{"workers": 1, **options})
    parts: Parts = {}
    for part in ("train", "validation", "test"):
        table = getattr(made, part)
        assert table.column_names == ["query", "positive", "package", "where"]
        parts[part] = [tuple(row.values()) for row in table.to_pylist()]
    return parts, made.skipped


def functions_in(tmp_path: Path, source: str | bytes) -> list[Pair] | None:
    file = tmp_path / "module.py"
    file.write_bytes(dedent(source).encode() if isinstance(source, str) else source)
    return read_functions(str(file))


def test_packages_keep_their_part() -> None:
    assert [part_of(p) for p in (*TEST, *VALIDATION, *TRAIN)] == [
        *["test"] * 2,
        *["validation"] * 2,
        *["train"] * 2,
    ]
    shares = [[part_of(f"p{i}") for i in range(5000)].count(p) / 5000 for p in ("test", "train")]
    assert shares == pytest.approx([0.1, 0.8], abs=0.02)


def test_read_by_hand(tmp_path: Path) -> None:
    install_all(tmp_path, functions=1)
    parts, skipped = read(tmp_path)
    assert skipped == 0
    for part, packages in (("test", TEST), ("validation", VALIDATION), ("train", TRAIN)):
        assert sorted(parts[part]) == sorted(
            (f"Compute the {p}_0_0 value.", body(f"{p}_0_0"), p, f"{p}/m0.py:1") for p in packages
        )


def test_the_number_of_workers_does_not_matter(tmp_path: Path) -> None:
    install_all(tmp_path, files=40)  # three tasks a part
    caps = {"heldout": 160, "validation": 40}
    one, three = (read(tmp_path, 150, workers=n, **caps) for n in (1, 3))
    assert one == three
    assert [len(one[0][part]) for part in ("train", "validation", "test")] == [150, 40, 160]
    more = read(tmp_path, 220, **caps)[0]
    assert more["train"][:150] == one[0]["train"]
    assert (more["test"], more["validation"]) == (one[0]["test"], one[0]["validation"])


def test_no_text_in_two_parts_or_twice(tmp_path: Path) -> None:
    shared = function("say", doc="Say the same thing.", value="one") + function("own")
    install(tmp_path, "pandas", {"pandas/a.py": shared})
    install(
        tmp_path, "gamma", {"gamma/a.py": shared + function("gee") + function("haw", value="one")}
    )
    train = shared + function("tee")
    train += (
        function("they", doc="Say the same thing.")
        + function("you", value="gee")
        + function("vee", value="tee")
    )
    install(tmp_path, "torch", {"torch/a.py": train})
    parts, _ = read(tmp_path)
    assert [row[0] for row in parts["test"]] == ["Say the same thing.", "Compute the own value."]
    assert [row[0] for row in parts["validation"]] == ["Compute the gee value."]
    assert [row[0] for row in parts["train"]] == ["Compute the tee value."]
    for side in (0, 1):
        texts = [row[side] for rows in parts.values() for row in rows]
        assert len(texts) == len(set(texts)) == 4


def test_no_package_fills_more_than_half_if_others_can(tmp_path: Path) -> None:
    for package, count in (("pandas", 30), ("networkx", 8), ("gamma", 9), ("torch", 9)):
        names = [f"{package}_{i}" for i in range(count)]
        install(tmp_path, package, {f"{package}/{n}.py": function(n) for n in names})

    def from_pandas(cap: int) -> tuple[int, int]:
        rows = read(tmp_path, heldout=cap)[0]["test"]
        return len(rows), [row[2] for row in rows].count("pandas")

    assert from_pandas(10) == (10, 5)
    assert from_pandas(20) == (20, 12)  # networkx has but 8
    assert from_pandas(100) == (38, 30)


def test_one_name_per_top_level(tmp_path: Path) -> None:
    install_all(tmp_path)
    install(tmp_path, "single", {"pandas.py": function("alone")})
    where = [row[2:] for row in read(tmp_path)[0]["test"]]
    assert ("pandas", "pandas.py:1") in where


def test_only_listed_python_files_inside_the_folder_are_read(tmp_path: Path) -> None:
    root = tmp_path / "site"
    outside = tmp_path / "outside.py"
    outside.write_text(function("outside"))
    install_all(root)
    before = {source.path for source in list_sources(root)}
    (root / "torch/unlisted.py").write_text(function("unlisted"))
    (root / "torch/unhashed.py").write_text(function("unhashed"))
    checksum = "sha256=" + "A" * 43
    listed = f"../outside.py,{checksum},1\n{outside},{checksum},1\ntorch/unhashed.py,,\n"
    listed += f"torch/data.txt,{checksum},1\n\ntorch/m0.py,{checksum},1\n"
    install(root, "odd", {"odd/__init__.py": ""}, listed=listed)
    install(root, "b3-batches", {"torch/own.py": function("own")})
    (root / "bare-1.0.dist-info").mkdir()
    sources = list_sources(root)
    assert {source.path for source in sources} == before | {"odd/__init__.py"}
    assert len(sources) == len({source.path for source in sources})
    orders = [hashlib.sha256(source.path.encode()).digest() for source in sources]
    assert orders == sorted(orders)


def test_fingerprint_follows_the_records(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        install_all(tmp_path / name)
    first = corpus_fingerprint(KINDS["code"], tmp_path / "one")
    assert len(first) == 64
    assert corpus_fingerprint(KINDS["code"], tmp_path / "two") == first
    install(tmp_path / "two", "more", {"more/__init__.py": ""})
    record = tmp_path / "three/torch-1.0.dist-info/RECORD"
    record.write_text(record.read_text().replace("sha256=", "sha256=x"))
    folders = [tmp_path / name for name in ("one", "two", "three")]
    assert len({corpus_fingerprint(KINDS["code"], folder) for folder in folders}) == 3


def test_unusable_files_are_counted_and_never_run(tmp_path: Path) -> None:
    install_all(tmp_path, functions=1)
    ran = tmp_path / "ran"
    bad: dict[str, str | bytes] = {
        "alpha/syntax.py": '"""Doc."""\ndef f(:\n',
        "alpha/bytes.py": b'"""\xff\xfe"""\n',
        "alpha/late.py": b'"""x"""\n\n\n# \xff\n',
        "alpha/cookie.py": "# coding: no-such-codec\n'''x'''\n",
        "alpha/nul.py": b'"""x"""\0\n',
        "alpha/deep.py": '"""x"""\n' + "(" * 5000 + ")" * 5000,
        "alpha/large.py": function("large") + "#" * 1_000_000,
        "alpha/gone.py": "",
        "alpha/effect.py": f'"""x"""\nopen({str(ran)!r}, "w")\n' + function("effect"),
    }
    install(tmp_path, "bad", bad)
    (tmp_path / "alpha/gone.py").unlink()
    parts, skipped = read(tmp_path)
    assert skipped == 8
    assert {row[0] for row in parts["train"]} == {
        f"Compute the {name} value." for name in ("torch_0_0", "alpha_0_0", "effect")
    }
    assert not ran.exists()


@pytest.mark.parametrize("missing", [TEST, VALIDATION, TRAIN])
def test_a_part_without_pairs_is_refused(tmp_path: Path, missing: tuple[str, str]) -> None:
    for package in {*TEST, *VALIDATION, *TRAIN} - set(missing):
        install(tmp_path, package, {f"{package}/m.py": function(package)})
    with pytest.raises(InputError, match=f"no documented .* for the {part_of(missing[0])} part"):
        read(tmp_path)


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    install_all(tmp_path, files=4)
    calls: list[tuple[int, int]] = []
    read_corpus(
        KINDS["code"],
        10,
        heldout=4,
        validation=3,
        workers=1,
        root=tmp_path,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls[-1] == (17, 17)
    assert calls == sorted(calls)
    assert len(calls) < 24  # files: not all are needed


def test_functions_by_hand(tmp_path: Path) -> None:
    source = '''
        class Box:
            def put(self, thing):
                """Put   a thing
                into the box.

                More about it.
                """
                # Checked first.
                if thing is None:
                    raise ValueError("nothing")  # no thing\x20

                text = """
        flush left
                    deep
                """
                self.things.append(text)

        if True:
            async def fetch(url):
                r"""Fetch the page \\d."""

                @cached
                def inner():
                    """Return the inner value."""
                    value = compute(url)
                    return value
                return await inner()
    '''
    assert functions_in(tmp_path, source) == [
        Pair(
            "Put a thing into the box.",
            "# Checked first.\nif thing is None:\n"
            '    raise ValueError("nothing")  # no thing\n\n'
            'text = """\nflush left\n    deep\n"""\nself.things.append(text)',
            "3",
        ),
        Pair(
            "Fetch the page \\d.",
            '@cached\ndef inner():\n    """Return the inner value."""\n'
            "    value = compute(url)\n    return value\nreturn await inner()",
            "20",
        ),
        Pair("Return the inner value.", "value = compute(url)\nreturn value", "24"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "pass",
        "...",
        "raise NotImplementedError",
        "raise NotImplementedError(\n    'a long explanation of what to do')",
        "pass\n'a second string that is quite long'",
        "return 'one line, however long it may become in the end'",
        "a = 1\nreturn a",
        "# a comment above\n\n\npass",
    ],
)
def test_stubs_are_no_pairs(tmp_path: Path, text: str) -> None:
    lines = ["def f():", '    """Do some real work."""']
    lines += [f"    {line}" for line in text.split("\n")]
    assert functions_in(tmp_path, "\n".join(lines)) == []
    lines.append("    return [number for number in range(100)]\n    # end")
    if "\n" in text or "return" not in text:
        assert len(functions_in(tmp_path, "\n".join(lines)) or []) == 1


@pytest.mark.parametrize(
    "head",
    [
        'def f(): """Do some real work."""; x = 1; return x',
        'def f():\n    """Do some real work."""; x = 1\n    y = 2\n    return x + y + 1000000000',
        'def f():\n    """Too short."""\n    x = 1\n    return x + 1000000000000000',
        'def f():\n    """"""\n    x = 1\n    return x + 1000000000000000',
        'def f():\n    x = """Do some real work."""\n    return x + 1000000000000000',
        'def f():\n    """Do some real work."""',
    ],
)
def test_what_has_no_docstring_or_body_of_its_own(tmp_path: Path, head: str) -> None:
    assert functions_in(tmp_path, head) == []


def test_texts_are_cut(tmp_path: Path) -> None:
    source = f'def f():\n    """{"word " * 300}"""\n    x = 1\n    return "{"y" * 3000}"\n'
    (found,) = functions_in(tmp_path, source) or []
    assert (len(found.query), len(found.positive)) == (500, 2000)


def test_other_encodings_newlines_and_escapes(tmp_path: Path) -> None:
    source = '# coding: latin-1\r\ndef f():\r\n    """Find caf\xe9s \\ud800 nearby."""\r\n'
    source += "    x = '\\d \f \x1c'\r\n    return x + '...........'\r\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = functions_in(tmp_path, source.encode("latin-1"))
    assert found == [
        Pair("Find cafés ? nearby.", "x = '\\d \f \x1c'\nreturn x + '...........'", "2")
    ]


def test_this_environment_has_sources_of_every_part() -> None:
    sources = list_sources(Path(sysconfig.get_path("purelib")))
    assert {part_of(source.package) for source in sources} == {"train", "validation", "test"}
    assert not any(source.package == "b3_core" for source in sources)


def describe(root: Path, **services: dict[str, object]) -> None:
    """Install a botocore with these services, gzipped as the real one has them."""
    files = {
        f"botocore/data/{name.replace('_', '-')}/2020-01-01/service-2.json.gz": gzip.compress(
            json.dumps(described).encode(), mtime=0
        )
        for name, described in services.items()
    }
    install(root, "botocore", files)


REST = "It also tells who may read it, and until when it will be kept for them."


def test_a_service_by_hand(tmp_path: Path) -> None:
    service = {
        "metadata": {},
        "operations": {
            "Make": {"documentation": f"<p>Makes a &lt;b&gt;  bucket now.</p><p>{REST}</p>"},
            "Undocumented": {},
        },
        "shapes": {
            "Box": {
                "documentation": f"Too short. {REST}",
                "members": {
                    "Name": {"documentation": f"The name of the box, e.g. one! {REST * 40}"},
                    "Size": {"documentation": "A sentence that nothing follows at all."},
                },
            }
        },
    }
    file = tmp_path / "service-2.json"
    file.write_text(json.dumps(service))
    assert prose.read_service(str(file)) == [
        Pair("Makes a <b> bucket now.", REST, "Make"),
        Pair("The name of the box, e.g. one!", (REST * 40)[:2000], "Box.Name"),
    ]


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08", b"{", b"[]", b'{"shapes": {"A": 3}}'])
def test_what_describes_no_service_is_counted(tmp_path: Path, content: bytes) -> None:
    for suffix in ("", ".gz"):
        file = tmp_path / f"service-2.json{suffix}"
        file.write_bytes(content)
        assert prose.read_service(str(file)) is None


def test_services_are_held_out_whole_and_read_in_their_newest_version(tmp_path: Path) -> None:
    services = {
        name: {"operations": {"Do": {"documentation": f"Does what {name} is there for."}}}
        for name in ("pandas", "gamma", "torch")
    }
    for name, service in services.items():
        service["operations"]["Do"]["documentation"] += f" {REST} {name}"
    describe(tmp_path, **services)
    newer = gzip.compress(b"{}", mtime=0)
    older = "botocore/data/torch/2019-01-01/service-2.json.gz"
    listed = f"{older},sha256={hashlib.sha256(newer).hexdigest()[:43]},1\n"
    record = tmp_path / "botocore-1.0.dist-info/RECORD"
    record.write_text(listed + record.read_text())
    made = read_corpus(KINDS["prose"], 10, root=tmp_path, workers=1)
    for part, name in (("test", "pandas"), ("validation", "gamma"), ("train", "torch")):
        (row,) = getattr(made, part).to_pylist()
        assert row["package"] == name
        assert row["query"] == f"Does what {name} is there for."
        assert row["where"] == f"botocore/data/{name}/2020-01-01/service-2.json.gz:Do"
    assert made.skipped == 0
