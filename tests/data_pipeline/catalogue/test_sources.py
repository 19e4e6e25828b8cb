"""The catalogues' layouts, parquet and text: every row and every value as it is in the file."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.catalogue.curate import CurateOptions, curate
from data_pipeline.catalogue.sources import SCHEMAS, find_files
from data_pipeline.errors import UserError
from tests.worlds.data.catalogues import parquet, read


def test_cc3m_and_cc12m_without_header_with_quotes(tmp_path):
    captions = [
        '"starts with a quote',
        'a "quoted" word',
        "02000",
        "it's",
        'ends with "',
        "comma, semicolon; done",
        "5' 10\"",
    ]
    with open(tmp_path / "cc3m.tsv", "w") as three, open(tmp_path / "cc12m.tsv", "w") as twelve:
        for number, caption in enumerate(captions):
            three.write(f"{caption}\thttp://a.example/{number}.jpg\n")
            twelve.write(f"http://a.example/{number}.jpg\t{caption}\n")
    for source in ("cc3m", "cc12m"):
        rows = read(tmp_path, source, str(tmp_path / f"{source}.tsv"))
        assert [row["caption"] for row in rows] == captions
        assert [row["url"] for row in rows] == [f"http://a.example/{number}.jpg" for number in range(len(captions))]
        assert all(row["similarity"] is None for row in rows)


LAYOUTS = {
    "laion2b": (
        {
            "SAMPLE_ID": 1,
            "URL": "u",
            "TEXT": "t",
            "HEIGHT": 3,
            "WIDTH": 4,
            "LICENSE": "?",
            "NSFW": "UNSURE",
            "similarity": 0.5,
        },
        {"src_width": 4, "src_height": 3, "similarity": 0.5, "nsfw": 0.5},
    ),
    "laion2b-joined": (
        {
            "URL": "u",
            "TEXT": "t",
            "WIDTH": 4,
            "HEIGHT": 3,
            "similarity": 0.5,
            "hash": 7,
            "punsafe": 0.25,
            "pwatermark": 0.75,
        },
        {"src_width": 4, "src_height": 3, "similarity": 0.5, "nsfw": 0.25, "watermark": 0.75},
    ),
    "relaion2b": (
        {
            "url": "u",
            "caption": "t",
            "width": 4,
            "height": 3,
            "similarity": 0.5,
            "punsafe": 0.25,
            "pwatermark": 0.75,
            "key": "1",
            "status": "success",
        },
        {"src_width": 4, "src_height": 3, "similarity": 0.5, "nsfw": 0.25, "watermark": 0.75},
    ),
    "coyo700m": (
        {
            "id": 1,
            "url": "u",
            "text": "t",
            "width": 4,
            "height": 3,
            "image_phash": "00ff00ff00ff00ff",
            "text_length": 1,
            "word_count": 1,
            "num_tokens_bert": 1,
            "num_tokens_gpt": 1,
            "num_faces": 0,
            "clip_similarity_vitb32": 0.5,
            "clip_similarity_vitl14": 0.125,
            "nsfw_score_opennsfw2": 0.25,
            "nsfw_score_gantman": 0.75,
            "watermark_score": 0.75,
            "aesthetic_score_laion_v2": 5.5,
        },
        {
            "src_width": 4,
            "src_height": 3,
            "similarity": 0.5,
            "nsfw": 0.25,
            "watermark": 0.75,
            "aesthetic": 5.5,
            "phash": "00ff00ff00ff00ff",
        },
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_catalogue_layouts(tmp_path, layout):
    row, expected = LAYOUTS[layout]
    name = "part-00000-5114fd87-297e-42b0-9d11-50f1df323dfa-c000.snappy.parquet"
    path = parquet(tmp_path / name, [row])
    (tmp_path / f".{name}.crc").write_bytes(b"crc")
    (tmp_path / f"{name}.crc").write_bytes(b"crc")
    (tmp_path / "_SUCCESS").write_bytes(b"")
    names = ("src_width", "src_height", "similarity", "nsfw", "watermark", "aesthetic", "phash")
    found = read(tmp_path, layout.split("-")[0], str(tmp_path))[0]
    assert found == {"url": "u", "caption": "t"} | dict.fromkeys(names) | expected
    assert path


def test_columns_that_differ_in_case_only_are_refused(tmp_path):
    (tmp_path / "b.csv").write_text("URL,url,caption\n1,2,3\n")
    with pytest.raises(UserError, match="b.csv: the columns URL and url in b.csv differ in case only, if at all; rename"):
        read(tmp_path, "generic", str(tmp_path / "b.csv"))
    (tmp_path / "b.csv").write_text("URL,caption\n1,2\n")
    (tmp_path / "c.csv").write_text("Caption,url\n3,4\n")
    rows = read(tmp_path, "generic", str(tmp_path / "*.csv"))
    assert sorted((row["url"], row["caption"]) for row in rows) == [("1", "2"), ("4", "3")], "files are compared without case"


def test_missing_columns_and_files_are_named(tmp_path):
    path = parquet(tmp_path / "odd.parquet", [{"link": "u", "TEXT": "t"}])
    with pytest.raises(
        UserError, match=r"odd.parquet: --source laion2b needs the columns url \(url\); found link, TEXT; .*--url-col"
    ):
        read(tmp_path, "laion2b", path)
    with pytest.raises(UserError, match="no such file"):
        find_files(str(tmp_path / "nothing*.parquet"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="broken.parquet: cannot be read"):
        curate(CurateOptions(metadata=str(tmp_path / "broken.parquet"), out=tmp_path / "ds"))
    assert set(SCHEMAS) == {"laion2b", "relaion2b", "coyo700m", "cc12m", "cc3m", "generic"}


NAMES = "cc12m [v1]|a*b|a?b|a{b,c}|a\\b|url=x|caption=y|width=10|a::b|s3:x|it's|50%20|a#b|$HOME|~x|x ".split("|")


@pytest.mark.parametrize("name", NAMES)
def test_a_catalogue_and_its_rows_may_lie_in_a_folder_of_any_name(tmp_path, name):
    folder = tmp_path / name / "cat"
    folder.mkdir(parents=True)
    for number in (0, 1):
        rows = [{"url": f"http://a.example/{number}{i}.jpg", "caption": f"picture number {i}"} for i in range(20)]
        parquet(folder / f"part-{number}[{number}].parquet", rows)
    for metadata in (folder, folder / "part-0[0].parquet", folder / "part-*.parquet"):
        out = tmp_path / name / metadata.name
        record = curate(CurateOptions(metadata=str(metadata), out=out))
        assert record["rows_out"] == record["rows_in"] == (20 if metadata.name == "part-0[0].parquet" else 40)
        row = pq.read_table(out / "canonical/part-00000.parquet").to_pylist()[0]
        assert row["url"].startswith("http://a.example/") and row["caption"].startswith("picture") and row["src_width"] is None


def table_of(tmp_path, **columns) -> str:
    columns = {"url": [f"http://a.example/{i}.jpg" for i in range(3)]} | columns
    pq.write_table(pa.table(columns), tmp_path / "c.parquet")
    return str(tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            pa.array([["a", "b"], ["c"], None]),
            "caption holds lists of text; expected text: make a row of each, --caption-col",
        ),
        (
            pa.array([{"en": "a", "de": "b"}] * 3),
            "holds structs of en, de; expected text: take a field of it, --caption-col caption.en",
        ),
        (pa.array([[{"raw": "a"}]] * 3), "holds list<.*raw.*>; expected text: choose another with --caption-col"),
        (pa.array([[("en", "a")]] * 3, pa.map_(pa.string(), pa.string())), "holds map<string, string.*>; expected text"),
        (pa.array([0.5, 1.5, 2.5]), "holds numbers; expected text"),
        (pa.array([0, 1, 2], pa.timestamp("us")), r"holds timestamp\[us\]; expected text"),
        (pa.array([b"abcd"] * 3, pa.binary(4)), r"holds fixed_size_binary\[4\]; expected text"),
    ],
)
def test_captions_that_are_no_text_are_refused_by_name(tmp_path, column, message):
    with pytest.raises(UserError, match=f"--metadata c.parquet: .*{message}"):
        read(tmp_path, "generic", table_of(tmp_path, caption=column))


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        (pa.array(["a", "b", None]).dictionary_encode(), ["a", "b", None]),
        (pa.array(["a", "b", None], pa.large_string()), ["a", "b", None]),
        (pa.array([b"a", "\u732b".encode(), None]), ["a", "\u732b", None]),
        (pa.array([1, None, 1954]), ["1", None, "1954"]),
        (pa.array([0, 1, None], pa.date32()), ["1970-01-01", "1970-01-02", None]),
        (pa.nulls(3), [None] * 3),
    ],
)
def test_captions_of_other_kinds_are_the_text_that_they_are(tmp_path, column, texts):
    rows = read(tmp_path, "generic", table_of(tmp_path, caption=column))
    assert [row["caption"] for row in rows] == texts


def test_a_list_gives_a_row_a_text_and_a_struct_its_field(tmp_path):
    lists = pa.array([["a", "b"], [], None])
    rows = read(tmp_path, "generic", table_of(tmp_path, captions=lists), caption_col="captions[]")
    assert [(row["url"][-5], row["caption"]) for row in rows] == [("0", "a"), ("0", "b"), ("1", None), ("2", None)]
    structs = pa.array([{"en": {"long": "a"}}, {"en": {"long": None}}, None])
    rows = read(tmp_path, "generic", table_of(tmp_path, texts=structs), caption_col="texts.en.long")
    assert [row["caption"] for row in rows] == ["a", None, None]
    pq.write_table(pa.table({"url": ["u1"], "captions": pa.array([["a"]])}), tmp_path / "b.parquet")
    for empty in (pa.array([[], [], None]), pa.nulls(3)):  # part a, whose type pandas cannot know
        pq.write_table(pa.table({"url": ["u0"] * 3, "captions": empty}), tmp_path / "a.parquet")
        rows = read(tmp_path, "generic", str(tmp_path / "[ab].parquet"), caption_col="captions[]")
        assert sorted((row["url"], row["caption"] or "") for row in rows) == [*[("u0", "")] * 3, ("u1", "a")]
    with pytest.raises(UserError, match="the column url holds lists of text; expected text: choose another with --url-col"):
        read(tmp_path, "generic", table_of(tmp_path, url=lists, caption=["a", "b", "c"]))
    with pytest.raises(UserError, match=r"needs the columns caption .captions\[\].; found url, captions"):
        read(tmp_path, "generic", table_of(tmp_path, captions=["a", "b", "c"]), caption_col="captions[]")


def test_files_that_disagree_on_captions_are_refused(tmp_path):
    parquet(tmp_path / "a.parquet", [{"url": "u1", "caption": "one"}])
    parquet(tmp_path / "b.parquet", [{"url": "u2", "caption": ["one", "two"]}])
    with pytest.raises(UserError, match="the column caption holds text and in b.parquet lists of text; expected text"):
        read(tmp_path, "generic", str(tmp_path))
    parquet(tmp_path / "b.parquet", [{"url": "u2", "caption": {"en": "two"}}])
    with pytest.raises(UserError, match="the column caption holds text and in b.parquet structs of en; expected text"):
        read(tmp_path, "generic", str(tmp_path))
    parquet(tmp_path / "b.parquet", [{"URL": "u2", "CAPTION": None}])
    rows = read(tmp_path, "generic", str(tmp_path))  # of several files in any order
    assert sorted((row["url"], row["caption"]) for row in rows) == [("u1", "one"), ("u2", None)]
