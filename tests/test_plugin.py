import contextlib
import csv
import math
import os
import pickle
import time

import numpy as np
import pytest
import torch

from musc import cli, rscin
from musc.errors import ConfigError, DataError
from musc.plugin import rescore_file
from musc.plugin.class_tokens import normal_path, read_class_tokens, read_pickled_arrays
from musc.plugin.score_table import read_score_table

ARRAYS = {"bottle": np.arange(12, dtype=np.float16).reshape(4, 3), "cable": np.asfortranarray(np.eye(3))}


@pytest.fixture
def scores(tmp_path):
    """Eight images of two looks; one normal image scores too high, one anomalous too low."""
    path = tmp_path / "scores.csv"
    rows = [("good/0.png", 0.1, 0), ("good/1.png", 0.2, 0), ("good/2.png", 0.6, 0), ("good/3.png", 0.1, 0)]
    rows += [("hole/0.png", 0.9, 1), ("hole/1.png", 0.8, 1), ("hole/2.png", 0.5, 1), ("hole/3.png", 0.9, 1)]
    write(path, ("path", "score", "label"), rows)
    return path


@pytest.fixture
def tokens(tmp_path):
    """Their class tokens, in another order and with other slashes."""
    g = np.random.default_rng(0)
    centre = np.eye(2)[[0] * 4 + [1] * 4]
    values = (centre + 0.05 * g.random((8, 2))).astype(np.float32)
    names = [f"{d}/{i}.png" for d in ("good", "hole") for i in range(4)]
    order = g.permutation(8)
    path = tmp_path / "tokens.npz"
    odd = [("./" if i % 2 else "") + names[i].replace("/", "\\" if i % 3 else "//") for i in order]
    np.savez(path, paths=np.array(odd), class_tokens=values[order])
    return path, values


