"""Folders of images with captions or questions in a file: what they become, and what is said of bad ones."""

import json

import pytest

from tests.helpers.host_data import data_config
from tests.helpers.tiny_model import CONFIG, noise, tiny_tokenizer
from unitoken_jax.config import SourceConfig
from unitoken_jax.data.image_folder import ImageFolderRecords
from unitoken_jax.data.index import open_index
from unitoken_jax.data.readers import kind_of, open_records, resolve_source, scan_records
from unitoken_jax.data.sources import Source
from unitoken_jax.sequence.build import is_text_to_image
from unitoken_jax.sequence.errors import ConversationError
from unitoken_jax.sequence.image import ImageError

TOKENIZER = tiny_tokenizer()
DRAW = "Generate an image according to the following prompt:\n"


def write_folder(folder, text, name="captions.csv", images=3):
    """A folder with images 0.png, 1.png ... in its folder `sub`, and this file."""
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    for number in range(images):
        noise(number, width=16 + 8 * (number % 3)).save(folder / "sub" / f"{number}.png")
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def turns(folder, **config):
    """Each conversation as the texts and image names of its turns."""
    source = resolve_source(SourceConfig(str(folder), **config))
    index = open_index(source, CONFIG, TOKENIZER)
    return [
        [[getattr(part, "name", part) for part in turn.parts] for turn in index.conversation(i).turns]
        for i in range(len(index))
    ]


DESCRIBED = [["sub/0.png", "describe the image"], ["a red circle"]]
DRAWN = [[DRAW + "a red circle"], ["sub/0.png"]]
ANSWERED = [["sub/1.png", "how many ?"], ["two"]]
CAPTION_CSV = "file_name,text\nsub/0.png, a red circle\n"


@pytest.mark.parametrize(
    ("captions", "expected"),
    [("describe", [DESCRIBED]), ("draw", [DRAWN]), ("both", [DESCRIBED, DRAWN])],
)
def test_what_a_caption_teaches(tmp_path, captions, expected):
    write_folder(tmp_path, CAPTION_CSV)
    assert turns(tmp_path, captions=captions) == expected
    assert turns(tmp_path) == [DESCRIBED, DRAWN]
    index = open_index(SourceConfig(str(tmp_path)), CONFIG, TOKENIZER)
    assert [is_text_to_image(index.conversation(i)) for i in range(2)] == [False, True]  # may lose its prompt


ROWS = [
    {"file_name": "sub/0.png", "text": "a red circle"},
    {"file_name": "sub/1.png", "question": "how many ?", "answer": "two", "id": 3},
]
FILES = {
    "captions.csv": "file_name,caption,question,answer\n"
    "sub/0.png,a red circle,,\nsub/1.png,,how many ?,two\n",
    "metadata.csv": "answer,id,question,prompt,file_name\r\n"
    ",,,a red circle,sub/0.png\r\ntwo,3,how many ?,,sub/1.png\r\n",
    "metadata.jsonl": "\n".join(map(json.dumps, ROWS)),
    "mine.jsonl": "\n\n".join(map(json.dumps, ROWS)) + "\n",
    "mine.json": json.dumps(ROWS, indent=1),
    "mine.csv": 'file_name,text,question,answer\nsub/0.png,"a red circle",,\nsub/1.png,,how many ?,two',
    "train/metadata.jsonl": "\n".join(map(json.dumps, ROWS)).replace("sub/", "../sub/"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_file_says_the_same(tmp_path, name):
    """A folder is known by its file's name, also in a folder of its split; a file by its columns."""
    (tmp_path / "train").mkdir()
    write_folder(tmp_path, FILES[name], name)
    path = tmp_path / name if name.startswith("mine") else tmp_path
    found = json.loads(json.dumps(turns(path)).replace("../sub/", "sub/"))
    assert found == [DESCRIBED, DRAWN, ANSWERED]


def test_images_elsewhere(tmp_path):
    write_folder(tmp_path / "images", "")
    (tmp_path / "rows.csv").write_text(CAPTION_CSV)
    assert turns(tmp_path / "rows.csv", images=str(tmp_path / "images")) == [DESCRIBED, DRAWN]


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        ('{"conversations": [], "file_name": "x"}', "json"),
        ('{"image": "x"}', "json"),
        ("not JSON", "json"),
        ('{"file_name": 3}', "image_folder"),
    ],
)
def test_a_file_is_known_by_its_first_record(tmp_path, first, kind):
    (tmp_path / "x.jsonl").write_text(f"{first}\n{{}}\n")
    assert kind_of(SourceConfig(str(tmp_path / "x.jsonl"))) == kind
    assert kind_of(SourceConfig(str(tmp_path / "none.jsonl"))) == "json"


