import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import safetensors.torch
import torch
from PIL import Image

from musc import MuSc, features
from musc.backbones import Backbone, load_backbone, quantized
from musc.datasets.base import Sample
from musc.decoding import Preparation, read_ahead
from musc.errors import ConfigError, DataError
from musc.features import TokenCache, extract


class Counting(Backbone):
    """A backbone that counts the images it is given."""

    def __init__(self, backbone):
        self.__dict__.update(backbone.__dict__)
        self.images = 0

    def __call__(self, images, **options):
        self.images += len(images)
        return super().__call__(images, **options)


@pytest.fixture
def samples(photos):
    return [Sample(p.name, p) for p in sorted(photos.iterdir())]


@pytest.fixture
def counting(tiny_backbone):
    return Counting(tiny_backbone)


def same(a, b):
    stages = all(torch.allclose(x, y, atol=1e-5) for x, y in zip(a.patch_tokens, b.patch_tokens, strict=True))
    return stages and torch.allclose(a.class_tokens, b.class_tokens, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (4, 2), (16, 3)])
def test_batches_and_workers_change_nothing(samples, counting, batch_size, workers):
    plain = extract(samples, counting, batch_size=3, workers=0)
    assert [tuple(t.shape) for t in plain.patch_tokens] == [(6, 16, 192)] * 2
    assert plain.samples == tuple(samples)
    assert same(plain, extract(samples, counting, batch_size=batch_size, workers=workers))


def test_second_run_reads_the_cache(samples, counting, tmp_path):
    first = extract(samples, counting, cache=tmp_path / "cache")
    again = extract(samples, counting, cache=tmp_path / "cache")
    assert counting.images == 6
    assert same(first, again)


def test_precision_is_of_distances_and_not_of_extraction(samples, counting, tiny_config, tmp_path):
    """The same tokens, in the same files: only `backbone_precision` runs the network otherwise, and on CUDA alone."""
    found = [
        MuSc(tiny_config.replace(precision=precision), backbone=counting, cache=tmp_path).features(samples)
        for precision in ("float32", "bfloat16", "float16")
    ]
    assert counting.images == len(samples)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0].patch_tokens, other.patch_tokens, strict=True))