def write(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def test_rows_are_joined_by_path(scores, tokens):
    path, values = tokens
    done = rescore_file(scores, path, (2, 3))
    raw = [0.1, 0.2, 0.6, 0.1, 0.9, 0.8, 0.5, 0.9]
    expected = rscin.rescore(torch.tensor(raw, dtype=torch.float64), torch.from_numpy(values).double(), (2, 3))
    np.testing.assert_allclose(done.table["score"], expected.numpy(), atol=1e-12)
    np.testing.assert_array_equal(done.table["raw_score"], raw)
    np.testing.assert_array_equal(done.table["label"], [0] * 4 + [1] * 4)
    assert done.table["score"][done.table["rank"] == 1].item() == done.table["score"].max()
    row = done.metrics.loc["scores"]
    assert row["AUROC w/o"] == pytest.approx(100 * 15 / 16)  # one of the sixteen pairs is in the wrong order
    assert row["AUROC w"] == 100


def test_own_results_are_re_scored_from_the_raw_score(scores, tmp_path, tokens):
    write(scores, ("path", "score", "raw_score", "defect"), [(f"{i}.png", 0, i, "x") for i in range(4)])
    np.save(tmp_path / "class_tokens.npy", np.eye(4, dtype=np.float32))
    done = rescore_file(scores, tmp_path)  # the folder itself is a result: scores.csv and class_tokens.npy
    assert list(done.table["raw_score"]) == [0, 1, 2, 3]
    assert list(done.table["defect"]) == ["x"] * 4
    np.testing.assert_allclose(done.table["score"], np.arange(4) / 3)  # orthogonal tokens smooth nothing
    assert "'raw_score'" in done.notes[0]
    assert rescore_file(scores, tmp_path, column="score").table["raw_score"].sum() == 0


def test_each_category_by_itself(tmp_path):
    rng = np.random.default_rng(1)
    tokens = {"mvtec_ad/cup": rng.random((5, 4)), "mvtec_ad/nut": rng.random((6, 4))}
    np.savez(tmp_path / "t.npz", **tokens)
    values = rng.random(11)
    names = ["cup"] * 5 + ["nut"] * 6
    rows = [(f"{i % 5}{i // 10}.png", v, n) for i, (v, n) in enumerate(zip(values, names, strict=True))]
    write(tmp_path / "s.csv", ("path", "score", "category"), rows)
    done = rescore_file(tmp_path / "s.csv", tmp_path / "t.npz", by_order=True)
    for name, part in (("cup", slice(5)), ("nut", slice(5, 11))):
        expected = rscin.rescore(torch.from_numpy(values[part]), torch.from_numpy(tokens[f"mvtec_ad/{name}"]))
        np.testing.assert_allclose(done.table["score"][part], expected.numpy(), atol=1e-12)
        assert sorted(done.table["rank"][part]) == list(range(1, len(expected) + 1))
    only = rescore_file(tmp_path / "s.csv", tmp_path / "t.npz", categories=["nut"], by_order=True).table
    np.testing.assert_array_equal(only["score"], done.table["score"][5:])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_arrays_of_every_protocol(tmp_path, protocol):
    path = tmp_path / "cls.dat"
    path.write_bytes(pickle.dumps({**ARRAYS, "list": [np.float32(1.5), 2]}, protocol))
    found = read_pickled_arrays(path)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert found["list"] == [1.5, 2]


def test_pickles_of_numpy_1_and_big_endian(tmp_path):
    path = tmp_path / "cls.dat"
    data = pickle.dumps({"a": ARRAYS["bottle"].astype(">f4")}, 2)
    old = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != data  # NumPy 1 wrote the old name
    path.write_bytes(old)
    np.testing.assert_array_equal(read_class_tokens(path)["a"].tokens, ARRAYS["bottle"])


class Malicious:
    def __init__(self, call, *args):
        self.reduce = (call, args)

    def __reduce__(self):
        return self.reduce


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("call", [os.system, eval, getattr, np.load, np.fromfile])
def test_a_malicious_pickle_runs_nothing(tmp_path, monkeypatch, protocol, call):
    ran = tmp_path / "ran"
    word = {os.system: f"touch {ran}", eval: f"open({str(ran)!r}, 'w')"}.get(call, str(ran))
    path = tmp_path / "cls.dat"
    path.write_bytes(pickle.dumps({"bottle": [ARRAYS["bottle"], Malicious(call, word)]}, protocol))
    with pytest.raises(DataError, match=r"cls\.dat asks for .*not read"):
        read_class_tokens(path)
    assert not ran.exists()


def test_a_pickle_cannot_reach_through_an_allowed_name(tmp_path):
    path = tmp_path / "cls.dat"
    for name in (
        b"cnumpy\nndarray.__class__\n.",
        b"c_codecs\nencode.__globals__\n.",
        b"cnumpy._core.multiarray\nsys\n.",
    ):
        path.write_bytes(name)
        with pytest.raises(DataError, match="asks for"):
            read_pickled_arrays(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps(ARRAYS)[:-20],
        pickle.dumps({"a": np.array([{}, None], dtype=object)}),
        pickle.dumps({"a": np.array(["text"])}),
        pickle.dumps({"a": np.zeros(5)}),
        pickle.dumps({"a": "text"}),
        pickle.dumps([np.zeros(2), np.zeros(3)]),
        b"cnumpy\nndarray\n(tR(I1\n(I2\ntNI00\nNtb.",  # an array of no type and no numbers
        b"\x80\x04\x8c\x05numpy\x8c\x05dtype\x93\x8c\x02f4\x85R(K\x01K\x02tb.",  # a type in an odd state
        b"PK\x03\x04damaged",
        b"\x93NUMPY damaged",
    ],
)
def test_what_is_no_array_is_named(tmp_path, content):
    path = tmp_path / "cls.dat"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cls\.dat"):
        read_class_tokens(path)


def test_paths_with_slashes_of_any_kind_are_one():
    assert {normal_path(p) for p in ("a/b.png", "./a/b.png", "a\\b.png", "a//b.png", ".\\a/./b.png")} == {"a/b.png"}


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([("good/0.png", 1), ("new/9.png", 2)], DataError, r"1 of 2 paths .*no class token .*'new/9\.png'; it has '"),
        ([("good/0.png", 1), ("./good/0.png", 2)], DataError, r"'good/0\.png' twice"),
        ([("good/0.png", 1), ("good/1.png", "nan")], DataError, r"score of 'good/1\.png' is .*not a finite number"),
        ([("good/0.png", 1), ("good/1.png", "")], DataError, r"'good/1\.png' is '', not a finite"),
        ([("good/0.png", 1), ("good/1.png", "inf")], DataError, "not a finite"),
        ([("good/0.png", 1), ("", 2)], DataError, "row without a path"),
        ([("good/0.png", 1), ("good/1.png", 2)], ConfigError, r"scores\.csv with .*tokens\.npz: window 3: .* N = 2"),
        ([], DataError, "no rows"),
    ],
)
def test_bad_scores_are_named(scores, tokens, rows, error, message):
    write(scores, ("path", "score"), rows)
    with pytest.raises(error, match=message):
        rescore_file(scores, tokens[0])


