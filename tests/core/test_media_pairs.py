"""Rows whose sides are images and videos: how they come in, what names them, what is skipped."""

import io
import json
import tarfile
from pathlib import Path

import av
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from PIL import Image

from b3_core.artifacts import Address, Draft
from b3_core.config import BatchSpec, DatasetSpec, EvalSpec, MiningSpec, parse_config
from b3_core.dataset_stage import Pairs, PairsRef
from b3_core.errors import InputError
from b3_core.inputs import Packer, Seeing
from b3_core.mine import Communities, Graph, ManifestOf
from b3_core.pairs import PairTable, shelf_of
from b3_core.ranking import Ranks
from b3_core.reading import media_look, read_split
from b3_core.store import ArtifactStore
from tests.conftest import use_s3
from tests.media import clip, png

pytestmark = pytest.mark.usefixtures("one_looker")

COLORS = [(25 * n, 200 - 20 * n, 10 * n) for n in range(10)]
SPEC = {"name": "pictures", "positive": "text", "query_image": "image"}


def files(root: Path, suffix: str = ".png") -> list[str]:
    root.mkdir(parents=True, exist_ok=True)
    for number, color in enumerate(COLORS):
        (root / f"{number}{suffix}").write_bytes(png(color))
    return [f"{number}{suffix}" for number in range(len(COLORS))]


def texts() -> list[str]:
    return [f"colour {number}" for number in range(len(COLORS))]


def read(spec: DatasetSpec, folder: Path):
    return read_split(spec, EvalSpec(holdout=0.2), packed=folder / "media.bin")


def colors(table: PairTable, spec: DatasetSpec, packed: Path) -> dict[str, tuple[int, int, int]]:
    """What is seen beside each text."""
    shelf = shelf_of(spec, _Packed(packed))
    return {
        item["text"]: seen["image"].getpixel((0, 0))
        for seen, item in zip(
            table.inputs("query", shelf)[:], table.inputs("positive", shelf)[:], strict=True
        )
    }


class _Packed:
    """As much of an artifact as a shelf asks for."""

    def __init__(self, packed: Path) -> None:
        self.files = {"media.bin": packed} if packed.exists() else {}
        self._packed = packed

    def path(self, name: str) -> Path:
        return self._packed


def as_paths(root: Path) -> DatasetSpec:
    table = pa.table({"image": [f"img/{name}" for name in files(root / "img")], "text": texts()})
    pq.write_table(table, root / "rows.parquet")
    return DatasetSpec(uri=str(root / "rows.parquet"), **SPEC)


def as_bytes(root: Path) -> DatasetSpec:
    root.mkdir()
    table = pa.table({"image": [png(color) for color in COLORS], "text": texts()})
    pq.write_table(table, root / "rows.parquet")
    return DatasetSpec(uri=str(root / "rows.parquet"), **SPEC)


def as_features(root: Path) -> DatasetSpec:
    """As Hugging Face saves a dataset with images on disk."""
    datasets = pytest.importorskip("datasets")
    images = [Image.open(io.BytesIO(png(color))) for color in COLORS]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    made = datasets.Dataset.from_dict({"image": images, "text": texts()}, features=features)
    made.save_to_disk(str(root / "saved"), num_shards=2)
    return DatasetSpec(uri=str(root / "saved"), **SPEC)


def as_shards(root: Path) -> DatasetSpec:
    """As webdataset writes them: two tars, of which one has its members in another order."""
    root.mkdir()
    for shard, part in enumerate((range(6), range(6, 10))):
        with tarfile.open(root / f"part-{shard}.tar", "w") as tar:
            for number in part:
                pieces = [("png", png(COLORS[number])), ("txt", texts()[number].encode())]
                for kind, body in pieces[:: 1 - 2 * shard]:
                    member = tarfile.TarInfo(f"{number:04}.{kind}")
                    member.size = len(body)
                    tar.addfile(member, io.BytesIO(body))
    return DatasetSpec(name="pictures", uri=str(root), query_image="png", positive="txt")