BAD_ROWS = {
    "sub/0.png,,,": r"empty text and question: write what the image shows, or leave the row out",
    ",a circle,,": r"empty file_name",
    "sub/9.png,a circle,,": r"sub/9\.png does not exist",
    "sub/1.png,,how many ?,": r"empty answer, but there is the question 'how many \?'",
    "sub/1.png,,,two": r"empty question, but there is the answer 'two'",
    "sub/1.png,a <image>,,": r"2 <\|image\|> in the turns but 1 images",
    "sub/1.png,a, circle,,": r"5 cells, but 4 columns",
    "https://x/1.png,a circle,,": r'"image" holds a URL',
    "captions.csv,a circle,,": r"captions\.csv is not an image",
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_bad_rows_of_a_csv_file(tmp_path, row):
    text = f"file_name,text,question,answer\nsub/0.png,a red circle,,\n{row}\nsub/1.png,,how many ?,two\n"
    write_folder(tmp_path, text)
    with pytest.raises(
        (ConversationError, ImageError), match=rf"captions\.csv:3( \(\w+\))?: .*{BAD_ROWS[row]}"
    ):
        open_index(SourceConfig(str(tmp_path), captions="describe"), CONFIG, TOKENIZER)
    index = open_index(
        SourceConfig(str(tmp_path), captions="describe"), CONFIG, TOKENIZER, on_error=lambda error: None
    )
    assert [bool(tokens) for tokens in index.lengths[:, 0]] == [True, False, True]


BAD_JSON_ROWS = {
    '{"text": "a"}': "no column file_name, with the image's name: it has text",
    '{"file_name": "0", "label": 3}': r"no column with captions \(text, .*\), nor .* it has file_name, label",
    '{"file_name": "0", "text": ["a", "b"]}': r"\"text\" is \['a', 'b'\]; expected text",
    '{"file_name": "0", "text": "a", "prompt": "b"}': "captions in both text and prompt: keep one",
    '{"file_name": "0", "text": "a", "answer": "b"}': "question and answer belong together: it has file_name",
    '{"file_name": "0", "text": null}': "no column with captions",
    "[3]": 'expected an object with "file_name"',
    '{"file_name": ': "not valid JSON",
}


@pytest.mark.parametrize(("row", "message"), BAD_JSON_ROWS.items())
def test_bad_rows_of_a_jsonl_file(tmp_path, row, message):
    good = '{"file_name": "sub/0.png", "text": "a red circle"}'
    write_folder(tmp_path, f"{good}\n{row}\n{good}\n", "metadata.jsonl")
    with pytest.raises(ConversationError, match=rf"metadata\.jsonl:2: {message}"):
        open_index(SourceConfig(str(tmp_path)), CONFIG, TOKENIZER)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("name,text", "no column file_name, with the image's name: it has name, text"),
        ("file_name;text", "no column file_name, with the image's name: it has file_name;text"),
        ("file_name,label", r"no column with captions \(text, caption, prompt\), nor question and answer"),
        ("file_name,text,caption", "captions in both text and caption: keep one of these columns"),
        ("file_name,text,text", "the header has text twice"),
        ("file_name,question", "question and answer belong together"),
    ],
)
def test_bad_columns_of_a_csv_file(tmp_path, header, message):
    write_folder(tmp_path, f"{header}\nsub/0.png,x,y\n")
    with pytest.raises(ConversationError, match=rf"captions\.csv:1: {message}"):
        open_index(SourceConfig(str(tmp_path)), CONFIG, TOKENIZER)


def test_a_folder_without_a_file_or_with_two(tmp_path):
    write_folder(tmp_path, "", "notes.txt")
    with pytest.raises(
        FileNotFoundError, match=r"holds none of captions\.csv, metadata\.csv, metadata\.jsonl"
    ):
        resolve_source(SourceConfig(str(tmp_path)))
    for name in ("captions.csv", "metadata.jsonl"):
        (tmp_path / name).write_text(CAPTION_CSV)
    with pytest.raises(ValueError, match=r"holds both captions\.csv and metadata\.jsonl: give the path"):
        resolve_source(SourceConfig(str(tmp_path)))
    assert turns(tmp_path / "captions.csv") == [DESCRIBED, DRAWN]


def test_no_rows(tmp_path):
    write_folder(tmp_path, "file_name,text\n")
    with pytest.raises(ConversationError, match=r"captions\.csv: holds no usable conversation"):
        open_index(SourceConfig(str(tmp_path)), CONFIG, TOKENIZER)


def test_an_index_is_made_again_for_other_captions(tmp_path):
    write_folder(tmp_path, CAPTION_CSV)
    indexes = [
        open_index(SourceConfig(str(tmp_path), captions=c), CONFIG, TOKENIZER) for c in ("draw", "both")
    ]
    assert [len(index) for index in indexes] == [1, 2]
    assert indexes[0].folder != indexes[1].folder
    assert indexes[0].data_digest() != indexes[1].data_digest()


def test_what_describes_an_image_and_what_draws_it_are_held_out_together(tmp_path):
    """Else a drawing that is held out would have been seen in training, as an image to describe."""
    rows = "".join(f"sub/{i % 3}.png,circle {i}\n" for i in range(20))
    write_folder(tmp_path, "file_name,text\n" + rows)
    names = []
    for part in ("training", "held_out"):
        config = SourceConfig(str(tmp_path), held_out=0.3, part=part)
        source = Source(config, 0, data_config(), CONFIG, TOKENIZER, 1)
        locations = [source.conversation(i).source for i in range(len(source))]
        names.append({location.split(" ")[0] for location in locations})
        assert len(locations) == 2 * len(names[-1])
    assert len(names[0] | names[1]) == 20
    assert not names[0] & names[1]


def test_locations(tmp_path):
    write_folder(tmp_path, CAPTION_CSV)
    config = resolve_source(SourceConfig(str(tmp_path)))
    records = open_records(config, scan_records(config))
    assert isinstance(records, ImageFolderRecords)
    assert [records.location(i) for i in range(2)] == [
        f"{tmp_path}/captions.csv:2 (describe)",
        f"{tmp_path}/captions.csv:2 (draw)",
    ]