def test_bad_columns_labels_and_orders_are_named(scores, tokens, tmp_path):
    with pytest.raises(DataError, match="needs the columns path and loss; it has path, score, label"):
        rescore_file(scores, tokens[0], column="loss")
    np.save(tmp_path / "bare.npy", tokens[1])
    with pytest.raises(ConfigError, match=r"names no paths.*--by-order"):
        rescore_file(scores, tmp_path / "bare.npy")
    assert len(rescore_file(scores, tmp_path / "bare.npy", by_order=True).table) == 8
    np.save(tmp_path / "short.npy", tokens[1][:7])
    with pytest.raises(DataError, match=r"8 scores but .* 7 class tokens"):
        rescore_file(scores, tmp_path / "short.npy", by_order=True)
    np.savez(tmp_path / "two.npz", a=tokens[1], b=tokens[1])
    with pytest.raises(ConfigError, match="several categories: name one of a, b"):
        rescore_file(scores, tmp_path / "two.npz", by_order=True)
    with pytest.raises(ConfigError, match="no 'c'"):
        rescore_file(scores, tmp_path / "two.npz", categories=["c"], by_order=True)
    np.savez(tmp_path / "twice.npz", class_tokens=tokens[1], paths=["a", "b"] * 4)
    with pytest.raises(DataError, match=r"twice\.npz names 'a' twice"):
        rescore_file(scores, tmp_path / "twice.npz")
    with pytest.raises(DataError, match="not there"):
        rescore_file(scores, tmp_path / "nothing.dat")
    write(scores, ("path", "score", "label"), [("good/0.png", 1, 0), ("good/1.png", 2, "so-so")])
    with pytest.raises(DataError, match=r"label of 'good/1\.png' is 'so-so'"):
        rescore_file(scores, tokens[0])