WAYS = [as_paths, as_bytes, as_features, as_shards]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_that_media_come_in(tmp_path: Path, way) -> None:
    spec = way(tmp_path / "d")
    split = read(spec, tmp_path)
    assert len(split.train) + len(split.heldout) == 10
    assert split.heldout.has_media and split.skipped is None
    seen = colors(split.train, spec, tmp_path / "media.bin")
    seen |= colors(split.heldout, spec, tmp_path / "media.bin")
    assert seen == dict(zip(texts(), COLORS, strict=True))


def test_keys_name_what_rows_hold_and_not_how_they_came(tmp_path: Path) -> None:
    ways = [as_paths, as_bytes, as_shards]  # Pillow writes the features' bytes anew
    keys = []
    for way in ways:
        folder = tmp_path / way.__name__
        spec = way(folder)
        split = read(spec, folder)
        keys.append(
            {*split.train.table["key"].to_pylist(), *split.heldout.table["key"].to_pylist()}
        )
    assert keys[0] == keys[1] == keys[2]
    assert len(keys[0]) == 10


def test_the_same_picture_with_the_same_text_is_one_positive(tmp_path: Path) -> None:
    pictures = [png((9, 9, 9))] * 2 + [png((1, 2, 3)), png((4, 5, 6)), png((7, 8, 9))]
    table = pa.table({"ask": ["a", "b", "c", "d", "e"], "image": pictures, "text": ["x"] * 5})
    pq.write_table(table, tmp_path / "rows.parquet")
    spec = DatasetSpec(
        name="pictures", uri=str(tmp_path), query="ask", positive="text", positive_image="image"
    )
    split = read(spec, tmp_path)
    group_of = dict(
        zip(
            [*split.train.queries.to_pylist(), *split.heldout.queries.to_pylist()],
            [*split.train.group_N, *split.heldout.group_N],
            strict=True,
        )
    )
    assert group_of["a"] == group_of["b"]
    assert len(set(group_of.values())) == 4