def test_a_changed_image_is_extracted_again(samples, counting, tmp_path):
    extract(samples, counting, cache=tmp_path / "cache")
    stat = samples[0].image.stat()
    shutil.copy(samples[5].image, samples[0].image)
    os.utime(samples[0].image, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # file times tell nothing
    changed = extract(samples[:5], counting, cache=tmp_path / "cache")
    assert counting.images == 6  # the new content of image 0 is that of image 5, which is known already
    assert torch.equal(changed.patch_tokens[0][0], extract(samples, counting).patch_tokens[0][5])


def test_other_weights_are_another_cache(samples, tmp_path, tiny_config):
    extract(samples, one := Counting(load_backbone("deit_tiny_patch16_224", weights="random", image_size=64)),
            cache=tmp_path)  # fmt: skip
    extract(samples, two := Counting(load_backbone("deit_tiny_patch16_224", weights="random", image_size=80)),
            cache=tmp_path)  # fmt: skip
    assert (one.images, two.images) == (6, 6)


def test_a_damaged_cache_file_is_made_anew(samples, counting, tmp_path):
    extract(samples, counting, cache=tmp_path)
    stored = sorted(tmp_path.rglob("*.safetensors"))
    stored[0].write_bytes(stored[0].read_bytes()[:100])
    stored[1].write_bytes(b"")
    extract(samples, counting, cache=tmp_path)
    assert counting.images == 8
    assert not [p for p in tmp_path.rglob(".*") if p.is_file()]  # no half-written file is left


def test_full_disk_costs_the_cache_only(samples, counting, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.warns(UserWarning, match="No space left"):
        got = extract(samples, counting, cache=tmp_path)
    assert len(got) == 6


def _store(cache):
    for value in range(300):
        cache.put("key", {"stage0": torch.full((100, 100), float(value))})


def test_two_processes_share_a_cache(tiny_backbone, tmp_path):
    """Another process and a thread of this one write the same entry while it is read here."""
    cache = TokenCache(tmp_path, tiny_backbone, half=False)
    other = multiprocessing.get_context("spawn").Process(target=_store, args=(cache,))
    _store(cache)
    other.start()
    while other.is_alive() and cache.get("key")["stage0"][0, 0] == 299:  # it takes a while to start
        time.sleep(0.01)
    thread = threading.Thread(target=_store, args=(cache,))
    thread.start()
    seen = set()
    while other.is_alive() or thread.is_alive():
        values = cache.get("key")["stage0"].unique()
        assert len(values) == 1  # never half of one and half of the other
        seen.add(values.item())
    thread.join()
    assert other.exitcode == 0
    assert len(seen) > 1
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["key.safetensors"]


def test_bad_images_are_named_and_the_rest_finished(samples, counting, photos):
    (photos / "0.png").write_bytes(b"")
    (photos / "2.png").write_text("not a picture")
    (photos / "3.png").write_bytes((photos / "4.png").read_bytes()[:500])
    got = extract(samples, counting, workers=2)
    assert [s.name for s in got.samples] == ["1.png", "4.png", "5.png"]
    assert [s.name for s in got.skipped] == ["0.png", "2.png", "3.png"]
    assert all(s.name in s.reason for s in got.skipped)
    alone = extract([samples[4]], counting)
    assert torch.allclose(got.patch_tokens[1][1], alone.patch_tokens[1][0], atol=1e-5)


def test_nothing_readable_is_an_error(samples, counting, photos):
    for sample in samples:
        sample.image.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 6 images"):
        extract(samples, counting)


class Failing(Counting):
    """A backbone that runs out of memory beyond some images, and says so as the CPU does."""

    most = 2

    def __call__(self, images, **options):
        if len(images) > self.most:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.")
        return super().__call__(images, **options)


def test_a_shortage_of_memory_means_smaller_batches(samples, tiny_backbone):
    plain = extract(samples, tiny_backbone)
    assert same(plain, extract(samples, Failing(tiny_backbone), batch_size=6))


def test_one_image_that_does_not_fit_is_a_clear_error(samples, tiny_backbone):
    failing = Failing(tiny_backbone)
    failing.most = 0
    with pytest.raises(ConfigError, match=r"does not hold one image of 64 px.*smaller image_size"):
        extract(samples, failing)


def test_other_errors_of_the_network_are_not_taken_for_a_shortage(samples, tiny_backbone, monkeypatch):
    monkeypatch.setattr(Failing, "__call__", lambda *_, **__: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        extract(samples, Failing(tiny_backbone))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_tokens_that_are_not_finite_stop_the_run_and_name_the_image(samples, tiny_backbone, bad, tmp_path):
    class Broken(Counting):
        def __call__(self, images, **options):
            tokens = super().__call__(images, **options)
            last = tokens.patch_tokens[1].clone()
            last[-1, 3, 5] = bad
            return tokens._replace(patch_tokens=(tokens.patch_tokens[0], last))

    with pytest.raises(DataError, match=r"5\.png: .*NaN or infinity"):
        extract(samples, Broken(tiny_backbone), batch_size=6, cache=tmp_path)


def test_processes_give_the_tokens_and_the_reasons_that_threads_give(samples, counting, photos, tmp_path):
    (photos / "2.png").write_text("not a picture")
    (photos / "4.png").unlink()
    plain = extract(samples, counting, workers=2)
    extract(samples[:2], counting, cache=tmp_path)  # these need not be decoded
    found = extract(samples, counting, workers=1, processes=True, cache=tmp_path)
    assert counting.images == 4 + 2 + 2
    assert found.keys == plain.keys
    assert found.skipped == plain.skipped
    assert ["2.png" in s.reason for s in found.skipped] == [True, False]
    assert all(torch.equal(a, b) for a, b in zip(found.patch_tokens, plain.patch_tokens, strict=True))


def test_processes_leave_ctrl_c_to_this_one_and_their_death_is_said(samples):
    how = Preparation(64, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bicubic")
    expected = [how.array(sample.image) for sample in samples]
    paths = [sample.image for sample in samples * 2]
    before = set(multiprocessing.active_children())
    reading = read_ahead(paths, how, lambda key: None, workers=1, processes=True, ahead=1)
    _, (worker,) = next(reading), set(multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGINT)  # as Ctrl-C does to every process of a terminal
    for n in range(1, 8):
        key, image = next(reading)
        assert key == expected[n % 6][0]
        assert image.numpy().tobytes() == expected[n % 6][1].tobytes()
    worker.kill()
    with pytest.raises(ConfigError, match="a process that decodes images died"):
        list(reading)
    assert not worker.is_alive()


class DiesWhileSending(Preparation):
    """Its second picture gets half-way through the pipe, as where the system is short of memory."""

    def array(self, source):
        if str(source).endswith("1.png"):
            multiprocessing.connection.Connection._send = send_half
        return super().array(source)


def send_half(self, content, write=os.write):
    write(self._handle, content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_that_dies_while_it_sends_is_said_too(workers, samples):
    how = DiesWhileSending(64, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bicubic")
    reading = read_ahead([s.image for s in samples], how, lambda key: None, workers, processes=True, ahead=2)
    before = set(multiprocessing.active_children())
    with pytest.raises(ConfigError, match="a process that decodes images died"):
        list(reading)
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.nightly
def test_processes_end_with_the_one_that_is_killed():
    script = (
        "import os, signal\nfrom musc import decoding\n"
        "if __name__ == '__main__':\n    pool = decoding._processes(1)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # it waits until nobody holds the pipe any more, and the worker had it too
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, timeout=90, check=False)
    assert done.returncode == -signal.SIGKILL
    assert int(done.stdout)


def test_pictures_that_cannot_be_sent_are_decoded_by_threads(caplog):
    class Drawn:
        key = "drawn here"

        def __call__(self):
            return Image.new("RGB", (8, 8))

    how = Preparation(4, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bicubic")
    with caplog.at_level("INFO", logger="musc.decoding"):
        ((_, image),) = read_ahead([Drawn()], how, lambda key: None, workers=2, processes=True, ahead=1)
    assert image.shape == (3, 4, 4)
    assert "Drawn cannot be sent to a process" in caplog.text


def test_the_bar_counts_images_whose_tokens_are_there(samples, counting, photos, monkeypatch):
    (photos / "2.png").write_text("not a picture")
    seen = []
    plain = features.tqdm.update
    monkeypatch.setattr(features.tqdm, "update", lambda bar, n=1: (seen.append((n, counting.images)), plain(bar, n)))
    extract(samples, counting, workers=0, batch_size=2)
    assert seen == [(2, 2), (1, 2), (2, 4), (1, 5)]


def test_linear_layers_in_int8_give_other_tokens_that_are_near(samples, tiny_config, tiny_backbone, tmp_path):
    config = tiny_config.replace(backbone_precision="int8", device="cpu")
    rounded, plain = MuSc(config, backbone=tiny_backbone, cache=tmp_path), MuSc(tiny_config, backbone=tiny_backbone)
    found, expected = rounded.features(samples), plain.features(samples)
    for ours, theirs in zip(found.patch_tokens, expected.patch_tokens, strict=True):
        assert torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).min() > 0.99
        assert not torch.equal(ours, theirs)
    assert rounded.backbone.weights_id == "random-seed0, int8"  # so that caches and results are others
    assert tiny_backbone.weights_id == "random-seed0"
    assert quantized.in_int8(rounded.backbone) is rounded.backbone
    larger = load_backbone("deit_tiny_patch16_224", weights="random", image_size=32)
    assert quantized.in_int8(larger).resized(64).weights_id == "random-seed0, int8"
    larger.device = torch.device("cuda")
    with pytest.raises(ConfigError, match="int8' is for the CPU, and the network is on cuda"):
        quantized.in_int8(larger)


def test_a_torch_that_has_given_int8_up(tiny_backbone, monkeypatch):
    monkeypatch.delattr(torch.ao.quantization, "quantize_dynamic")
    with pytest.raises(ConfigError, match=r"torch .* cannot do that here .*choose float32"):
        quantized.in_int8(tiny_backbone)