def test_the_command_prints_and_writes(scores, tokens, tmp_path, capsys):
    assert cli.main(["rscin", str(scores), "--class-tokens", str(tokens[0]), "--windows", "2,inf"]) == 0
    printed = capsys.readouterr()
    assert "AUROC w/o" in printed.out
    assert "93.75" in printed.out
    with (tmp_path / "scores_rscin.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "score", "rank", "raw_score", "label"]
    expected = rescore_file(scores, tokens[0], (2, math.inf)).table["score"]
    np.testing.assert_array_equal([float(r["score"]) for r in rows], expected)
    before = scores.read_bytes()
    assert cli.main(["rscin", str(scores), "--class-tokens", str(tokens[0]), "--out", str(scores)]) == 1
    assert "the file of the scores itself" in capsys.readouterr().err
    assert scores.read_bytes() == before


WINDOWS = [(2, 3), (8, 9), *((k,) for k in range(2, 10)), (math.inf,)]


def dense(scores, tokens, windows):
    """Eq. 5 with N x N masks, in float64 and NumPy alone: one N-vector for each of `windows`."""
    C = (scores - scores.min()) / (scores.max() - scores.min())
    W = tokens.astype(np.float64) @ tokens.astype(np.float64).T
    own_first = W + np.diag(np.full(len(C), np.inf))
    place = np.argsort(np.argsort(-own_first, axis=1, kind="stable"), axis=1)  # 0: the image itself
    terms = {}
    for k in set().union(*windows):
        kept = (place < k) * W
        terms[k] = kept @ C / kept.sum(axis=1)
    return [(C + sum(terms[k] for k in several)) / (len(several) + 1) for several in windows]


@pytest.mark.realdata
def test_all_27_categories_of_clip_tokens(shared):
    """Every window of the paper on the published class tokens: equal to a dense evaluation."""
    categories = read_class_tokens(shared / "data" / "clip_class_tokens.npz")
    rng = np.random.default_rng(0)
    assert len(categories) == 27
    for found in categories.values():
        scores = rng.gamma(9, 0.05, len(found.tokens))
        tokens = torch.from_numpy(found.tokens)
        for windows, expected in zip(WINDOWS, dense(scores, found.tokens, WINDOWS), strict=True):
            got = rscin.rescore(torch.from_numpy(scores), tokens, windows)
            np.testing.assert_allclose(got.numpy(), expected, atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------------------ other people's tables

ROWS = [("a.png", "0.1", "0"), ("b.png", "0.7", "1"), ("c.png", "0.2", "0")]


def written(path, lines, encoding="utf-8"):
    path.write_bytes("\n".join(lines).encode(encoding) + b"\n")
    return path


@pytest.mark.parametrize(
    "lines",
    [
        ["path,score,label", *(f"{p},{s},{y}" for p, s, y in ROWS)],
        ["path,score,label", *(f"{p},{s},{y}," for p, s, y in ROWS)],  # pandas takes the first column for an index
        ["path,score,label,", *(f"{p},{s},{y}," for p, s, y in ROWS)],
        ["path;score;label", *(f"{p};{s};{y}" for p, s, y in ROWS)],
        ["path;score;label", *(f"{p};{s.replace('.', ',')};{y}" for p, s, y in ROWS)],
        ["path\tscore\tlabel", *(f"{p}\t{s}\t{y}" for p, s, y in ROWS)],
        ["path, score, label", *(f"{p}, {s}, {y}" for p, s, y in ROWS)],
        ["Path,Score,Label", *(f"{p},{s},{y}" for p, s, y in ROWS)],
        ["\ufeffpath,score,label", *(f'"{p}","{s}","{y}"' for p, s, y in ROWS), ""],
        ["path,score,label", *(f"{p},{s},{('good', 'NG')[int(y)]}" for p, s, y in ROWS)],
        ["label,score,path", *(f"{('Normal', 'anomalous')[int(y)]},{s},{p}" for p, s, y in ROWS)],
    ],
)
def test_every_way_of_writing_the_same_table(lines, tmp_path):
    table, column, _ = read_score_table(written(tmp_path / "s.csv", lines))
    assert table["path"].tolist() == [p for p, _, _ in ROWS]
    assert table[column].tolist() == [0.1, 0.7, 0.2]
    assert table["label"].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,score", "a.png,0.1,surplus"], "line 2 has 3 cells and the header 2"),
        (["path,score", "a.png,0.1", "b.png"], "line 3 has 1 cells"),
        (["path,score,score", "a,1,2"], "names the column 'score' twice"),
        (["image,score", "a,1"], "needs the columns path and score; it has image, score"),
        (["path,score", "a,high"], "is 'high', not a finite number"),
        (["path,score,label", "a,1,0", "b,2,perhaps"], "label of 'b' is 'perhaps'"),
        ([""], "is empty"),
        (["path,score"], "no rows"),
    ],
)
def test_odd_tables_are_named_by_line(lines, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_score_table(written(tmp_path / "s.csv", lines))


def test_labels_that_say_nothing_are_named(tmp_path):
    table, _, notes = read_score_table(written(tmp_path / "s.csv", ["path,score,label", "a,1,x7", "b,2,x9"]))
    assert "label" not in table
    assert notes == ["labels such as 'x7' say neither normal nor anomalous: no metrics."]


def test_names_in_any_bytes_come_back(tmp_path):
    path = tmp_path / "s.csv"
    path.write_bytes(b"path,score\np\xfcrf.png,1\n")
    assert read_score_table(path)[0]["path"].tolist() == ["p\udcfcrf.png"]


def test_mutated_tables_give_our_error_or_a_table(tmp_path):
    good = b"path,score,label,category\n" + b"".join(b"%d.png,0.%d,%d,cup\n" % (i, i, i % 2) for i in range(9))
    rng, path = np.random.default_rng(0), tmp_path / "s.csv"
    for _ in range(300):
        data = bytearray(good)
        for at in rng.integers(len(data), size=3):
            data[at] = rng.integers(256)
        path.write_bytes(bytes(data))
        with contextlib.suppress(DataError):
            table, column, _ = read_score_table(path)
            assert np.isfinite(table[column]).all()


def test_a_small_pickle_of_shared_lists_is_read_in_no_time(tmp_path):
    content = [np.ones(2)]
    for _ in range(60):
        content = [content, content]
    (tmp_path / "t.dat").write_bytes(pickle.dumps(content))
    start = time.perf_counter()
    read_pickled_arrays(tmp_path / "t.dat")
    assert time.perf_counter() - start < 5  # unfolded it would be 2^60 lists