def test_videos_give_as_many_frames_as_are_asked_for(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.mp4").write_bytes(clip(6 + number, (32, 32)))
    table = pa.table({"clip": [f"{n}.mp4" for n in range(4)], "text": texts()[:4]})
    pq.write_table(table, tmp_path / "rows.parquet")
    spec = DatasetSpec(name="clips", uri=str(tmp_path), query_video="clip", positive="text")
    split = read(spec, tmp_path)
    shelf = shelf_of(spec, _Packed(tmp_path / "media.bin"))
    seeing = Seeing(image_side=16, frames=3)
    for item in split.train.inputs("query", shelf, seeing=seeing)[:]:
        assert [frame.size for frame in item["image"]] == [(16, 16)] * 3


def test_a_video_is_looked_at_in_as_many_frames_as_models_are_shown(tmp_path: Path) -> None:
    """Frame 4 of 48 is one of 16 at equal distances, and none of 8."""
    whole = clip(48, format="matroska", codec="mjpeg")
    with av.open(io.BytesIO(whole)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        start = whole.index(bytes(packets[4]))
        broken = whole[: start + 2] + bytes(packets[4].size - 2) + whole[start + packets[4].size :]
    for name, content in (("whole", whole), ("broken", broken), ("other", clip(20))):
        (tmp_path / f"{name}.mkv").write_bytes(content)
    table = pa.table({"clip": ["whole.mkv", "broken.mkv", "other.mkv"], "text": texts()[:3]})
    pq.write_table(table, tmp_path / "rows.parquet")
    rows = {"name": "clips", "uri": "rows.parquet", "query_video": "clip", "positive": "text"}
    other = pa.table({"clip": ["whole.mkv"], "text": ["another text"]})
    pq.write_table(other, tmp_path / "other.parquet")
    skipped = {}
    for frames in (8, 16):
        config = {"datasets": [rows | {"media": {"bad": "skip"}}], "train": {"frames": frames}}
        (spec,) = parse_config(config, base=tmp_path).datasets
        split = read_split(
            spec.model_copy(update={"eval_uri": str(tmp_path / "other.parquet")}),
            EvalSpec(),
            packed=tmp_path / "m.bin",
        )
        skipped[frames] = split.skipped and set(split.skipped["file"].to_pylist())
        assert spec.media.frames == tuple(sorted({8, frames}))
    assert skipped == {8: None, 16: {"broken.mkv"}}


def test_mmeb_layout(tmp_path: Path) -> None:
    files(tmp_path / "images" / "A")
    table = pa.table(
        {
            "qry": [f"<|image_1|>\nWhat is {n}?\n" for n in range(9)] + ["Find it."],
            "qry_image_path": [f"A/{n}.png" for n in range(9)] + [""],
            "pos_text": texts()[:9] + ["<|image_1|>\n"],
            "pos_image_path": [""] * 9 + ["A/9.png"],
            "neg_text": [""] * 10,
            "neg_image_path": [""] * 10,
        }
    )
    pq.write_table(table, tmp_path / "original-00000.parquet")
    spec = DatasetSpec(
        name="A",
        uri=str(tmp_path / "original-00000.parquet"),
        layout="mmeb",
        media={"root": str(tmp_path / "images")},
    )
    split = read(spec, tmp_path)
    shelf = shelf_of(spec, _Packed(tmp_path / "media.bin"))
    rows = {}
    for part in (split.train, split.heldout):
        sides = [part.inputs(side, shelf)[:] for side in ("query", "positive")]
        rows |= dict(zip(part.table["row_id"].to_pylist(), zip(*sides, strict=True), strict=True))
    assert rows[3][0]["text"] == "What is 3?"
    assert rows[3][0]["image"].getpixel((0, 0)) == COLORS[3]
    assert rows[3][1] == {"text": "colour 3"}
    assert rows[9][0] == {"text": "Find it."}
    assert set(rows[9][1]) == {"image"}


def test_texts_alone_are_read_by_their_layout_too(tmp_path: Path) -> None:
    """The layout strips marks of images: what was read without it is something else."""
    table = pa.table({"qry": ["<|image_1|>\nWhat?"] * 9, "pos_text": texts()[:9]})
    pq.write_table(table, tmp_path / "rows.parquet")
    columns = {"query": "qry", "positive": "pos_text"}
    none = {"query_image": None, "positive_image": None}
    plain = DatasetSpec(name="A", uri=str(tmp_path / "rows.parquet"), **columns)
    mmeb = DatasetSpec(name="A", uri=plain.uri, layout="mmeb", **columns, **none)
    assert not mmeb.media_columns
    assert Pairs.of(plain, EvalSpec()).address != Pairs.of(mmeb, EvalSpec()).address
    (text,) = set(read(mmeb, tmp_path).train.queries.to_pylist())
    assert text == "What?"


def test_bad_media_are_refused_by_name_or_skipped_and_listed(tmp_path: Path) -> None:
    spec = as_paths(tmp_path / "d")
    (tmp_path / "d/img/3.png").write_bytes(b"no picture")
    (tmp_path / "d/img/5.png").unlink()
    with pytest.raises(InputError, match=r"2 of 10 rows of .* img/3.png of row 3: .*media.bad"):
        read(spec, tmp_path)
    spec = spec.model_copy(update={"media": spec.media.model_copy(update={"bad": "skip"})})
    split = read(spec, tmp_path)
    assert split.skipped["row_id"].to_pylist() == [3, 5]
    assert split.skipped_rows == 2
    assert split.skipped["file"].to_pylist() == ["img/3.png", "img/5.png"]
    kept = [
        row for part in (split.train, split.heldout) for row in part.table["row_id"].to_pylist()
    ]
    assert sorted(kept) == [0, 1, 2, 4, 6, 7, 8, 9]


def test_a_row_needs_a_text_or_a_medium_on_each_side(tmp_path: Path) -> None:
    files(tmp_path)
    table = pa.table({"image": ["0.png", None, "2.png"], "text": texts()[:3]})
    pq.write_table(table, tmp_path / "rows.parquet")
    spec = DatasetSpec(uri=str(tmp_path), **SPEC)
    with pytest.raises(InputError, match="'query' is null or blank in 1 row, first in row 1"):
        read(spec, tmp_path)


def test_a_picture_that_changes_is_noticed_and_one_that_does_not_is_not(tmp_path: Path) -> None:
    spec = as_paths(tmp_path / "d")
    before = Pairs.of(spec, EvalSpec())
    assert Pairs.of(spec, EvalSpec()) == before
    assert media_look(spec, spec.uri)
    store = ArtifactStore(str(tmp_path / "store"))
    first = before.run(store)
    (tmp_path / "d/img/3.png").write_bytes(png((1, 1, 1)))
    after = Pairs.of(spec, EvalSpec())
    assert after.address != before.address
    assert after.run(store).counts["digest"] != first.counts["digest"] or (
        after.run(store).counts["heldout_digest"] != first.counts["heldout_digest"]
    )
    shelf = shelf_of(spec, first)
    table = PairTable.load(first, "train")
    if "img/3.png" in [each["file"] for each in table.table["query_medium"].to_pylist()]:
        with pytest.raises(InputError, match="img/3.png: was changed since its rows were read"):
            table.inputs("query", shelf)[:]


def test_pictures_that_were_renamed_are_the_same_rows_in_other_places(tmp_path: Path) -> None:
    """Nothing is embedded or ranked anew, but a manifest leads to where they are now."""
    spec = as_paths(tmp_path / "d")
    store = ArtifactStore(str(tmp_path / "store"))
    before = PairsRef.of(spec, Pairs.of(spec, EvalSpec()).run(store))
    (tmp_path / "d/img").rename(tmp_path / "d/pictures")
    file = tmp_path / "d/rows.parquet"
    table = pq.read_table(file)
    paths = [path.replace("img/", "pictures/") for path in table["image"].to_pylist()]
    pq.write_table(table.set_column(table.column_names.index("image"), "image", [paths]), file)
    after = PairsRef.of(spec, Pairs.of(spec, EvalSpec()).run(store))
    assert (after.digest, after.rows) == (before.digest, before.rows)
    assert after.places != before.places

    def manifest(ref: PairsRef) -> ManifestOf:
        mining = MiningSpec(p=1, m=2, k=2)
        ranks = Ranks(ref, Address("pictures", "embeddings", "0" * 20), 3, 1)
        communities = Communities(ref, Graph(ref, ranks, mining), mining, 0)
        batching = BatchSpec(batch_size=2)
        return ManifestOf("pictures", ((communities,),), mining, batching, 0)

    assert manifest(before).partitions[0][0].address == manifest(after).partitions[0][0].address
    assert manifest(before).address != manifest(after).address


def test_the_packed_file_holds_each_medium_once(tmp_path: Path) -> None:
    packer = Packer(tmp_path / "media.bin")
    places = [packer.add(body) for body in (b"abc", b"de", b"abc")]
    packer.close()
    assert places == [(0, 3), (3, 2), (0, 3)]
    assert (tmp_path / "media.bin").read_bytes() == b"abcde"


def test_the_artifact_holds_what_is_packed_and_what_is_skipped(tmp_path: Path) -> None:
    spec = as_bytes(tmp_path / "d")
    broken = pa.table({"image": [png(c) for c in COLORS[:9]] + [b"x"], "text": texts()})
    pq.write_table(broken, tmp_path / "d/rows.parquet")
    spec = spec.model_copy(update={"media": spec.media.model_copy(update={"bad": "skip"})})
    store = ArtifactStore(str(tmp_path / "store"))
    made = Pairs.of(spec, EvalSpec()).run(store)
    assert {"media.bin", "skipped.parquet", "train.parquet"} <= set(made.files)
    assert made.counts["skipped"] == 1
    (said,) = PairsRef.of(spec, made).warnings(store)
    start, _, listed = said.partition(", listed in ")
    assert start == f"1 row of {spec.name} left out for bad images or videos"
    assert pq.read_table(listed)["row_id"].to_pylist() == [9]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_image": "picture"}, "column 'picture' is not in .*'query_image'"),
        ({"query_image": "number"}, "column 'number' of .* holds int64; expected paths, bytes"),
    ],
)
def test_columns_that_hold_no_media(tmp_path: Path, change: dict[str, str], message: str) -> None:
    as_paths(tmp_path / "d")
    table = pq.read_table(tmp_path / "d/rows.parquet")
    pq.write_table(table.append_column("number", pa.array(range(10))), tmp_path / "d/rows.parquet")
    with pytest.raises(InputError, match=message):
        read(DatasetSpec(uri=str(tmp_path / "d"), **{**SPEC, **change}), tmp_path)


def test_a_tar_must_lie_below_the_root(tmp_path: Path) -> None:
    spec = as_shards(tmp_path / "d")
    spec = spec.model_copy(update={"media": spec.media.model_copy(update={"root": "/nowhere"})})
    with pytest.raises(InputError, match="part-0.tar is not below media.root /nowhere"):
        read(spec, tmp_path)


def test_json_members_of_tars_give_texts(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number in range(4):
            body = json.dumps({"caption": f"it is {number}"}).encode()
            for kind, content in (("json", body), ("png", png(COLORS[number]))):
                member = tarfile.TarInfo(f"a/{number}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    spec = DatasetSpec(
        name="x", uri=str(tmp_path / "x.tar"), query_image="png", positive="json.caption"
    )
    split = read(spec, tmp_path)
    assert sorted([*split.train.positives.to_pylist(), *split.heldout.positives.to_pylist()]) == [
        f"it is {number}" for number in range(4)
    ]


def test_config_says_what_a_side_lacks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lacks 'positive': a column of texts, or positive_image"):
        parse_config({"datasets": [{"name": "a", "uri": "x", "query": "q"}]}, base=tmp_path)
    spec = parse_config(
        {"datasets": [{"name": "a", "uri": "d/x.parquet", "layout": "mmeb"}]}, base=tmp_path
    ).datasets[0]
    assert (spec.query, spec.positive_image) == ("qry", "pos_image_path")
    assert spec.media_root == str(tmp_path / "d")


def test_a_draft_needs_no_packed_file_where_nothing_is_packed(tmp_path: Path) -> None:
    spec = as_paths(tmp_path / "d")
    draft = Draft(tmp_path / "draft")
    (tmp_path / "draft").mkdir(exist_ok=True)
    read_split(spec, EvalSpec(), packed=draft.path("media.bin")).save(draft)
    assert "media.bin" not in draft.names()


@pytest.mark.parametrize("way", [as_paths, pytest.param(as_shards, marks=pytest.mark.slow)])
def test_media_in_a_bucket_are_those_of_a_folder(
    tmp_path: Path, s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, way
) -> None:
    use_s3(monkeypatch, s3_server)
    local = way(tmp_path / "d")
    there = f"{s3_bucket}/{way.__name__}"
    direct = s3fs.S3FileSystem(endpoint_url=s3_server, use_listings_cache=False)
    direct.put(str(tmp_path / "d"), there, recursive=True)
    spec = local.model_copy(update={"uri": f"{there}{local.uri.removeprefix(str(tmp_path / 'd'))}"})
    here, far = (read(each, tmp_path) for each in (local, spec))
    assert here.train.digest == far.train.digest
    assert here.heldout.digest == far.heldout.digest
    assert colors(far.train, spec, tmp_path / "media.bin") == colors(
        here.train, local, tmp_path / "media.bin"
    )
    before = media_look(spec, spec.uri)
    assert bool(before) == (way is as_paths)
    if before:
        direct.pipe_file(f"{there}/img/3.png", png((1, 1, 1)))
        assert media_look(spec, spec.uri) != before
